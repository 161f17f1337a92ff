//! A note that is not as it should be costs its own connection, and nobody else's.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tunnels::{self, tunnel};
use super::{Client, REQUEST, Side, acceptor, answer};
use crate::handover::parcel::{ConnectionNote, Parcel};
use crate::server::tests::logged;
use crate::tls::tests::notes;

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A client that has had an answer, and its connection on the way.
async fn departed(version: &'static rustls::SupportedProtocolVersion) -> (Client, OwnedFd, ConnectionNote) {
    let side = Side::new();
    let (mut client, theirs) = Client::new(version);
    side.server.serve_one_over(theirs, &acceptor());
    client.shake_hands().await;
    client.send(REQUEST).await;
    answer(&mut client).await;
    let Parcel::Connection(socket, note) = side.departed().await else { panic!("a connection") };
    (client, socket, note)
}

/// What a server has taken over, of these over TLS, and what it has not understood.
fn counts(side: &Side) -> (u64, u64, u64) {
    let totals = side.registry.totals();
    let taken_over = &totals.taken_over;
    (taken_over.counts()[0], taken_over.over_tls(), totals.not_understood.load(Relaxed))
}

#[tokio::test]
async fn a_damaged_note_closes_its_own_connection_and_those_beside_it_go_on() {
    for version in VERSIONS {
        for (damage, why) in notes::DAMAGES {
            let there = Side::new();
            let (mut clients, mut parcels) = (Vec::new(), Vec::new());
            for number in 0..3 {
                let (client, socket, mut note) = departed(version).await;
                if number == 1 {
                    damage(note.tls.as_mut().expect("it is over TLS"));
                }
                clients.push(client);
                parcels.push(Parcel::Connection(socket, note));
            }
            there.handover.put(&mut parcels).expect("there is room");
            let lines = logged(|| there.take_over());
            let [line] = &lines[..] else { panic!("{lines:#?}") };
            let closed = format!("closed 1 connection from the predecessor: {why}");
            assert!(line.contains("WARN") && line.contains(&closed), "{line}");
            assert_eq!(counts(&there), (2, 2, 1));
            for (number, client) in clients.iter_mut().enumerate() {
                if number == 1 {
                    assert_eq!(client.socket.read(&mut [0]).await.expect("an end"), 0);
                } else {
                    client.send(REQUEST).await;
                    assert!(answer(client).await.contains("GET /"));
                }
            }
        }
    }
}

/// A second one of a note, which is no `Clone`.
fn copy<T: Serialize + DeserializeOwned>(note: &T) -> T {
    let bytes = postcard::to_allocvec(note).expect("it is written");
    postcard::from_bytes(&bytes).expect("it is read")
}

/// The second owner would seal with numbers that the first has used. A mailbox gives each message once, so this one is
/// made by hand.
#[tokio::test]
async fn a_note_that_comes_twice_has_one_owner_and_the_second_writes_nothing_on_its_connection() {
    for version in VERSIONS {
        let there = Side::new();
        let (mut client, socket, note) = departed(version).await;
        let copies = [copy(&note), copy(&note)];
        let sockets = [(); 2].map(|()| socket.try_clone().expect("a descriptor"));
        there.handover.put(&mut vec![Parcel::Connection(socket, note)]).expect("there is room");
        there.take_over();
        for (nth, (socket, note)) in (1..).zip(sockets.into_iter().zip(copies)) {
            there.handover.put(&mut vec![Parcel::Connection(socket, note)]).expect("there is room");
            let lines = logged(|| there.take_over());
            let [line] = &lines[..] else { panic!("{lines:#?}") };
            let closed = "closed 1 connection from the predecessor: its TLS has come a second time; what came first goes on";
            assert!(line.contains("WARN") && line.contains(closed), "{line}");
            assert_eq!((counts(&there), there.registry.len()), ((1, 1, nth), 1));
            // rustls counts along: it would not open a record with a number that it has seen.
            for _ in 0..3 {
                client.send(REQUEST).await;
                assert!(answer(&mut client).await.contains("GET /"));
            }
        }
    }
}

#[tokio::test]
async fn a_tunnel_that_comes_twice_has_one_owner_and_goes_on() {
    for version in VERSIONS {
        let (here, mut upstreams) = tunnels::side();
        let (there, _) = tunnels::side();
        let (mut client, mut upstream) = tunnel(version, &here, &mut upstreams, &acceptor()).await;
        let Parcel::Tunnel { client: socket, upstream: near, note } = here.departed().await else {
            panic!("a tunnel")
        };
        let again = Parcel::Tunnel {
            client: socket.try_clone().expect("a descriptor"),
            upstream: near.try_clone().expect("a descriptor"),
            note: copy(&note),
        };
        let first = Parcel::Tunnel { client: socket, upstream: near, note };
        there.handover.put(&mut vec![first, again]).expect("there is room");
        there.take_over();
        let totals = there.registry.totals();
        let counts = (totals.taken_over.counts()[1], totals.not_understood.load(Relaxed));
        assert_eq!((counts, there.registry.len()), ((1, 1), 1));
        let mut heard = [0; 4];
        client.send(b"up").await;
        upstream.socket.read_exact(&mut heard[..2]).await.expect("the tunnel goes on");
        upstream.socket.write_all(b"down").await.expect("the server reads");
        client.read_exact(&mut heard).await.expect("the tunnel goes on");
        assert_eq!(&heard, b"down");
    }
}
