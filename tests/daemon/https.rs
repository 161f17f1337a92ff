//! `[https]`: which certificate is shown, who is let in, and where a request goes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use serde_json::{Value, json};
use steadfast_harness::certificates::{Certificate, DAY, is_ca, lasts};
use steadfast_harness::{Daemon, Signal, Upstream, wait_until};
use tempfile::TempDir;

use crate::process::{BINARY, connect, serving};

static CA: LazyLock<Certificate> = LazyLock::new(|| Certificate::of_itself("CA", &[], is_ca));

/// A daemon with `[https]`, and the folder of its certificates.
struct Site {
    daemon: Daemon,
    files: TempDir,
}

impl Site {
    /// With these certificates, these further lines in `[https]`, of which `~/` is the folder, these other files in it, and
    /// what stands behind the section.
    fn start(certificates: &[&Certificate], https: &str, files: &[(&str, &str)], rest: &str) -> Self {
        Self::start_with("", certificates, https, files, rest)
    }

    /// The same, with these lines before all sections.
    fn start_with(
        first: &str,
        certificates: &[&Certificate],
        https: &str,
        files: &[(&str, &str)],
        rest: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("it is written");
        };
        let mut list = Vec::new();
        for (index, certificate) in certificates.iter().enumerate() {
            write(&format!("{index}.pem"), &(certificate.pem() + &CA.pem()));
            write(&format!("{index}.key"), &certificate.key());
            list.push(format!("{{ chain = \"~/{index}.pem\", key = \"~/{index}.key\" }}"));
        }
        for (name, text) in files {
            write(name, text);
        }
        let config = format!(
            "http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.1:0\"]\n{first}\n[https]\nlisten = [\"127.0.0.1:0\"]\n\
             certificates = [{}]\n{https}\n{rest}",
            list.join(", ")
        );
        let daemon = Daemon::spawn(BINARY, &config.replace("~/", &format!("{}/", folder.path().display())));
        serving(&daemon);
        Self { daemon, files: folder }
    }

    /// Puts other files in the place of the first certificate's, and asks for a reload.
    fn renew(&self, chain: &Certificate, key: &Certificate) {
        let write = |name, text| std::fs::write(self.files.path().join(name), text).expect("it is written");
        write("0.pem", chain.pem() + &CA.pem());
        write("0.key", key.key());
        self.daemon.signal(Signal::HUP);
    }

    /// The addresses without TLS, and with it.
    fn addresses(&self) -> [SocketAddr; 2] {
        let addresses = self.daemon.addresses();
        let of_http: Vec<_> = addresses
            .iter()
            .filter(|listening| listening.child == "http")
            .map(|listening| listening.address.parse().expect("a TCP address"))
            // A later worker says the same again.
            .take(2)
            .collect();
        of_http.try_into().expect("two of them")
    }

    fn plain(&self, request: &str) -> String {
        let mut client = TcpStream::connect(self.addresses()[0]).expect("it listens");
        client.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it is answered");
        answer
    }

    /// The status of the answer to a stream of HTTP/2 without TLS.
    fn stream(&self, host: &str) -> u16 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async {
            let socket = tokio::net::TcpStream::connect(self.addresses()[0]).await.expect("it listens");
            let (mut requests, connection) = h2::client::handshake(socket).await.expect("it speaks HTTP/2");
            let request = axum::http::Request::get(format!("http://{host}/")).body(()).expect("a request");
            let (answer, _) = requests.send_request(request, true).expect("it is sent");
            tokio::select! {
                answer = answer => answer.expect("it is answered").status().as_u16(),
                ended = connection => panic!("{ended:?}"),
            }
        })
    }

    fn client(&self, asked: &Asked<'_>) -> io::Result<Secured> {
        asked.client(self.addresses()[1])
    }
}

type Secured = StreamOwned<ClientConnection, TcpStream>;

static BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// How a client asks.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    versions: &'a [&'static SupportedProtocolVersion],
    protocols: &'a [&'a str],
    certificate: Option<&'a Certificate>,
    /// It knows no other signatures than RSA's.
    is_of_rsa: bool,
}

impl<'a> Asked<'a> {
    fn of(name: &'a str) -> Self {
        Self { name, versions: BOTH, protocols: &[], certificate: None, is_of_rsa: false }
    }

    fn by(self, certificate: &'a Certificate) -> Self {
        Self { certificate: Some(certificate), ..self }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(CA.der())).expect("a root");
        let mut provider = aws_lc_rs::default_provider();
        if self.is_of_rsa {
            provider
                .cipher_suites
                .retain(|suite| suite.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions)
            .expect("it has suites of both")
            .with_root_certificates(roots);
        let mut config = match self.certificate {
            None => config.with_no_client_auth(),
            Some(certificate) => {
                let key = PrivateKeyDer::from_pem_slice(certificate.key().as_bytes()).expect("a key");
                config.with_client_auth_cert(vec![certificate.der().into()], key).expect("they match")
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A connection whose handshake has ended. In TLS 1.3 a client does not know yet if its certificate was taken.
    fn client(&self, address: SocketAddr) -> io::Result<Secured> {
        self.client_by(self.config().into(), address)
    }

    /// The same, of a client that may have been here before.
    fn client_by(&self, config: Arc<ClientConfig>, address: SocketAddr) -> io::Result<Secured> {
        let name = ServerName::try_from(self.name.to_owned()).expect("a name");
        let connection = ClientConnection::new(config, name).expect("a client");
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

/// The answer to a request after which the connection closes.
fn exchange(stream: &mut Secured, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // After the close_notify the socket may be reset.
    match stream.read_to_end(&mut answer) {
        Ok(_) => Ok(String::from_utf8(answer).expect("text")),
        Err(error) => Err(error),
    }
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn shown(stream: &Secured) -> Vec<u8> {
    stream.conn.peer_certificates().expect("it has shown one")[0].to_vec()
}

const HELLO: &str = "[[route]]\npath = \"/*\"\nrespond = \"hello\"\n";

// ---- the server's certificates -----------------------------------------------------------------------------------

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
        CA.issue(name, &[name], |certificate| {
            lasts(certificate, -1, days);
            // The hours that are left are the same whenever in the next half an hour they are asked for.
            certificate.not_after -= Duration::from_secs(30 * 60);
        })
    };
    let certificates = [issue("example.org", 43), issue("example.net", 1)];
    let [long, short] = &certificates;
    let site = Site::start(&[long, short], "", &[], HELLO);
    let asked = Asked { protocols: &["http/1.1"], ..Asked::of("example.org") };
    for asked in [asked, asked, Asked { versions: &[&TLS12], ..asked }] {
        let mut client = site.client(&asked).expect("it is served");
        exchange(&mut client, &get("example.org")).expect("an answer");
    }
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
    let short = "3 handshakes: 2 TLSv1.3, 1 TLSv1.2; 0 resumed; 1 failed: 1 no_application_protocol";
    for (what, text) in [("steadfast status", &shown), ("the page", &page)] {
        for said in [short, &files[0], "expires in 42 d 23 h", &files[1], "expires in 23 h"] {
            assert!(text.contains(said), "{what} does not have {said}:\n{text}");
        }
    }
    let status: Value = serde_json::from_str(&told("/status")).expect("JSON");
    let tls = &status["tls"];
    let handshakes = |version: &str| {
        let all = tls["handshakes"].as_array().expect("a list").iter();
        all.filter(|one| one["version"] == version).filter_map(|one| one["number"].as_u64()).sum::<u64>()
    };
    assert_eq!([handshakes("TLSv1.3"), handshakes("TLSv1.2")], [2, 1], "{tls}");
    assert_eq!(tls["failures"], json!([{ "name": "no_application_protocol", "number": 1 }]));
    for (index, (name, days)) in [("example.org", 43.0), ("example.net", 1.0)].into_iter().enumerate() {
        let certificate = &tls["certificates"][index];
        assert_eq!((&certificate["file"], &certificate["names"]), (&json!(files[index]), &json!([name])));
        let left = certificate["expires_in"].as_f64().expect("a number") / DAY.as_secs_f64();
        assert!((days - 0.1..=days).contains(&left), "{certificate}");
    }
}

// ---- the clients' certificates -----------------------------------------------------------------------------------

/// A request whose own fields are no one's subject.
const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: example.org\r\nX-Client: CN=mallory\r\nX_Client: CN=mallory\r\n\
                      Trailer: x-client\r\nConnection: close\r\n\r\n";

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
        }
        let mut client = site.client(&asked.by(&alice)).expect("she is let in");
        client.write_all(CLAIMS.as_bytes()).expect("it is sent");
        let exchange = upstream.next_request();
        let head = exchange.head.to_lowercase();
        assert!(head.contains("\r\nx-client: cn=alice\\, of \\c3\\a4 \\+ b\r\n"), "{head}");
        assert!(!head.contains("mallory") && !head.contains("trailer"), "{head}");
        assert!(head.contains("proto=https") && head.contains("\r\nx-forwarded-proto: https\r\n"), "{head}");
        exchange.answer(200, "ok");
    }
}

#[test]
fn whoever_comes_without_tls_has_no_subject() {
    let upstream = Upstream::start();
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let https = "client_ca = \"~/ca\"\nclient_auth = \"optional\"\nclient_subject_header = \"X-Client\"";
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let site = Site::start(&[&server], https, &[("ca", &CA.pem())], &route);
    let plain = std::thread::scope(|scope| {
        let asked = scope.spawn(|| site.plain(CLAIMS));
        let exchange = upstream.next_request();
        assert!(!exchange.head.to_lowercase().contains("x-client"), "{}", exchange.head);
        exchange.answer(200, "ok");
        asked.join().expect("an answer")
    });
    assert!(plain.starts_with("HTTP/1.1 200 "), "{plain}");
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
    let status = |asked: Asked<'_>, host: &str| -> io::Result<u16> {
        let answer = exchange(&mut site.client(&asked)?, &get(host))?;
        Ok(answer[9..12].parse().expect("a status"))
    };
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let [open, none, admin] = ["example.org", "127.0.0.1", "admin.example.org"]
            .map(|name| Asked { versions, ..Asked::of(name) });
        assert!(status(admin, "admin.example.org").is_err(), "it needs a certificate");
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
            let found = status(asked, host).unwrap_or_else(|error| panic!("{host}: {error}"));
            assert_eq!(found, expected, "{} {host}", asked.name);
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
        ("admin.example.org", "/../x", 403),
    ] {
        assert_eq!(status(&site, host, path), expected, "{host} {path}");
    }
    assert_eq!([site.stream("example.org"), site.stream("admin.example.org")], [200, 403]);
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
fn the_answer_to_a_request_over_tls_and_no_other_says_that_it_is_to_be_asked_over_tls() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let upstream = Upstream::start();
    let proxy = format!("[[route]]\npath = \"/proxied\"\nproxy = \"http://{}\"\n", upstream.address());
    let site = Site::start(&[&server], "hsts = \"max-age=31536000\"", &[], &format!("{HELLO}{proxy}"));
    let said = |answer: &str| {
        let lines = answer.lines().filter_map(|line| line.strip_prefix("strict-transport-security: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let ask = |request: &str| {
        let mut client = site.client(&Asked::of("example.org")).expect("a connection");
        exchange(&mut client, request).expect("an answer")
    };
    let proxied = get("a").replace(" / ", " /proxied ");
    for request in [&get("a"), &get("a b"), "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"] {
        let answer = ask(request);
        assert_eq!(said(&answer), ["max-age=31536000"], "{request} {answer}");
        assert!(said(&site.plain(request)).is_empty(), "{request}");
    }
    // In the place of the upstream's own.
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&proxied));
        let mut exchange = upstream.next_request();
        exchange.send("HTTP/1.1 204 No Content\r\nStrict-Transport-Security: max-age=0\r\n\r\n");
        asked.join().expect("an answer")
    });
    assert_eq!(said(&answer), ["max-age=31536000"], "{answer}");
}

// ---- without TLS -------------------------------------------------------------------------------------------------

#[test]
fn a_request_without_tls_is_sent_on_to_tls_but_for_those_of_a_ca() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let site = Site::start_with("http.redirect_to_https = true", &[&server], "", &[], HELLO);
    let port = site.addresses()[1].port();
    let location = |target: &str, host: &str| {
        let answer =
            site.plain(&format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        let line = answer.lines().find_map(|line| line.strip_prefix("location: ")).expect("a location");
        line.to_owned()
    };
    assert_eq!(
        location("/a/../b?c=%20d", "Example.org:80"),
        format!("https://Example.org:{port}/a/../b?c=%20d")
    );
    assert_eq!(location("/", "[::1]:80"), format!("https://[::1]:{port}/"));
    assert_eq!(location("http://me@other.org:81/x", "example.org"), format!("https://other.org:{port}/x"));
    assert_eq!(
        location("/.well-known/acme-challenge/../../x", "a"),
        format!("https://a:{port}/.well-known/acme-challenge/../../x")
    );
    assert!(site.plain(&get("a").replace(" / ", " /.well-known/acme-challenge/x ")).ends_with("hello"));
    assert!(site.plain("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 400 "));
    let mut client = site.client(&Asked::of("example.org")).expect("a connection");
    assert!(exchange(&mut client, &get("example.org")).expect("an answer").ends_with("hello"));
}
