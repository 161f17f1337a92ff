//! A handshake ends with a record layer, or with a reason and the alert that tells it to the client.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustls::server::WebPkiClientVerifier;

use super::*;
use crate::tls::session::Alpn;
use crate::tls::{Handshake, Reason, Tickets};

/// Gives the server these bytes and the end, and returns how the handshake ends, and what the client is sent.
async fn feed(acceptor: &Acceptor, bytes: &[u8]) -> (Result<Server, Failed>, Vec<u8>) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    theirs.write_all(bytes).await.expect("the pipe takes it");
    theirs.shutdown().await.expect("the pipe ends");
    let result = accept(acceptor, ours).await;
    let mut answer = vec![0; 1 << 16];
    let n = if result.is_ok() { 0 } else { theirs.read(&mut answer).await.expect("the pipe gives it") };
    answer.truncate(n);
    (result, answer)
}

fn acceptor(suite: u16) -> Acceptor {
    Acceptor::new(configs(suite).0)
}

/// The first bytes of a client.
fn hello(config: ClientConfig) -> Vec<u8> {
    Client::new(config, tokio::io::duplex(1).0).take()
}

/// A plain alert, as a record.
fn alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

/// How a handshake between these two fails, and what the client makes of it.
async fn failure(server: ServerConfig, client: ClientConfig) -> (Failed, Result<(), rustls::Error>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut client = Client::new(client, theirs);
    let acceptor = Acceptor::new(server);
    // rustls ends its half at an error without a word, so what it has to say is sent for it.
    let shake = async {
        let mut result = client.handshake().await;
        let bytes = client.take();
        let _ = client.io.write_all(&bytes).await;
        if result.is_ok() {
            // In TLS 1.3 a client is content before the server is.
            result = client.receive_all().await.map(drop);
        }
        result
    };
    let (server, result) = tokio::join!(accept(&acceptor, ours), shake);
    (server.expect_err("it fails"), result)
}

#[tokio::test]
async fn a_session_has_what_was_agreed_on() {
    let (mut server, mut client) = configs(0x1302);
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let (_client, server) = pair_by(server, client).await;
    let server = carry(server);
    let session = server.session();
    assert_eq!(session.version().name(), "TLSv1.3");
    assert_eq!(session.suite_name(), "TLS_AES_256_GCM_SHA384");
    assert_eq!(session.alpn(), Some(Alpn::Http2), "as the server prefers");
    assert!(session.is_http2() && !session.is_resumed());
    assert_eq!(session.server_name(), Some("localhost"));
    assert_eq!(session.client(), None);

    let (server, mut client) = configs(0xc02f);
    client.enable_sni = false;
    let (_client, server) = pair_by(server, client).await;
    let session = server.session();
    assert_eq!(session.version().name(), "TLSv1.2");
    assert_eq!(session.suite_name(), "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    assert_eq!((session.alpn(), session.server_name()), (None, None));
}

#[tokio::test]
async fn a_request_that_comes_with_the_finished_is_read_however_it_is_cut() {
    for suite in [0x1301, 0x1302, 0x1303] {
        let (server, client) = configs(suite);
        let acceptor = Acceptor::new(server);
        let mut cut = 0;
        loop {
            let (mut ours, theirs) = tokio::io::duplex(1 << 20);
            let mut client = Client::new(client.clone(), theirs);
            let mut handshake = acceptor.begin();
            let first = client.take();
            client.io.write_all(&first).await.expect("the pipe takes it");
            assert!(poll(&mut handshake, &mut ours).is_none(), "it waits for the client");
            assert!(client.receive().await.is_ok(), "the server's flight");
            let last = client.seal(b"GET / HTTP/1.1\r\n\r\n");
            if cut > last.len() {
                break;
            }
            client.io.write_all(&last[..cut]).await.expect("the pipe takes it");
            let early = poll(&mut handshake, &mut ours);
            client.io.write_all(&last[cut..]).await.expect("the pipe takes it");
            let records = match early.or_else(|| poll(&mut handshake, &mut ours)) {
                Some(records) => records.expect("the server is content"),
                None => panic!("{suite:x} cut at {cut}: it waits"),
            };
            let mut server = carry(TlsStream::new(ours, records));
            let mut got = [0; 18];
            server.read_exact(&mut got).await.expect("the request");
            assert_eq!(&got, b"GET / HTTP/1.1\r\n\r\n", "{suite:x} cut at {cut}");
            write(&mut server, b"answer").await;
            assert_eq!(client.receive().await.expect("the right keys"), b"answer");
            cut += 1;
        }
        assert!(cut > 80, "the Finished and a request");
    }
}

fn poll(handshake: &mut Handshake, io: &mut DuplexStream) -> Option<Result<Records, Failed>> {
    match handshake.poll(&mut Context::from_waker(Waker::noop()), io) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_hello_may_come_in_records_of_any_size_and_in_any_pieces() {
    for suite in [0x1302, 0xc02b] {
        for size in [1, 7, 100] {
            let (server, mut client) = configs(suite);
            // A short one, for it may be of 256 records at most.
            let mut provider = CryptoProvider::clone(client.crypto_provider());
            provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
            client = ClientConfig::builder_with_provider(provider.into())
                .with_protocol_versions(versions(suite))
                .expect("its own version")
                .with_root_certificates(roots(&ECDSA))
                .with_no_client_auth();
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let mut client = Client::new(client, theirs);
            let whole = client.take();
            let mut records = Vec::new();
            for piece in whole[5..].chunks(size) {
                records.extend([22, 3, 1, 0]);
                records.push(u8::try_from(piece.len()).expect("a small piece"));
                records.extend_from_slice(piece);
            }
            let acceptor = Acceptor::new(server);
            let shake = async {
                for byte in records.chunks(size) {
                    client.io.write_all(byte).await.expect("the pipe takes it");
                    tokio::task::yield_now().await;
                }
                client.handshake().await
            };
            let (server, shaken) = tokio::join!(accept(&acceptor, ours), shake);
            shaken.expect("the client is content");
            let mut server = server.expect("the server is content");
            client.send(b"ask").await;
            server.read_exact(&mut [0; 3]).await.expect("it is read");
        }
    }
}

#[tokio::test]
async fn a_hello_without_end_is_refused_and_costs_little() {
    // In records of a byte, and in as many as there may be and as long as they need be for all of it.
    for length in [1, 260] {
        // Its header announces 64 KiB, which is as much as rustls takes.
        let mut bytes = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
        while bytes.len() < 1 << 19 {
            bytes.extend([22, 3, 1]);
            bytes.extend(u16::to_be_bytes(length));
            bytes.resize(bytes.len() + usize::from(length), 0);
        }
        let acceptor = acceptor(0x1302);
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&bytes).await.expect("the pipe takes it");
        let mut handshake = acceptor.begin();
        let failed = poll(&mut handshake, &mut ours).expect("it ends").err().expect("it fails");
        assert_eq!(failed.reason, Reason::Protocol);
        assert!(handshake.held() <= 116 << 10, "{} bytes", handshake.held());
    }
}

/// A server that asks the clients of some names for a certificate.
fn choosing(suite: u16, is_for: impl Fn(Option<&str>) -> bool + Send + Sync + 'static) -> Acceptor {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&ECDSA).into(), provider(suite));
    let asking = server(suite)
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![ECDSA.certificate.clone()], ECDSA.key())
        .expect("key and certificate match");
    Acceptor::new(configs(suite).0).with_policy(7, Some(asking), is_for)
}

/// A client whose hello is of 1,500 bytes at most, and of 256 more for each protocol that it offers.
fn client_of(suite: u16, protocols: usize, has_certificate: bool) -> ClientConfig {
    let client = client_that_trusts(suite, &ECDSA);
    let mut client = if has_certificate {
        client
            .with_client_auth_cert(vec![ECDSA.certificate.clone()], ECDSA.key())
            .expect("key and certificate match")
    } else {
        client.with_no_client_auth()
    };
    client.alpn_protocols = vec![vec![b'x'; 255]; protocols];
    client
}

/// The same messages in records of this size.
fn in_records_of(size: usize, flight: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut messages) = (flight, Vec::new());
    while let [22, 3, _, high, low, behind @ ..] = rest {
        let (body, next) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        messages.extend_from_slice(body);
        rest = next;
    }
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).expect("a record's length").to_be_bytes();
        [&[22, 3, 1][..], &length, piece].concat()
    };
    messages.chunks(size).map(record).collect()
}

/// How a handshake ends whose hello comes in records of this size, at once or each after a pause.
async fn end_of(
    acceptor: &Acceptor,
    client: ClientConfig,
    size: usize,
    pauses: bool,
) -> Result<Server, Failed> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut client = Client::new(client, theirs);
    let records = in_records_of(size, &client.take());
    let shake = async {
        let parts = if pauses { records } else { vec![records.concat()] };
        for part in parts {
            if client.io.write_all(&part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = client.handshake().await;
        client
    };
    // How it ends, the server tells; the client stays to its end.
    let (ended, _client) = tokio::join!(accept(acceptor, ours), shake);
    ended
}

#[tokio::test]
async fn a_client_is_asked_for_its_certificate_however_its_hello_comes() {
    for suite in [0x1302, 0xc02b] {
        let asking = choosing(suite, |name| name == Some("localhost"));
        let others = choosing(suite, |name| name.is_none());
        // Of no protocols, of more than rustls keeps of anything but a part of a message, and of the most that it takes.
        for (protocols, sizes) in
            [(0, &[7, 100, 400, 16384][..]), (70, &[300, 9000, 16384]), (200, &[300, 16384])]
        {
            for (&size, pauses) in sizes.iter().flat_map(|size| [(size, false), (size, true)]) {
                let case = format!("{suite:x}: {protocols} protocols, records of {size} bytes, {pauses}");
                let failed = end_of(&asking, client_of(suite, protocols, false), size, pauses).await;
                let failed = failed.err().unwrap_or_else(|| panic!("{case}: it is let in"));
                assert_eq!(failed.reason, Reason::ClientCertificate, "{case}: {}", failed.error);

                let server = end_of(&asking, client_of(suite, protocols, true), size, pauses).await;
                let server = server.unwrap_or_else(|failed| panic!("{case}: {}", failed.error));
                assert!(server.session().client().is_some() && server.session().is_judged(), "{case}");

                let server = end_of(&others, client_of(suite, protocols, false), size, pauses).await;
                let server = server.unwrap_or_else(|failed| panic!("{case}: {}", failed.error));
                assert!(!server.session().is_judged(), "{case}");
                assert_eq!(server.session().server_name(), Some("localhost"), "{case}");
            }
        }
    }
    // As a message it is of a length that rustls takes, and as records it is more than it keeps.
    let asking = choosing(0x1302, |name| name == Some("localhost"));
    let failed = end_of(&asking, client_of(0x1302, 248, false), 256, false).await.err();
    let failed = failed.expect("it is not let in");
    assert_eq!((failed.reason, &*failed.error), (Reason::Protocol, "a message that is too long"));
}

#[tokio::test]
async fn no_client_is_let_in_by_a_config_that_is_not_that_of_its_name() {
    for (suite, first) in [(0x1302, false), (0x1302, true), (0xc02b, false), (0xc02b, true)] {
        // By what is read of its name when the config is chosen, it is another one than afterwards.
        let asked = Arc::new(AtomicUsize::new(0));
        let acceptor = choosing(suite, move |_| (asked.fetch_add(1, Relaxed) == 0) == first);
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut client = Client::new(client_of(suite, 0, false), theirs);
        let (ended, shaken) = tokio::join!(accept(&acceptor, ours), client.handshake());
        let failed = ended.err().unwrap_or_else(|| panic!("{suite:x} {first}: it is let in"));
        assert_eq!(failed.reason, Reason::Protocol, "{suite:x} {first}: {}", failed.error);
        assert!(
            matches!(shaken, Err(rustls::Error::AlertReceived(a)) if u8::from(a) == 49),
            "{suite:x} {first}: access is denied: {shaken:?}"
        );
    }
}

#[tokio::test]
async fn what_is_no_hello_ends_alike_whether_a_certificate_may_be_asked_for_or_not() {
    let suite = 0x1302;
    let plain = [&b"GET / HTTP/1.1\r\nCookie: "[..], &b"x".repeat(30000), b"\r\n\r\n"].concat();
    let mut invalid_name = hello(configs(suite).1);
    let at = invalid_name.windows(9).position(|bytes| bytes == b"localhost").expect("the name");
    invalid_name[at] = 0;
    for bytes in [
        &plain[..],
        b"\0\x01\x02\x03 rubbish",
        &[21, 3, 3, 0, 2, 2, 40],
        &[20, 3, 3, 0, 1, 1],
        &[22, 3, 1, 0, 4, 20, 0, 0, 0],
        &[22, 3, 1, 0xff, 0xff],
        &invalid_name,
        &[hello(configs(suite).1), vec![22, 3, 1, 0, 0]].concat()[..100],
        b"",
    ] {
        let (one, said) = feed(&acceptor(suite), bytes).await;
        let (other, also_said) = feed(&choosing(suite, |name| name.is_none()), bytes).await;
        let [one, other] = [one, other].map(|end| end.expect_err("it fails"));
        assert_eq!((one.reason, one.error, said), (other.reason, other.error, also_said), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_hello_in_more_than_256_records_is_refused_also_if_they_come_at_once() {
    for acceptor in [acceptor(0x1302), choosing(0x1302, |name| name.is_some())] {
        let whole = hello(configs(0x1302).1);
        let size = (whole.len() - 5) / 300;
        for pauses in [false, true] {
            let failed = end_of(&acceptor, configs(0x1302).1, size, pauses).await;
            assert_eq!(failed.expect_err("it is refused").reason, Reason::Protocol);
        }
        // Of 40,000 bytes that are announced, and 18 KB of records of one byte, it looks at 256 and waits for none.
        let mut bytes = vec![22, 3, 1, 0, 4, 1, 0, 0x9c, 0x40];
        bytes.extend([22, 3, 1, 0, 1, 0].repeat(3000));
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&bytes).await.expect("the pipe takes it");
        let failed = poll(&mut acceptor.begin(), &mut ours).expect("it ends").err().expect("it fails");
        assert_eq!(failed.reason, Reason::Protocol);
    }
}

#[tokio::test]
async fn each_failure_has_its_reason_and_its_alert() {
    let suite = 0x1302;
    let (ends, answer) = feed(&acceptor(suite), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::PlainHttp);
    assert_eq!(answer, b"");
    let (ends, answer) = feed(&acceptor(suite), b"\0\x01\x02\x03 rubbish").await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::NotTls);
    assert_eq!(answer, alert(50));

    let (ends, answer) = feed(&acceptor(suite), b"").await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::ClientGone);
    assert_eq!(answer, b"");
    let half = &hello(configs(suite).1)[..100];
    let (ends, _) = feed(&acceptor(suite), half).await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::ClientGone);

    let (ends, answer) = feed(&acceptor(suite), &[22, 3, 1, 0, 4, 20, 0, 0, 0]).await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::Protocol);
    assert_eq!(answer, alert(10));
    let (ends, answer) = feed(&acceptor(suite), &[22, 3, 1, 0xff, 0xff]).await;
    assert_eq!(ends.expect_err("it fails").reason, Reason::Protocol);
    assert_eq!(answer.len(), 7, "an alert");

    let (failed, client) = failure(configs(0x1302).0, configs(0xc02b).1).await;
    assert_eq!(failed.reason, Reason::UnsupportedVersion);
    assert!(matches!(client, Err(rustls::Error::AlertReceived(a)) if u8::from(a) == 70), "{client:?}");

    let (failed, client) = failure(configs(0x1302).0, configs(0x1301).1).await;
    assert_eq!(failed.reason, Reason::NoSharedCipher);
    assert!(matches!(client, Err(rustls::Error::AlertReceived(a)) if u8::from(a) == 40), "{client:?}");

    let (mut server, mut client) = configs(suite);
    server.alpn_protocols = vec![b"h2".to_vec()];
    client.alpn_protocols = vec![b"imap".to_vec()];
    let (failed, client) = failure(server, client).await;
    assert_eq!(failed.reason, Reason::NoApplicationProtocol);
    assert!(matches!(client, Err(rustls::Error::AlertReceived(a)) if u8::from(a) == 120), "{client:?}");

    // It trusts another one than ours.
    let client = client_that_trusts(0xc02f, &ECDSA).with_no_client_auth();
    let (failed, client) = failure(configs(0xc02f).0, client).await;
    assert_eq!(failed.reason, Reason::ClientAlert);
    assert!(matches!(client, Err(rustls::Error::InvalidCertificate(_))), "{client:?}");
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_asked_for_is_told_so() {
    for suite in [0x1302, 0xc02b] {
        let server = || {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(&ECDSA).into(), provider(suite));
            server(suite)
                .with_client_cert_verifier(verifier.build().expect("a verifier"))
                .with_single_cert(vec![ECDSA.certificate.clone()], ECDSA.key())
                .expect("key and certificate match")
        };
        let (failed, client) = failure(server(), configs(suite).1).await;
        assert_eq!(failed.reason, Reason::ClientCertificate, "{suite:x}: {}", failed.error);
        assert!(
            matches!(client, Err(rustls::Error::AlertReceived(a)) if u8::from(a) == 116),
            "{suite:x}: {client:?}"
        );

        let client = client_that_trusts(suite, &ECDSA)
            .with_client_auth_cert(vec![RSA.certificate.clone()], RSA.key())
            .expect("key and certificate match");
        let (failed, client) = failure(server(), client).await;
        assert_eq!(failed.reason, Reason::ClientCertificate, "{suite:x}: {}", failed.error);
        assert!(matches!(client, Err(rustls::Error::AlertReceived(_))), "{suite:x}: {client:?}");
    }
}

#[tokio::test]
async fn a_client_resumes_with_the_keys_of_another_process() {
    for suite in [0x1301, 0x1302, 0x1303, 0xc02b] {
        let (config, client) = configs(suite);
        let with = |tickets: Tickets| {
            let mut config = config.clone();
            let tickets = Arc::new(tickets);
            config.ticketer = Arc::clone(&tickets) as _;
            (config, tickets)
        };
        let (server, tickets) = with(Tickets::new());
        let (mut first, mut server) = pair_by(server, client.clone()).await;
        assert!(!server.session().is_resumed());
        write(&mut server, b"and its tickets").await;
        first.receive().await.expect("the right keys");

        let keys = postcard::to_allocvec(&tickets.keys()).expect("they are written");
        let keys = postcard::from_bytes(&keys).expect("they are read");
        let (server, _) = with({
            let tickets = Tickets::new();
            tickets.inherit(keys);
            tickets
        });
        let (mut again, mut server) = pair_by(server, client.clone()).await;
        assert!(server.session().is_resumed(), "{suite:x}");
        assert_eq!(server.session().server_name(), Some("localhost"), "{suite:x}");
        again.send(b"ask").await;
        server = carry(server);
        server.read_exact(&mut [0; 3]).await.expect("it is read");
        write(&mut server, b"answer").await;
        assert_eq!(again.receive().await.expect("the right keys"), b"answer");

        let (server, _) = with(Tickets::new());
        let (_client, server) = pair_by(server, client.clone()).await;
        assert!(!server.session().is_resumed(), "{suite:x}: keys of its own open no ticket of another");
    }
}

#[tokio::test]
async fn no_bytes_make_a_handshake_panic_or_wait_for_what_is_there() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (config, client) = configs(0x1302);
    let acceptor = Acceptor::new(config);
    for _ in 0..1000 {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let mut client = Client::new(client.clone(), theirs);
        let mut handshake = acceptor.begin();
        let mut flight = client.take();
        let is_second = random.bool();
        if is_second {
            client.io.write_all(&flight).await.expect("the pipe takes it");
            assert!(poll(&mut handshake, &mut ours).is_none(), "it waits for the client");
            client.receive().await.expect("the server's flight");
            flight = client.seal(b"GET / HTTP/1.1\r\n\r\n");
        }
        for _ in 0..random.usize(0..4) {
            let at = random.usize(..flight.len());
            match random.u8(0..4) {
                0 => flight[at] = random.u8(..),
                1 => flight.insert(at, random.u8(..)),
                2 => drop(flight.remove(at)),
                // The same records once more.
                _ => flight.extend_from_within(..),
            }
        }
        client.io.write_all(&flight).await.expect("the pipe takes it");
        let early = poll(&mut handshake, &mut ours);
        client.io.shutdown().await.expect("the pipe ends");
        let end = early.or_else(|| poll(&mut handshake, &mut ours)).expect("it ends with the client");
        if let Err(failed) = end {
            assert!(!failed.error.is_empty() && failed.reason != Reason::TimedOut);
        }
    }
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::name).into();
    assert_eq!(names.len(), Reason::ALL.len());
}

#[tokio::test]
async fn a_long_hello_leaves_nothing_behind() {
    let footprint = async |protocols: usize| {
        let (server, mut client) = configs(0x1301);
        client.alpn_protocols = vec![vec![b'x'; 250]; protocols];
        pair_by(server, client).await.1.footprint()
    };
    assert_eq!(footprint(200).await, footprint(1).await);
}
