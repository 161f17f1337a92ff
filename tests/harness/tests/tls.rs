//! The clients' side of TLS, against a server that is known to be right.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use steadfast_harness::certificates::{Certificate, is_ca};
use steadfast_harness::{Client, Failure, Load, Trust};

fn new_authority() -> Certificate {
    Certificate::of_itself("an authority", &[], is_ca)
}

/// A server that answers each request of a connection until one asks for "/end", and then closes as TLS does, or not.
fn serve(identity: &Certificate, goodbye: bool) -> SocketAddr {
    let chain = vec![CertificateDer::from_pem_slice(identity.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(identity.key().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            thread::spawn(move || {
                let mut request = String::new();
                while !request.starts_with("GET /end ") {
                    request.clear();
                    while !request.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut request).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                    stream.get_mut().write_all(answer).unwrap();
                }
                if goodbye {
                    stream.get_mut().conn.send_close_notify();
                    stream.get_mut().flush().unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn a_client_keeps_its_connection_over_new_keys_and_sees_either_end() {
    let authority = new_authority();
    let identity = authority.issue("a server", &["server.test", "127.0.0.1"], |_| {});
    for goodbye in [true, false] {
        let address = serve(&identity, goodbye);
        for (trust, version) in [
            (Trust::new(&authority, "server.test"), "TLSv1.3"),
            (Trust::new(&authority, "127.0.0.1"), "TLSv1.3"),
            (Trust::of_tls12(&authority, "server.test"), "TLSv1.2"),
        ] {
            let mut client = Client::connect_tls(address, &trust).unwrap();
            let agreed = client.agreed();
            assert_eq!((agreed.version, agreed.resumed), (version, false));
            assert!(agreed.certificate == identity.der());
            for _ in 0..3 {
                assert_eq!(client.get("/").unwrap().text(), "hello");
                assert_eq!(client.renew_keys().is_ok(), version == "TLSv1.3");
                assert!(client.is_open());
            }
            assert_eq!(client.get("/end").unwrap().status, 200);
            client.wait_for_close().unwrap();
            assert!(!client.is_open());
        }
    }
}

#[test]
fn a_client_does_not_take_another_server_for_the_one_that_it_trusts() {
    let authority = new_authority();
    let address = serve(&authority.issue("a server", &["server.test"], |_| {}), true);
    for trust in [Trust::new(&authority, "other.test"), Trust::new(&new_authority(), "server.test")] {
        assert!(matches!(Client::connect_tls(address, &trust), Err(Failure::Io(_))));
    }
}

#[test]
fn load_over_tls_accounts_for_every_answer_and_every_end() {
    let authority = new_authority();
    let address = serve(&authority.issue("a server", &["server.test"], |_| {}), true);
    let trust = Trust::new(&authority, "server.test");
    let load = Load::over_tls(4, address, &trust, "/");
    load.advance(100);
    let account = load.finish();
    assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{account}");
    let load = Load::over_tls(4, address, &trust, "/end");
    load.advance(100);
    let account = load.finish();
    assert!(account.dropped > 50, "{account}");
}
