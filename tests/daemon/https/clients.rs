//! The certificates of clients: who is let in, and where their requests go.

use std::io;
use std::sync::Arc;

use axum::http::Request;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use steadfast_harness::Upstream;
use steadfast_harness::certificates::{Certificate, is_ca};

use super::{Asked, CA, HELLO, Site, exchange, get, get_http2, say_hello};

/// A request whose own fields are no one's subject.
const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: example.org\r\nX-Client: CN=mallory\r\nX_Client: CN=mallory\r\n\
                      Trailer: x-client\r\nConnection: close\r\n\r\n";

/// The same over HTTP/2.
fn claims(uri: &str) -> Request<()> {
    let mut request = Request::get(uri);
    for (name, value) in [("x-client", "CN=mallory"), ("x_client", "CN=mallory"), ("trailer", "x-client")] {
        request = request.header(name, value);
    }
    request.body(()).expect("a request")
}

/// The head of the one request that reaches an upstream while this is asked, and what becomes of it.
fn passed_on<T: Send>(upstream: &Upstream, ask: impl FnOnce() -> T + Send) -> (String, T) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(ask);
        let exchange = upstream.next_request();
        let head = exchange.head.to_lowercase();
        exchange.answer(200, "ok");
        (head, asked.join().expect("an answer"))
    })
}

#[test]
fn a_certificate_is_required_of_clients_and_its_subject_is_the_upstreams_to_see() {
    let upstream = Upstream::start();
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let alice = CA.issue("alice, of \u{e4} + b", &[], |_| {});
    let stranger = Certificate::of_itself("CA", &[], is_ca).issue("alice", &[], |_| {});
    let https = "client_ca = \"~/ca\"\nclient_subject_header = \"X-Client\"";
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let site = Site::start(&[&server], https, &[("ca", &CA.pem())], &route);
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let asked = Asked { versions, ..Asked::of("example.org") };
        for refused in [asked, asked.by(&stranger)] {
            let answer = site.client(&refused).and_then(|mut client| exchange(&mut client, CLAIMS));
            assert!(answer.is_err(), "{answer:?}");
            let answer = site.over_http2(&refused, claims("https://example.org/"));
            assert!(answer.is_err(), "{answer:?}");
        }
        let asked = asked.by(&alice);
        let with_http1 = || exchange(&mut site.client(&asked).expect("she is let in"), CLAIMS).map(|_| ());
        let with_http2 = || site.over_http2(&asked, claims("https://example.org/")).map(|_| ());
        for (head, answer) in [passed_on(&upstream, with_http1), passed_on(&upstream, with_http2)] {
            answer.expect("an answer");
            assert!(head.contains("\r\nx-client: cn=alice\\, of \\c3\\a4 \\+ b\r\n"), "{head}");
            assert!(!head.contains("mallory") && !head.contains("trailer"), "{head}");
            assert!(
                head.contains("proto=https") && head.contains("\r\nx-forwarded-proto: https\r\n"),
                "{head}"
            );
        }
    }
}

#[test]
fn whoever_comes_without_tls_has_no_subject() {
    let upstream = Upstream::start();
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let https = "client_ca = \"~/ca\"\nclient_auth = \"optional\"\nclient_subject_header = \"X-Client\"";
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let site = Site::start_with("http.h2c = true", &[&server], https, &[("ca", &CA.pem())], &route);
    let (with_http1, plain) = passed_on(&upstream, || site.plain(CLAIMS));
    let (with_http2, answer) = passed_on(&upstream, || site.over_plain_http2(claims("http://example.org/")));
    for head in [with_http1, with_http2] {
        assert!(!head.contains("x-client") && !head.contains("x_client"), "{head}");
    }
    assert!(plain.starts_with("HTTP/1.1 200 "), "{plain}");
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_client_may_go_without_where_that_is_allowed_but_not_with_a_revoked_one() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let [alice, eve] = [5, 6].map(|serial: u64| {
        CA.issue("client", &[], |parameters| parameters.serial_number = Some(serial.into()))
    });
    let https = "client_ca = \"~/ca\"\nclient_auth = \"optional\"\nclient_crl = \"~/crl\"";
    // Past its time: it counts on.
    let files = [("ca", &*CA.pem()), ("crl", &CA.revoke(&[6], -1))];
    let site = Site::start(&[&server], https, &files, HELLO);
    let asked = Asked::of("example.org");
    for welcome in [asked, asked.by(&alice)] {
        let mut client = site.client(&welcome).expect("it is let in");
        assert!(exchange(&mut client, &get("example.org")).expect("an answer").ends_with("hello"));
    }
    let answer =
        site.client(&asked.by(&eve)).and_then(|mut client| exchange(&mut client, &get("example.org")));
    assert!(answer.is_err(), "{answer:?}");
}

#[test]
fn a_request_to_a_host_of_other_certificates_than_its_connections_is_misdirected() {
    let server = CA.issue("example.org", &["example.org", "*.example.org", "127.0.0.1"], |_| {});
    let alice = CA.issue("alice", &[], |_| {});
    let https = "client_ca = \"~/ca\"\nclient_hosts = [\"admin.example.org\", \"*.admin.example.org\"]";
    let site = Site::start(&[&server], https, &[("ca", &CA.pem())], HELLO);
    let with_http1 = |asked: Asked<'_>, host: &str| -> io::Result<u16> {
        let answer = exchange(&mut site.client(&asked)?, &get(host))?;
        Ok(answer[9..12].parse().expect("a status"))
    };
    let with_http2 = |asked: Asked<'_>, host: &str| -> io::Result<u16> {
        Ok(site.over_http2(&asked, get_http2(&format!("https://{host}/")))?.status().as_u16())
    };
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let [open, none, admin] = ["example.org", "127.0.0.1", "admin.example.org"]
            .map(|name| Asked { versions, ..Asked::of(name) });
        assert!(with_http1(admin, "admin.example.org").is_err(), "it needs a certificate");
        assert!(with_http2(admin, "admin.example.org").is_err(), "it needs a certificate");
        for (asked, host, expected) in [
            (open, "example.org", 200),
            (open, "www.example.org:8443", 200),
            (open, "ADMIN.example.org", 421),
            (open, "b.admin.example.org.", 421),
            (none, "admin.example.org", 421),
            (none, "127.0.0.1", 200),
            (admin.by(&alice), "admin.example.org", 200),
            (admin.by(&alice), "b.admin.example.org", 200),
            (admin.by(&alice), "example.org", 421),
            // It is not asked for one.
            (open.by(&alice), "admin.example.org", 421),
        ] {
            // One that names no host means that which the connection was opened to.
            let nameless = exchange(&mut site.client(&asked).unwrap(), "GET / HTTP/1.0\r\n\r\n").unwrap();
            assert!(nameless.starts_with("HTTP/1.0 200 "), "{}: {nameless}", asked.name);
            for found in [with_http1(asked, host), with_http2(asked, host)] {
                let found = found.unwrap_or_else(|error| panic!("{host}: {error}"));
                assert_eq!(found, expected, "{} {host}", asked.name);
            }
        }
    }
}

#[test]
fn no_ticket_stands_in_for_a_clients_certificate() {
    let server = CA.issue("example.org", &["example.org", "admin.example.org"], |_| {});
    let alice = CA.issue("alice", &[], |_| {});
    let start = |https: &str| Site::start(&[&server], https, &[("ca", &CA.pem())], HELLO);
    let of_some = start("client_ca = \"~/ca\"\nclient_hosts = [\"admin.example.org\"]");
    let of_all = start("client_ca = \"~/ca\"\nclient_auth = \"optional\"");
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let [open, admin] =
            ["example.org", "admin.example.org"].map(|name| Asked { versions, ..Asked::of(name) });
        for (site, asked, second) in [
            (&of_some, open, HandshakeKind::Resumed),
            (&of_some, admin.by(&alice), HandshakeKind::Full),
            (&of_all, open.by(&alice), HandshakeKind::Full),
        ] {
            let config = Arc::new(asked.config());
            for expected in [HandshakeKind::Full, second] {
                let mut client = asked.client_by(config.clone(), site.addresses()[1]).expect("it is let in");
                assert!(exchange(&mut client, &get(asked.name)).expect("an answer").ends_with("hello"));
                let kind = client.conn.handshake_kind();
                let kind =
                    kind.map(|kind| if kind == HandshakeKind::Resumed { kind } else { HandshakeKind::Full });
                assert_eq!(kind, Some(expected), "{}", asked.name);
            }
        }
    }
}

#[test]
fn a_host_that_requires_a_certificate_is_not_served_without_tls_but_to_a_ca() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let files = [("ca", &*CA.pem())];
    let start = |https: &str| {
        Site::start_with(
            "http.h2c = true",
            &[&server],
            &format!("client_ca = \"~/ca\"\n{https}"),
            &files,
            HELLO,
        )
    };
    let status = |site: &Site, host: &str, path: &str| -> u16 {
        let answer = site.plain(&get(host).replace(" / ", &format!(" {path} ")));
        answer[9..12].parse().expect("a status")
    };
    let site = start("client_hosts = [\"admin.example.org\", \"*.admin.example.org\"]");
    for (host, path, expected) in [
        ("example.org", "/", 200),
        ("admin.example.org", "/", 403),
        ("ADMIN.example.org.:80", "/", 403),
        ("b.%61dmin.example.org", "/", 403),
        ("example.org", "http://admin.example.org/", 403),
        ("admin.example.org", "/.well-known/acme-challenge/x", 200),
        // What another reading of the path takes for something else.
        ("admin.example.org", "/x/../.well-known/acme-challenge/x", 403),
        ("admin.example.org", "/.well-known/acme-challenge/../../x", 403),
        ("admin.example.org", "/.well-known/acme-challenge/..;/..;/x", 403),
        ("admin.example.org", "/.well-known/acme-challenge/x/y", 403),
        ("admin.example.org", "/.well-known/acme-challenge/", 403),
        ("admin.example.org", "/../x", 403),
    ] {
        assert_eq!(status(&site, host, path), expected, "{host} {path}");
    }
    let with_http2 =
        |host: &str| site.over_plain_http2(get_http2(&format!("http://{host}/"))).status().as_u16();
    assert_eq!([with_http2("example.org"), with_http2("admin.example.org")], [200, 403]);
    // All hosts, also where a request has none.
    let site = start("");
    assert_eq!(status(&site, "example.org", "/"), 403);
    assert!(site.plain("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 403 "));
    assert!(
        site.plain("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[9..].starts_with("403 ")
    );
    // Who may go without one over TLS may do so without TLS.
    assert_eq!(status(&start("client_auth = \"optional\""), "example.org", "/"), 200);
}

#[test]
fn a_reload_closes_the_connections_whose_clients_would_be_judged_otherwise_and_no_other() {
    let server = CA.issue("example.org", &["example.org", "admin.example.org"], |_| {});
    let alice = CA.issue("alice", &[], |parameters| parameters.serial_number = Some(5.into()));
    let files = [("ca", &*CA.pem()), ("crl", &CA.revoke(&[], 7))];
    let of_all =
        "client_ca = \"~/ca\"\nclient_crl = \"~/crl\"\nclient_auth = \"optional\"\nhsts = \"max-age=1\"\n";
    let of_some = format!("{of_all}client_hosts = [\"admin.example.org\"]");
    let [open, admin] = ["example.org", "admin.example.org"].map(Asked::of);
    let clients = [admin.by(&alice), admin, open];
    let revoke: fn(&Site) = |site| site.write("crl", &CA.revoke(&[5], 7));
    let require: fn(&Site) = |site| site.edit("\"optional\"", "\"required\"");
    let ask_others: fn(&Site) = |site| site.edit("[\"admin.", "[\"other.example.org\", \"admin.");
    let ask_all: fn(&Site) = |site| site.edit("client_hosts", "#");
    let nothing_of_clients: fn(&Site) = |site| site.edit("max-age=1", "max-age=2");
    for (https, what, change, go_on, are_let_in) in [
        (&*of_some, "the list", revoke, [false, false, true], [false, true, true]),
        (&of_some, "`client_auth`", require, [false, false, true], [true, false, true]),
        (&of_some, "`client_hosts`", ask_others, [false, false, true], [true; 3]),
        (&of_some, "`client_hosts`, which are all now", ask_all, [false; 3], [true; 3]),
        (&of_some, "nothing of clients", nothing_of_clients, [true; 3], [true; 3]),
        (of_all, "the list for all", revoke, [false; 3], [false, true, true]),
        (of_all, "nothing of clients for all", nothing_of_clients, [true; 3], [true; 3]),
    ] {
        let site = Site::start(&[&server], https, &files, HELLO);
        let come = |asked: &Asked<'_>| {
            let mut client = site.client(asked)?;
            say_hello(&mut client, asked.name).map(|()| client)
        };
        let open = clients.map(|asked| (asked, come(&asked).expect("it is let in")));
        change(&site);
        site.reload();
        let found = open.map(|(asked, mut client)| say_hello(&mut client, asked.name).is_ok());
        assert_eq!(found, go_on, "{what}: {}", site.daemon.stderr());
        assert_eq!(clients.map(|asked| come(&asked).is_ok()), are_let_in, "{what}");
    }
}
