//! A client behind TLS has the time of any other.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::tls::{Client, acceptor};
use super::{REQUEST, answer};
use crate::server::connection::Command;
use crate::server::limits::Limits;
use crate::server::socket::Socket;
use crate::server::{Registry, Server, State, Totals, tunnel};

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

struct Service {
    registry: Arc<Registry>,
    server: Server,
    _sweep: AbortOnDropHandle<()>,
}

impl Service {
    fn new(router: Router) -> Self {
        let registry = Registry::new(Totals::unobserved());
        let server = Server::new(Vec::new(), router, Arc::clone(&registry), Limits::default());
        let sweeping = server.clone();
        let sweep = tokio_util::task::TaskTracker::new().spawn(async move { sweeping.serve().await });
        Self { registry, server, _sweep: AbortOnDropHandle::new(sweep) }
    }

    async fn client(&self, version: &'static rustls::SupportedProtocolVersion) -> Client {
        let (mut client, theirs) = Client::new(version);
        self.server.serve_one_over(theirs, &acceptor());
        client.shake_hands().await;
        client
    }

    /// A client that has had its answer.
    async fn answered(&self, version: &'static rustls::SupportedProtocolVersion) -> Client {
        let mut client = self.client(version).await;
        client.send(REQUEST).await;
        answer(&mut client).await;
        client
    }

    /// Waits for something of its connections.
    async fn until(&self, what: impl Fn(&Registry) -> bool) {
        for _ in 0..12_000 {
            if what(&self.registry) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("it does not come to that");
    }

    async fn until_it_is(&self, state: State) {
        self.until(|registry| registry.connections().first().is_some_and(|one| one.state() == state)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_record_is_the_beginning_of_a_request() {
    for version in VERSIONS {
        let service = Service::new(Router::new());
        let mut client = service.answered(version).await;
        service.until_it_is(State::Parked).await;
        let records = client.sealed(REQUEST);
        client.socket.write_all(&records[..17]).await.expect("the server reads");
        service.until_it_is(State::Reading).await;
        let began = Instant::now();
        // As without TLS it has the time of a head, and is told that this is over.
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 408 "));
        let took = began.elapsed().as_secs();
        assert!((9..12).contains(&took), "{took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_sent_a_part_of_a_record_is_answered_although_the_connection_is_to_finish() {
    for version in VERSIONS {
        let service = Service::new(Router::new());
        let mut client = service.answered(version).await;
        let records = client.sealed(REQUEST);
        client.socket.write_all(&records[..17]).await.expect("the server reads");
        service.registry.connections()[0].commands().give(Command::Finish);
        service.until_it_is(State::Reading).await;
        client.socket.write_all(&records[17..]).await.expect("the server reads");
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 404 "));
        service.until(Registry::is_empty).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_record_that_brings_no_byte_is_no_request() {
    let service = Service::new(Router::new());
    let mut client = service.answered(&rustls::version::TLS13).await;
    client.tls.refresh_traffic_keys().expect("TLS 1.3 has new keys");
    let records = client.sealed(&[]);
    client.socket.write_all(&records[..9]).await.expect("the server reads");
    service.until_it_is(State::Reading).await;
    client.socket.write_all(&records[9..]).await.expect("the server reads");
    service.until_it_is(State::Parked).await;
    client.send(REQUEST).await;
    assert!(answer(&mut client).await.starts_with("HTTP/1.1 404 "));
}

/// One that comes to nothing ends no idleness: a KeyUpdate, whose beginning and whose end are far apart.
#[tokio::test(start_paused = true)]
async fn a_client_is_idle_for_no_longer_because_parts_of_records_come() {
    let service = Service::new(Router::new());
    let mut client = service.answered(&rustls::version::TLS13).await;
    let began = Instant::now();
    for _ in 0..12 {
        client.tls.refresh_traffic_keys().expect("TLS 1.3 has new keys");
        let records = client.pending();
        for part in [&records[..9], &records[9..]] {
            if client.socket.write_all(part).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(9)).await;
        }
    }
    assert!(service.registry.is_empty());
    assert!(began.elapsed().as_secs() > 75);
}

/// The same where it is hardly ever seen between two of them: each is followed at once by the beginning of the next.
#[tokio::test(start_paused = true)]
async fn a_client_is_idle_for_no_longer_because_there_is_always_a_part_of_a_record() {
    let limits = Limits::default();
    for (is_answered, idle) in [(true, limits.keepalive_timeout), (false, limits.header_timeout)] {
        let service = Service::new(Router::new());
        let mut client = service.client(&rustls::version::TLS13).await;
        if is_answered {
            client.send(REQUEST).await;
            answer(&mut client).await;
        }
        service.until_it_is(State::Parked).await;
        let began = Instant::now();
        let mut end = Vec::new();
        while !service.registry.is_empty() && began.elapsed() < Duration::from_secs(200) {
            // What a client that is told so sends after it has no way to arrive.
            let _ = client.socket.write_all(&end).await;
            sleep(Duration::from_millis(1)).await;
            client.tls.refresh_traffic_keys().expect("TLS 1.3 has new keys");
            let records = client.pending();
            let _ = client.socket.write_all(&records[..9]).await;
            end = records[9..].to_vec();
            sleep(limits.header_timeout.mul_f32(0.9)).await;
        }
        let took = began.elapsed();
        assert!(service.registry.is_empty());
        assert!(took > idle && took < idle + 3 * limits.header_timeout, "{took:?}");
        // It has begun to ask, as far as anybody can tell.
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 408 "));
    }
}

/// With TLS something may be left to be sent when all has been written: then the end waits for the client, too.
#[tokio::test(start_paused = true)]
async fn a_tunnel_ends_although_its_client_does_not_read_the_last_of_it() {
    // Where the last piece falls decides if a part of it is left.
    let mut has_waited = false;
    for length in (0..40).map(|n| 150_000 + 5_000 * n) {
        let router = Router::new().fallback(async move |mut request: Request| {
            let upgrade = hyper::upgrade::on(&mut request);
            let (upstream, mut far) = UnixStream::pair().expect("a pair of sockets");
            let upstream =
                Socket::adopt(upstream.into_std().expect("it is a socket").into()).expect("it lives");
            let tunnels = tokio_util::task::TaskTracker::new();
            tunnels.spawn(async move {
                let client = upgrade.await.expect("it is upgraded");
                tunnel::begin(client, upstream, axum::body::Bytes::new()).await;
            });
            tunnels.spawn(async move {
                let _ = far.write_all(&vec![7; length]).await;
                let _ = far.shutdown().await;
                let _ = far.read_to_end(&mut Vec::new()).await;
            });
            (StatusCode::SWITCHING_PROTOCOLS, [(header::UPGRADE, "bytes")])
        });
        let service = Service::new(router);
        let mut client = service.client(&rustls::version::TLS13).await;
        client.send(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n").await;
        client.tls.send_close_notify();
        let goodbye = client.pending();
        client.socket.write_all(&goodbye).await.expect("the server reads");
        let began = Instant::now();
        service.until(Registry::is_empty).await;
        assert!(began.elapsed().as_secs() < 65, "{length}: {:?}", began.elapsed());
        has_waited |= began.elapsed().as_secs() >= 60;
        drop(client);
    }
    assert!(has_waited, "some have something left");
}
