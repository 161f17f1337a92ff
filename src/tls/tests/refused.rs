//! What a client with the right keys and bad manners may send, and the alert that it gets: rustls's own.

use super::*;
use crate::tls::script::CLIENT_HELLO;

type Make = fn(&Keys, u64) -> Vec<u8>;

/// What it is, the alert, and the records for the client's keys and its next number.
const REFUSED: [(&str, u8, Make); 28] = [
    ("a plain ChangeCipherSpec", 10, |_, _| vec![20, 3, 3, 0, 1, 1]),
    ("a plain alert", 10, |_, _| vec![21, 3, 3, 0, 2, 1, 0]),
    ("a plain handshake record", 10, |_, _| vec![22, 3, 3, 0, 1, 1]),
    ("no TLS at all", 50, |_, _| b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ("another major version", 50, |_, _| vec![23, 2, 3, 0, 1, 1]),
    ("too long a record", 22, |_, _| vec![23, 3, 3, 0x40, 0x12]),
    ("too long a plaintext", 22, |k, s| {
        let out = sealed(k, s, 23, &[1; 16385]);
        assert_eq!(out.len(), 5 + 16385 + 1 + 16, "a record of a length that is allowed");
        out
    }),
    ("noise", 20, |_, _| [&[23, 3, 3, 0, 32][..], &[9; 32]].concat()),
    ("a record shorter than its tag", 20, |_, _| vec![23, 3, 3, 0, 3, 1, 2, 3]),
    ("a record of nothing", 20, |_, _| vec![23, 3, 3, 0, 0]),
    ("another sequence number", 20, |k, s| sealed(k, s + 1, 23, b"x")),
    ("type 0", 10, |k, s| sealed(k, s, 0, b"")),
    ("padding alone", 10, |k, s| sealed(k, s, 0, &[0; 50])),
    ("an encrypted ChangeCipherSpec", 10, |k, s| sealed(k, s, 20, &[1])),
    ("an empty alert", 10, |k, s| sealed(k, s, 21, b"")),
    ("an alert of three bytes", 50, |k, s| sealed(k, s, 21, &[1, 0, 0])),
    ("an alert of level 3", 47, |k, s| sealed(k, s, 21, &[3, 10])),
    ("a warning", 50, |k, s| sealed(k, s, 21, &[1, 10])),
    ("five user_canceled", 10, |k, s| (0..5).flat_map(|i| sealed(k, s + i, 21, &[1, 90])).collect()),
    ("an empty handshake record", 10, |k, s| sealed(k, s, 22, b"")),
    ("a ClientHello", 10, |k, s| sealed(k, s, 22, &[1, 0, 0, 0])),
    ("a Finished", 10, |k, s| sealed(k, s, 22, &[20, 0, 0, 32])),
    ("a certificate", 10, |k, s| sealed(k, s, 22, &[11, 0, 0, 4, 0, 0, 0, 0])),
    ("a KeyUpdate of two bytes", 10, |k, s| sealed(k, s, 22, &[24, 0, 0, 2, 0, 0])),
    ("a KeyUpdate that asks for 2", 47, |k, s| sealed(k, s, 22, &[24, 0, 0, 1, 2])),
    ("two KeyUpdates in one record", 10, |k, s| sealed(k, s, 22, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0])),
    ("data within a KeyUpdate", 10, |k, s| [sealed(k, s, 22, &[24, 0]), sealed(k, s + 1, 23, b"x")].concat()),
    ("33 empty records", 10, |k, s| (0..33).flat_map(|i| sealed(k, s + i, 23, b"")).collect()),
];

async fn refused(what: &str, alert: u8, client: &mut Client, server: &mut Server) {
    assert!(is_filled(server), "{what}: whoever reads next is told");
    let error = server.read(&mut [0; 100]).await.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{what}: {error}");
    assert!(server.write_all(b"more").await.is_err(), "{what}");
    assert!(!server.may_travel(false) && !server.may_travel(true), "{what}");
    assert!(server.read(&mut [0; 100]).await.is_err(), "{what}: for good");
    match client.receive().await {
        Err(rustls::Error::AlertReceived(got)) => assert_eq!(u8::from(got), alert, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn whatever_else_a_client_sends_is_refused() {
    for (what, alert, make) in REFUSED {
        for carried in [false, true] {
            let (mut client, mut server) = pair(0x1302).await;
            if carried {
                server = carry(server);
            }
            let (material, seq, mut server) = client_keys(server);
            let bytes = make(&material.keys(suite(0x1302)), seq);
            client.io.write_all(&bytes).await.expect("the pipe takes it");
            refused(what, alert, &mut client, &mut server).await;
        }
    }
}

#[tokio::test]
async fn old_keys_after_a_key_update_are_refused() {
    let (mut client, server) = pair(0x1302).await;
    let (material, seq, mut server) = client_keys(server);
    let keys = material.keys(suite(0x1302));
    let bytes = [sealed(&keys, seq, 22, &[24, 0, 0, 1, 0]), sealed(&keys, seq + 1, 23, b"x")].concat();
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    refused("old keys", 20, &mut client, &mut server).await;
}

#[tokio::test]
async fn more_than_32_key_updates_in_a_row_are_refused() {
    let (mut client, server) = pair(0x1302).await;
    let (mut material, mut seq, mut server) = client_keys(server);
    for round in 0..33 {
        assert!(!is_filled(&mut server), "{round}");
        let bytes = sealed(&material.keys(suite(0x1302)), seq, 22, &[24, 0, 0, 1, 0]);
        client.io.write_all(&bytes).await.expect("the pipe takes it");
        (material, seq) = (material.next(suite(0x1302)), 0);
    }
    refused("33 KeyUpdates", 10, &mut client, &mut server).await;
}

#[tokio::test]
async fn what_is_unusual_and_allowed_is_taken() {
    let (mut client, server) = pair(0x1301).await;
    let (material, seq, mut server) = client_keys(server);
    let (keys, next) = (material.keys(suite(0x1301)), material.next(suite(0x1301)).keys(suite(0x1301)));
    let mut bytes = Vec::new();
    let before: [(u8, &[u8]); 6] = [
        (23, b""),
        // user_canceled, which is a warning and no error.
        (21, &[1, 90]),
        (23, b"padded"),
        // A KeyUpdate in pieces.
        (22, &[24]),
        (22, &[0, 0, 1]),
        (22, &[1]),
    ];
    for ((kind, plain), seq) in before.into_iter().zip(seq..) {
        bytes.extend(sealed(&keys, seq, kind, plain));
    }
    bytes.extend(sealed(&next, 0, 23, b" and new"));
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    let mut got = [0; 14];
    server.read_exact(&mut got).await.expect("both");
    assert_eq!(&got, b"padded and new");
    server = carry(server);
    write(&mut server, b"answer").await;
    assert_eq!(client.receive().await.expect("with the KeyUpdate it asked for"), b"answer");
}

#[tokio::test]
async fn renegotiation_in_tls_1_2_is_declined_once() {
    let (mut client, server) = pair(0xc02b).await;
    let (material, seq, mut server) = client_keys(server);
    let keys = material.keys(suite(0xc02b));
    client.io.write_all(&sealed(&keys, seq, 22, &CLIENT_HELLO)).await.expect("the pipe takes it");
    assert!(!is_filled(&mut server));
    write(&mut server, b"on").await;
    assert_eq!(client.receive().await.expect("after a warning"), b"on");
    client.io.write_all(&sealed(&keys, seq + 1, 22, &CLIENT_HELLO)).await.expect("the pipe takes it");
    refused("another one", 10, &mut client, &mut server).await;
}

#[tokio::test]
async fn a_client_that_is_idle_is_told_at_once_that_renegotiation_is_declined() {
    let (mut client, server) = pair(0xc02b).await;
    let (material, seq, mut server) = client_keys(server);
    while !client.receive().await.expect("what the handshake has left").is_empty() {}
    let bytes = sealed(&material.keys(suite(0xc02b)), seq, 22, &CLIENT_HELLO);
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    assert!(!is_filled(&mut server), "it is nothing for whoever reads");
    let mut header = [0; 5];
    let read = std::pin::pin!(client.io.read_exact(&mut header));
    let read = read.poll(&mut Context::from_waker(Waker::noop()));
    assert!(read.is_ready() && header[0] == 21, "an alert: {header:?}");
}
