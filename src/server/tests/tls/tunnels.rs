//! A tunnel over TLS changes hands at any byte, and neither of its ends notices.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::task::TaskTracker;

use super::{Client, PATIENCE, Side, acceptor};
use crate::handover::mailbox::Mailbox;
use crate::handover::parcel::Parcel;
use crate::server::limits::Limits;
use crate::server::socket::Socket;
use crate::server::tunnel;
use crate::tls::Acceptor;
use crate::tls::tests::notes;

const UPGRADE: &[u8] = b"GET /bytes HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n";

/// The end of a tunnel where its upstream is.
pub(super) struct Upstream {
    pub(super) socket: UnixStream,
    /// The server's own socket to it, to look at.
    near: OwnedFd,
}

/// Answers each request by a tunnel, whose other end is given to the test.
fn tunnels(ends: UnboundedSender<Upstream>) -> Router {
    Router::new().fallback(async move |mut request: Request| {
        let client = hyper::upgrade::on(&mut request);
        let (socket, near) = UnixStream::pair().expect("a pair of sockets");
        set_socket_send_buffer_size(&near, 1).expect("it may be small");
        let near = OwnedFd::from(near.into_std().expect("a socket"));
        let upstream = Upstream { socket, near: near.try_clone().expect("a descriptor") };
        let near = Socket::adopt(near).expect("it may live here");
        ends.send(upstream).expect("somebody waits for it");
        TaskTracker::new().spawn(async move {
            tunnel::begin(client.await.expect("it was agreed on"), near, Bytes::new()).await;
        });
        (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "bytes")]).into_response()
    })
}

/// A server of tunnels, and where their other ends come from.
pub(super) fn side() -> (Side, UnboundedReceiver<Upstream>) {
    let (ends, upstreams) = unbounded_channel();
    let mailbox = Mailbox::new().expect("a mailbox");
    (Side::serving(tunnels(ends), mailbox, Limits::default()), upstreams)
}

/// Both ends of a tunnel over TLS.
pub(super) async fn tunnel(
    version: &'static rustls::SupportedProtocolVersion,
    side: &Side,
    upstreams: &mut UnboundedReceiver<Upstream>,
    acceptor: &Acceptor,
) -> (Client, Upstream) {
    let (mut client, theirs) = Client::new(version);
    set_socket_send_buffer_size(&theirs, 1).expect("it may be small");
    side.server.serve_one_over(theirs, acceptor);
    client.shake_hands().await;
    client.send(UPGRADE).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
    (client, upstreams.recv().await.expect("a tunnel"))
}

/// The bytes of a round, which are those of no other.
fn bytes(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// Each round both directions hold what nobody has taken, and the server has read a record and so many bytes of the next.
#[tokio::test]
async fn a_tunnel_over_tls_is_carried_from_any_byte_of_a_record_and_each_byte_arrives_once_and_in_order() {
    /// A whole record, and a short one.
    const UP: [usize; 2] = [1 << 14, 20];
    const DOWN: usize = 50_000;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (here, mut upstreams) = side();
        let (mut owner, mut next) = (&here, &side().0);
        let (mut client, mut upstream) = tunnel(version, owner, &mut upstreams, &acceptor()).await;
        let mut random = fastrand::Rng::with_seed(7);
        let mut rounds = 0;
        let talk = async {
            let mut is_whole = false;
            while !is_whole {
                let (up, down) = (bytes(&mut random, UP[0] + UP[1]), bytes(&mut random, DOWN));
                let (whole, cut) = (client.sealed(&up[..UP[0]]), client.sealed(&up[UP[0]..]));
                let at = rounds;
                is_whole = at == cut.len();
                let received = || owner.registry.connections()[0].moved()[0];
                let before = received();
                upstream.socket.write_all(&down).await.expect("the kernel has room");
                client.socket.write_all(&[&whole, &cut[..at]].concat()).await.expect("the kernel has room");
                // Until both directions are stuck: their readers are not there.
                while received() < before + UP[0] as u64
                    || rustix::io::ioctl_fionread(&upstream.near).expect("a number") == DOWN as u64
                {
                    tokio::task::yield_now().await;
                }

                let parcel = owner.departed().await;
                let Parcel::Tunnel { note, .. } = &parcel else { panic!("{parcel:?}") };
                let [raw, sealed] = notes::held(note.tls.as_ref().expect("it is over TLS"));
                assert_eq!(raw, if is_whole { 0 } else { at });
                let unsent = [note.up.unsent.len(), note.down.unsent.len(), sealed];
                assert!(unsent.iter().all(|unsent| *unsent > 0), "{unsent:?} after {at}");
                next.handover.put(&mut vec![parcel]).expect("there is room");
                next.take_over();
                (owner, next) = (next, owner);

                client.socket.write_all(&cut[at..]).await.expect("the kernel has room");
                let (mut by_client, mut by_upstream) = (vec![0; down.len()], vec![0; up.len()]);
                let heard = tokio::join!(
                    client.read_exact(&mut by_client),
                    upstream.socket.read_exact(&mut by_upstream)
                );
                heard.0.and(heard.1).expect("the tunnel goes on");
                assert!(by_client == down && by_upstream == up, "cut at {at}");
                rounds += 1;
            }
            // Nothing has come beside it.
            client.tls.send_close_notify();
            let goodbye = client.pending();
            client.socket.write_all(&goodbye).await.expect("the server reads");
            assert_eq!(upstream.socket.read(&mut [0]).await.expect("an end"), 0);
            upstream.socket.shutdown().await.expect("it is open");
            assert_eq!(client.read(&mut [0]).await.expect("a goodbye"), 0);
        };
        tokio::time::timeout(PATIENCE, talk).await.expect("the tunnel goes on");
        // A header, and what is sealed.
        assert!(rounds > UP[1] + 5 + 16, "{rounds} rounds");
        let carried = [owner, next].map(|side| side.registry.totals().taken_over.counts()[1]);
        assert_eq!(carried.iter().sum::<u64>(), rounds as u64);
    }
}

#[tokio::test]
async fn a_tunnel_whose_client_would_be_judged_by_another_policy_now_is_closed_at_both_ends() {
    let judging = |digest| acceptor().with_policy(digest, None, |_| true);
    for (now, goes_on) in
        [(Some(judging(7)), true), (Some(judging(8)), false), (Some(acceptor()), false), (None, false)]
    {
        let (here, mut upstreams) = side();
        let (mut there, _) = side();
        there.server = there.server.over(now);
        let (mut client, mut upstream) =
            tunnel(&rustls::version::TLS13, &here, &mut upstreams, &judging(7)).await;
        let parcel = here.departed().await;
        there.handover.put(&mut vec![parcel]).expect("there is room");
        there.take_over();
        let totals = there.registry.totals();
        let counts = (totals.taken_over.counts()[1], totals.judged_otherwise.load(Relaxed));
        assert_eq!(counts, if goes_on { (1, 0) } else { (0, 1) });
        drop(upstream.near);
        if goes_on {
            client.send(b"up").await;
            let mut heard = [0; 2];
            upstream.socket.read_exact(&mut heard).await.expect("the tunnel goes on");
            assert_eq!(&heard, b"up");
        } else {
            assert_eq!(client.socket.read(&mut [0]).await.expect("an end"), 0);
            assert_eq!(upstream.socket.read(&mut [0]).await.expect("an end"), 0);
        }
    }
}

/// A client may say goodbye and read on. What it has said before is still on its way, or is not; and to leave a second time is no
/// different.
#[tokio::test]
async fn a_tunnel_over_tls_whose_client_has_said_goodbye_is_carried_with_the_last_of_it_and_its_end() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // There is nothing but the goodbye; or it has come through; or it is opened, and not yet read; or it is not even received.
        for length in [0, 20, 20_000, 3 << 14] {
            let (here, mut upstreams) = side();
            let (there, _) = side();
            let (mut client, mut upstream) = tunnel(version, &here, &mut upstreams, &acceptor()).await;
            let mut random = fastrand::Rng::with_seed(7);
            let (up, down) = (bytes(&mut random, length), bytes(&mut random, 50_000));
            let talk = async {
                upstream.socket.write_all(&down).await.expect("the kernel has room");
                let mut records = client.sealed(&up);
                client.tls.send_close_notify();
                records.extend(client.pending());
                client.socket.write_all(&records).await.expect("the kernel has room");
                // As much as is read while neither end reads.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                for (from, to) in [(&here, &there), (&there, &here)] {
                    to.handover.put(&mut vec![from.departed().await]).expect("there is room");
                    to.take_over();
                }
                let mut heard = Vec::new();
                upstream.socket.read_to_end(&mut heard).await.expect("an end");
                assert!(heard == up, "{} of {length} bytes", heard.len());
                let mut heard = vec![0; down.len()];
                client.read_exact(&mut heard).await.expect("the tunnel goes on");
                assert!(heard == down);
                for (from, to) in [(&here, &there), (&there, &here)] {
                    to.handover.put(&mut vec![from.departed().await]).expect("there is room");
                    to.take_over();
                    upstream.socket.write_all(b"down").await.expect("the tunnel goes on");
                    let mut heard = [0; 4];
                    client.read_exact(&mut heard).await.expect("the tunnel goes on");
                    assert_eq!(&heard, b"down");
                }
                upstream.socket.shutdown().await.expect("it is open");
                assert_eq!(client.read(&mut [0]).await.expect("a goodbye"), 0);
                here.registry.emptied().await;
            };
            tokio::time::timeout(PATIENCE, talk).await.expect("the tunnel goes on");
            assert_eq!(here.registry.totals().not_carried.total(), 0);
        }
    }
}

#[tokio::test]
async fn a_tunnel_over_tls_whose_upstream_has_ended_it_is_finished_by_the_old_process_and_counted() {
    let (here, mut upstreams) = side();
    let (mut client, mut upstream) =
        tunnel(&rustls::version::TLS13, &here, &mut upstreams, &acceptor()).await;
    let not_carried = &here.registry.totals().not_carried;
    let talk = async {
        upstream.socket.shutdown().await.expect("it is open");
        assert_eq!(client.read(&mut [0]).await.expect("a goodbye"), 0);
        here.give_away();
        while not_carried.total() == 0 {
            tokio::task::yield_now().await;
        }
        client.send(b"up").await;
        client.tls.send_close_notify();
        let goodbye = client.pending();
        client.socket.write_all(&goodbye).await.expect("the server reads");
        let mut heard = Vec::new();
        upstream.socket.read_to_end(&mut heard).await.expect("an end");
        assert_eq!(heard, b"up");
        here.registry.emptied().await;
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("the tunnel is finished");
    assert_eq!(not_carried.to_string(), "; 1 connection closed: their TLS had ended");
}
