//! A note that is not as it should be costs its own connection, and nobody else's.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use tokio::io::AsyncReadExt;

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

/// The second owner would seal with numbers that the first has used. A mailbox gives each message once, so this one is
/// made by hand.
#[tokio::test]
async fn a_note_that_comes_twice_has_one_owner_and_the_second_writes_nothing_on_its_connection() {
    for version in VERSIONS {
        let there = Side::new();
        let (mut client, socket, note) = departed(version).await;
        let again = |note: &ConnectionNote| ConnectionNote {
            peer: note.peer,
            answered: note.answered,
            idle_ms: note.idle_ms,
            read_ahead: note.read_ahead.clone(),
            tls: note.tls.as_ref().map(notes::copy),
        };
        let copies = [again(&note), again(&note)];
        let sockets = [(); 2].map(|()| socket.try_clone().expect("a descriptor"));
        there.handover.put(&mut vec![Parcel::Connection(socket, note)]).expect("there is room");
        there.take_over();
        for (nth, (socket, note)) in (1..).zip(sockets.into_iter().zip(copies)) {
            there.handover.put(&mut vec![Parcel::Connection(socket, note)]).expect("there is room");
            let lines = logged(|| there.take_over());
            let [line] = &lines[..] else { panic!("{lines:#?}") };
            let closed = "closed 1 connection from the predecessor: it has been taken over before";
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
