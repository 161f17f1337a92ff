//! The same over TLS: to its client a connection is one, wherever it changes hands.

mod notes;
mod tunnels;

use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use proptest::prelude::*;
use rustix::net::SendFlags;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;

use super::{Cut, PATIENCE, REQUEST, Side, answer, answers, between, exchange, logged, request, send};
use crate::handover::mailbox::Mailbox;
use crate::server::State;
use crate::server::limits::Limits;
use crate::tls::{Acceptor, Reason};

/// A certificate for `localhost`, and the key that has signed it.
static IDENTITY: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    (certificate.self_signed(&key).expect("it signs itself").der().clone(), key.serialize_der())
});

pub(super) fn acceptor() -> Acceptor {
    let (certificate, key) = &*IDENTITY;
    let config = ServerConfig::builder().with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(key.clone()).into();
    Acceptor::new(config.with_single_cert(vec![certificate.clone()], key).expect("they match"))
}

/// A client whose records can be sent in pieces.
pub(super) struct Client {
    pub(super) tls: ClientConnection,
    pub(super) socket: UnixStream,
}

impl Client {
    /// A client of this version, and the server's end of its connection.
    pub(super) fn new(version: &'static rustls::SupportedProtocolVersion) -> (Self, UnixStream) {
        let mut roots = RootCertStore::empty();
        roots.add(IDENTITY.0.clone()).expect("a root");
        let config = ClientConfig::builder_with_protocol_versions(&[version]);
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let tls = ClientConnection::new(Arc::new(config), name).expect("a client");
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        (Self { tls, socket }, theirs)
    }

    /// The records of some plaintext; none of these have been sent.
    pub(super) fn sealed(&mut self, plain: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(plain).expect("it is short");
        self.pending()
    }

    pub(super) fn pending(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).expect("a Vec takes all");
        }
        records
    }

    pub(super) async fn send(&mut self, plain: &[u8]) {
        let records = self.sealed(plain);
        self.socket.write_all(&records).await.expect("the server reads");
    }

    pub(super) async fn shake_hands(&mut self) {
        let mut bytes = [0; 4096];
        while self.tls.is_handshaking() {
            let records = self.pending();
            self.socket.write_all(&records).await.expect("the server reads");
            if self.tls.is_handshaking() {
                let n = self.socket.read(&mut bytes).await.expect("the server answers");
                assert!(n > 0, "the server has closed");
                self.take(&bytes[..n]);
            }
        }
        let records = self.pending();
        self.socket.write_all(&records).await.expect("the server reads");
    }

    fn take(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            self.tls.read_tls(&mut records).expect("a slice gives all");
            self.tls.process_new_packets().expect("the server's records are right");
        }
    }
}

/// Reads what the server says.
impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.tls.reader().read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                read => {
                    buf.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
            let mut records = [0; 4096];
            let mut records = ReadBuf::new(&mut records);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut records))?;
            if records.filled().is_empty() {
                this.tls.read_tls(&mut std::io::empty())?;
            }
            this.take(records.filled());
        }
    }
}

/// Sends requests over TLS, their records cut as asked, with a KeyUpdate before those that want one. Returns their answers,
/// and how often the connection changed hands.
async fn exchange_sealed(
    version: &'static rustls::SupportedProtocolVersion,
    requests: &[(Vec<u8>, bool)],
    cuts: &[(prop::sample::Index, u8)],
) -> (String, u64) {
    let (here, there) = (Side::new(), Side::new());
    let (mut client, theirs) = Client::new(version);
    here.server.serve_one_over(theirs, &acceptor());
    let sides = [&here, &there];
    between(sides, async {
        client.shake_hands().await;
        let mut records = Vec::new();
        for (request, updates) in requests {
            if *updates && version.version == rustls::ProtocolVersion::TLSv1_3 {
                client.tls.refresh_traffic_keys().expect("TLS 1.3 has new keys");
            }
            records.extend(client.sealed(request));
        }
        let cut = |(at, runs): &(prop::sample::Index, u8)| (at.index(records.len() + 1), *runs, true);
        let mut cuts: Vec<Cut> = cuts.iter().map(cut).collect();
        cuts.sort_unstable();
        send(&mut client.socket, &records, &cuts, sides).await;
        answers(&mut client, requests.len()).await
    })
    .await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_answers_over_tls_are_the_same_with_a_handover_at_any_byte_of_a_record_as_without_tls(
        requests in proptest::collection::vec((request(), any::<bool>()), 1..6),
        cuts in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        is_old in any::<bool>(),
    ) {
        let version = if is_old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let stream: Vec<_> = requests.iter().flat_map(|(request, _)| request.clone()).collect();
        let none: [Cut; 0] = [];
        let (expected, _) = runtime.block_on(exchange(&stream, &none, requests.len()));
        let (sealed, _) = runtime.block_on(exchange_sealed(version, &requests, &cuts));
        prop_assert_eq!(sealed, expected);
    }
}

/// Without this the test above might look at connections that never moved.
#[tokio::test]
async fn a_tls_connection_changes_hands_between_two_requests_and_within_a_record() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (here, there) = (Side::new(), Side::new());
        let (mut client, theirs) = Client::new(version);
        here.server.serve_one_over(theirs, &acceptor());
        client.shake_hands().await;
        let talk = async {
            for at in [0, 3, 20, 40] {
                let records = client.sealed(REQUEST);
                client.socket.write_all(&records[..at]).await.expect("the server reads");
                let taken = |side: &Side| side.registry.totals().taken_over.counts()[0];
                let before = taken(&here) + taken(&there);
                here.give_away();
                there.give_away();
                while taken(&here) + taken(&there) == before {
                    tokio::task::yield_now().await;
                }
                client.socket.write_all(&records[at..]).await.expect("the server reads");
                assert!(answer(&mut client).await.contains("GET /"));
            }
        };
        let ((), moves) = between([&here, &there], talk).await;
        assert_eq!(moves, 4);
    }
}

#[tokio::test]
async fn an_idle_tls_connection_ends_with_a_goodbye() {
    let side = Side::new();
    let (mut client, theirs) = Client::new(&rustls::version::TLS13);
    side.server.serve_one_over(theirs, &acceptor());
    client.shake_hands().await;
    client.send(REQUEST).await;
    answer(&mut client).await;
    side.server.drain(Duration::ZERO).await;
    // rustls takes an end without close_notify for an error.
    assert_eq!(client.read(&mut [0]).await.expect("the end is said"), 0);
}

#[tokio::test]
async fn a_request_without_tls_is_told_so_and_counted() {
    let side = Side::new();
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    side.server.serve_one_over(theirs, &acceptor());
    client.write_all(REQUEST).await.expect("the server reads");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{answer:?}");
    let failures = side.registry.totals().handshakes.failures();
    assert_eq!(failures.filter(|(_, number)| *number > 0).collect::<Vec<_>>(), [(Reason::PlainHttp, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_ends_after_the_time_for_a_head() {
    let limits = Limits { header_timeout: Duration::from_secs(3), ..Limits::default() };
    let side = Side::serving(Router::new(), Mailbox::new().expect("a mailbox"), limits);
    let (mut client, theirs) = Client::new(&rustls::version::TLS13);
    side.server.serve_one_over(theirs, &acceptor());
    let hello = client.pending();
    client.socket.write_all(&hello[..20]).await.expect("the server reads");
    let started = tokio::time::Instant::now();
    tokio::select! {
        () = side.server.serve() => unreachable!("it never ends"),
        read = client.socket.read_u8() => assert!(read.is_err(), "it is closed"),
    }
    let took = started.elapsed().as_secs();
    assert!((3..5).contains(&took), "{took} s");
    let failures = side.registry.totals().handshakes.failures();
    assert_eq!(failures.map(|(_, number)| number).sum::<u64>(), 1);
}

#[tokio::test]
async fn a_connection_that_shakes_hands_is_seen_as_such_and_parked_afterwards() {
    let side = Side::new();
    let (mut client, theirs) = Client::new(&rustls::version::TLS13);
    side.server.serve_one_over(theirs, &acceptor());
    let connection = side.registry.connections().remove(0);
    assert_eq!(connection.state(), State::Handshaking);
    client.shake_hands().await;
    while connection.state() == State::Handshaking {
        tokio::task::yield_now().await;
    }
    assert_eq!(connection.state(), State::Parked);
    assert_eq!(connection.session().expect("TLS").server_name(), Some("localhost"));
}

/// Otherwise who was asked for nothing, or has shown a certificate that is revoked by now, would go on as if nothing had changed.
#[tokio::test]
async fn a_connection_whose_client_would_be_judged_by_another_policy_now_is_closed_and_no_other() {
    let is_for = |name: Option<&str>| name == Some("localhost");
    let judging = |digest| acceptor().with_policy(digest, None, is_for);
    let of_another_name = || acceptor().with_policy(7, None, |name| name == Some("elsewhere"));
    for (before, now, goes_on) in [
        (judging(7), Some(judging(7)), true),
        (judging(7), Some(judging(8)), false),
        (judging(7), Some(of_another_name()), false),
        (judging(7), Some(acceptor()), false),
        (judging(7), None, false),
        (acceptor(), Some(judging(7)), false),
        (of_another_name(), Some(acceptor()), true),
        (acceptor(), None, true),
    ] {
        let (here, mut there) = (Side::new(), Side::new());
        there.server = there.server.over(now);
        let (mut client, theirs) = Client::new(&rustls::version::TLS13);
        here.server.serve_one_over(theirs, &before);
        client.shake_hands().await;
        client.send(REQUEST).await;
        answer(&mut client).await;
        here.give_away();
        here.departures.pass_on().await;
        there.server.take_over(here.mailbox(), drop).expect("the mailbox works");
        if goes_on {
            client.send(REQUEST).await;
            assert!(answer(&mut client).await.contains("GET /"));
        } else {
            // Also what was sent meanwhile gets no answer.
            client.send(REQUEST).await;
            assert_eq!(client.read(&mut [0]).await.expect("a goodbye"), 0);
        }
        let counts = (
            there.registry.totals().taken_over.counts()[0],
            there.registry.totals().judged_otherwise.load(Relaxed),
        );
        assert_eq!(counts, if goes_on { (1, 0) } else { (0, 1) });
    }
}

/// Whoever renews a list of revoked certificates every week has not broken anything.
#[tokio::test]
async fn connections_whose_clients_would_be_judged_by_another_policy_now_are_no_sign_of_a_broken_upgrade() {
    let judging = |digest| acceptor().with_policy(digest, None, |_| true);
    let (here, mut there) = (Side::new(), Side::new());
    there.server = there.server.over(Some(judging(8)));
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (mut client, theirs) = Client::new(&rustls::version::TLS13);
        here.server.serve_one_over(theirs, &judging(7));
        client.shake_hands().await;
        client.send(REQUEST).await;
        answer(&mut client).await;
        clients.push(client);
    }
    here.give_away();
    here.registry.emptied().await;
    here.departures.pass_on().await;
    let lines = logged(|| there.server.take_over(here.mailbox(), drop).expect("the mailbox works"));
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.contains("INFO") && line.contains("closed 2 connections from the predecessor: "), "{line}");
    let totals = there.registry.totals();
    assert_eq!((totals.not_understood.load(Relaxed), totals.judged_otherwise.load(Relaxed)), (0, 2));
}

/// The records of one direction are numbered from one owner of the connection to the next. A number that came twice would be
/// a nonce that is used twice, and rustls, which counts along, would not open the record.
#[tokio::test]
async fn no_number_is_used_twice_when_the_mailbox_refuses_a_parcel_and_it_comes_back() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mailbox = Mailbox::new().expect("a mailbox");
        rustix::net::sockopt::set_socket_send_buffer_size(mailbox.entrance(), 1).expect("it may be small");
        while rustix::net::send(mailbox.entrance(), b"full", SendFlags::DONTWAIT).is_ok() {}
        let side = Side::over(mailbox);
        let (mut client, theirs) = Client::new(version);
        side.server.serve_one_over(theirs, &acceptor());
        client.shake_hands().await;
        client.send(REQUEST).await;
        answer(&mut client).await;
        let not_carried = &side.registry.totals().not_carried;
        let ask_once_more = async {
            while not_carried.total() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            client.send(REQUEST).await;
            assert!(answer(&mut client).await.contains("connection: close"));
            assert_eq!(client.read(&mut [0]).await.expect("a goodbye"), 0);
        };
        let both = async { tokio::join!(side.server.carry(PATIENCE), ask_once_more) };
        tokio::time::timeout(PATIENCE, both).await.expect("it is over when the client has its answer");
        // It has been there and back: for another reason it would never have left.
        assert_eq!(not_carried.to_string(), "; 1 connection closed: refused by the mailbox");
        assert_eq!(side.registry.totals().handed_over.counts(), [0, 0]);
    }
}

#[tokio::test]
async fn a_connection_has_one_owner_and_ends_with_it() {
    let (here, there) = (Side::new(), Side::new());
    let (mut client, theirs) = Client::new(&rustls::version::TLS13);
    here.server.serve_one_over(theirs, &acceptor());
    client.shake_hands().await;
    client.send(REQUEST).await;
    answer(&mut client).await;
    here.give_away();
    here.departures.pass_on().await;
    assert!(here.registry.is_empty(), "what is in the mailbox is nobody else's");
    let mailbox = here.mailbox();
    // The successor takes it out, and dies before it has come to serve it.
    drop(mailbox.take().expect("the mailbox works").expect("a message"));
    there.server.take_over(mailbox, drop).expect("the mailbox works");
    assert!(there.registry.is_empty(), "nobody takes it out a second time");
    let end = client.socket.read(&mut [0; 1]).await;
    assert!(end.is_ok_and(|n| n == 0), "its socket went with it");
}
