//! Which of the server's certificates a client is shown, and what operators are told of them.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::version::TLS12;
use serde_json::{Value, json};
use steadfast_harness::certificates::{Certificate, DAY, lasts};
use steadfast_harness::wait_until;

use super::{Asked, CA, HELLO, Site, exchange, get, get_http2, shown};
use crate::process::{BINARY, connect};

#[test]
fn a_client_is_shown_the_certificate_that_has_the_name_it_asks_for() {
    let first = CA.issue("first", &["example.net", "127.0.0.1"], |_| {});
    let exact = CA.issue("exact", &["a.example.org"], |_| {});
    let below = CA.issue("below", &["*.example.org"], |_| {});
    let rsa = CA.issue_rsa("rsa", &["a.example.org"]);
    let site = Site::start(&[&first, &below, &exact, &rsa], "", &[], HELLO);
    for (name, certificate) in [
        ("a.example.org", &exact),
        ("A.EXAMPLE.org", &exact),
        ("b.example.org", &below),
        ("example.net", &first),
        // It sends no name.
        ("127.0.0.1", &first),
    ] {
        let mut client = site.client(&Asked::of(name)).expect(name);
        assert_eq!(shown(&client), certificate.der(), "{name}");
        assert!(exchange(&mut client, &get(name)).expect(name).ends_with("hello"), "{name}");
    }
    // An old client verifies no other.
    let old = Asked { versions: &[&TLS12], is_of_rsa: true, ..Asked::of("a.example.org") };
    assert_eq!(shown(&site.client(&old).expect("it is shown one that it can verify")), rsa.der());
    // A star is one label, and the first certificate is none of this name.
    let error = site.client(&Asked::of("c.b.example.org")).expect_err("it trusts no other name");
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[test]
fn the_oldest_version_and_the_protocols_are_those_of_the_config() {
    let certificate = CA.issue("example.org", &["example.org"], |_| {});
    let both = Asked { protocols: &["h2", "http/1.1"], ..Asked::of("example.org") };
    let old = Asked { versions: &[&TLS12], ..both };
    let site = Site::start(&[&certificate], "min_version = \"1.3\"\nhttp2 = false", &[], HELLO);
    assert!(site.client(&old).is_err(), "TLS 1.2 is not spoken");
    assert_eq!(site.client(&both).expect("1.3 is").conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let site = Site::start(&[&certificate], "", &[], HELLO);
    assert_eq!(site.client(&old).expect("1.2 is").conn.alpn_protocol(), Some(&b"h2"[..]));
    let neither = Asked { protocols: &["ftp"], ..both };
    assert!(site.client(&neither).is_err(), "no protocol in common");
}

#[test]
fn a_renewed_certificate_is_shown_after_a_reload_and_a_broken_one_changes_nothing() {
    let [old, new, broken] = [1, 2, 3].map(|_| CA.issue("example.org", &["example.org"], |_| {}));
    let site = Site::start(&[&old], "", &[], HELLO);
    let asked = Asked::of("example.org");
    let shows =
        |certificate: &Certificate| shown(&site.client(&asked).expect("it is served")) == certificate.der();
    assert!(shows(&old));
    site.renew(&new, &new);
    wait_until("the new certificate", || shows(&new).then_some(()));
    site.renew(&broken, &new);
    site.daemon.wait_for_line("the reason", |line| {
        line.contains("the key does not match the certificate of") && line.contains("example.org")
    });
    assert!(shows(&new));
    site.renew(&broken, &broken);
    wait_until("the certificate, mended", || shows(&broken).then_some(()));
}

#[test]
fn whoever_asks_is_told_of_the_handshakes_and_of_the_days_that_each_certificate_has() {
    let issue = |name: &str, days| {
        CA.issue(name, &[name, &format!("*.{name}"), "127.0.0.1"], |certificate| {
            lasts(certificate, -1, days);
            // The hours that are left are the same whenever in the next half an hour they are asked for.
            certificate.not_after -= Duration::from_secs(30 * 60);
        })
    };
    let certificates = [issue("example.org", 43), issue("example.net", 1)];
    let [long, short] = &certificates;
    let site = Site::start(&[long, short], "", &[], HELLO);
    let asked = Asked { protocols: &["http/1.1"], ..Asked::of("example.org") };
    let of_tls12 = Asked { versions: &[&TLS12], ..asked };
    let below = Asked { name: "www.example.org", ..asked };
    // It sends no name.
    let nameless = Asked { name: "127.0.0.1", ..asked };
    for asked in [asked, asked, of_tls12, below, nameless] {
        let mut client = site.client(&asked).expect("it is served");
        exchange(&mut client, &get("example.org")).expect("an answer");
    }
    // A client that comes again, and has heard of no protocol.
    let asked_again = Asked { protocols: &[], ..asked };
    let config = Arc::new(asked_again.config());
    for _ in 0..2 {
        let client = asked_again.client_by(Arc::clone(&config), site.addresses()[1]);
        exchange(&mut client.expect("it is served"), &get("example.org")).expect("an answer");
    }
    site.over_http2(&asked, get_http2("https://example.org/")).expect("an answer");
    assert!(site.client(&Asked { protocols: &["ftp"], ..asked }).is_err());

    let mut admin = connect(&site.daemon, "admin");
    let mut told = |path: &str| admin.get(path).expect("an answer").text();
    wait_until("the failed one to be counted", || {
        told("/metrics")
            .contains("steadfast_tls_handshake_failures_total{reason=\"no_application_protocol\"} 1\n")
            .then_some(())
    });
    let files = ["0.pem", "1.pem"].map(|name| site.files.path().join(name).display().to_string());
    let metrics = told("/metrics");
    for (file, days) in files.iter().zip([43, 1]) {
        let series = format!("steadfast_tls_certificate_expiry_timestamp_seconds{{certificate=\"{file}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series)).expect("it is there");
        let expiry = Duration::from_secs_f64(value.parse().expect("a number"));
        let expected = (SystemTime::now() + days * DAY).duration_since(UNIX_EPOCH).expect("a clock");
        assert!(expiry.abs_diff(expected) < Duration::from_secs(3600), "{series}{value}");
    }
    let mut status = Command::new(BINARY);
    status.arg("status").env("RUNTIME_DIRECTORY", site.daemon.folder().join("run"));
    let shown = String::from_utf8(status.output().expect("it runs").stdout).expect("text");
    let page = told("/");
    let short = "8 handshakes: 7 TLSv1.3, 1 TLSv1.2; 1 resumed; 1 failed: 1 no_application_protocol";
    for (what, text) in [("steadfast status", &shown), ("the page", &page)] {
        for said in [short, &files[0], "expires in 42 d 23 h", &files[1], "expires in 23 h"] {
            assert!(text.contains(said), "{what} does not have {said}:\n{text}");
        }
    }
    let status: Value = serde_json::from_str(&told("/status")).expect("JSON");
    let tls = &status["tls"];
    let handshakes = [
        ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "http/1.1", false, 1),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "h2", false, 1),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "http/1.1", false, 4),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "none", false, 1),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "none", true, 1),
    ];
    let in_json = handshakes.map(|(version, suite, alpn, resumed, number)| {
        json!({ "version": version, "suite": suite, "alpn": alpn, "resumed": resumed, "number": number })
    });
    assert_eq!(tls["handshakes"], json!(in_json));
    let names = [("*.example.org", 1), ("example.org", 6), ("none", 1)];
    assert_eq!(tls["names"], json!(names.map(|(name, number)| json!({ "name": name, "number": number }))));
    let series = |name: &str| {
        let all = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let mut all: Vec<_> = all.filter(|rest| rest.starts_with('{')).map(str::to_owned).collect();
        all.sort();
        all
    };
    let expected = handshakes.map(|(version, suite, alpn, resumed, number)| {
        format!("{{version=\"{version}\",suite=\"{suite}\",alpn=\"{alpn}\",resumed=\"{resumed}\"}} {number}")
    });
    assert_eq!(series("steadfast_tls_handshakes_total"), expected);
    let expected = names.map(|(name, number)| format!("{{name=\"{name}\"}} {number}"));
    assert_eq!(series("steadfast_tls_handshakes_by_name_total"), expected);
    assert_eq!(tls["failures"], json!([{ "name": "no_application_protocol", "number": 1 }]));
    for (index, (name, days)) in [("example.org", 43.0), ("example.net", 1.0)].into_iter().enumerate() {
        let certificate = &tls["certificates"][index];
        let names = json!([name, format!("*.{name}")]);
        assert_eq!((&certificate["file"], &certificate["names"]), (&json!(files[index]), &names));
        let left = certificate["expires_in"].as_f64().expect("a number") / DAY.as_secs_f64();
        assert!((days - 0.1..=days).contains(&left), "{certificate}");
    }
}
