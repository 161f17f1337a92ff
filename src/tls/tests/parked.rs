//! An idle connection holds next to nothing, and wakes nobody without a reason.

use super::*;

/// The most that a parked connection may have on the heap.
const PARKED: usize = 600;

#[tokio::test]
async fn a_parked_connection_holds_next_to_nothing() {
    for suite in SUITES {
        let (mut client, mut server) = pair(suite).await;
        for round in 0..3 {
            let request = vec![b'x'; 100_000];
            client.send(&request[..50_000]).await;
            client.send(&request[50_000..]).await;
            server.read_exact(&mut vec![0; request.len()]).await.expect("all that was sent");
            write(&mut server, &request).await;
            client.receive().await.expect("the right keys");
            assert!(server.footprint() > PARKED, "{suite:x}: with its keys it holds more");
            server.park();
            assert!(server.footprint() <= PARKED, "{suite:x} {round}: {} bytes", server.footprint());
            server = carry(server);
            assert!(server.footprint() <= PARKED, "{suite:x} {round}: {} bytes", server.footprint());
        }
    }
}

#[tokio::test]
async fn half_a_record_and_a_key_update_wake_nobody() {
    let (mut client, mut server) = pair(0x1302).await;
    assert!(!is_filled(&mut server));
    let bytes = client.key_update();
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    assert!(!is_filled(&mut server));
    let bytes = client.seal(b"ask");
    for byte in &bytes[..bytes.len() - 1] {
        client.io.write_all(&[*byte]).await.expect("the pipe takes it");
        assert!(!is_filled(&mut server));
        assert!(!server.has_read_ahead());
    }
    server.park();
    client.io.write_all(&bytes[bytes.len() - 1..]).await.expect("the pipe takes it");
    assert!(is_filled(&mut server));
    assert!(server.has_read_ahead());
    assert!(is_filled(&mut server), "until it is read");
    let mut got = [0; 3];
    server.read_exact(&mut got).await.expect("it is there");
    assert_eq!(&got, b"ask");
    assert!(!is_filled(&mut server));
    assert!(!server.has_read_ahead());
}

#[tokio::test]
async fn the_end_and_an_error_wake_whoever_reads_and_are_told_once_read() {
    let (mut client, mut server) = pair(0x1302).await;
    client.send(b"last").await;
    client.tls.send_close_notify();
    let bytes = client.take();
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    assert!(is_filled(&mut server));
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("a clean end");
    assert_eq!(got, b"last");
    assert!(is_filled(&mut server) && server.has_read_ahead());

    let (client, mut server) = pair(0x1302).await;
    drop(client);
    assert!(is_filled(&mut server) && server.has_read_ahead());
    for _ in 0..2 {
        let error = server.read(&mut [0; 1]).await.expect_err("it ended without a goodbye");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_long_record_that_trickles_in_is_held_once() {
    let (mut client, mut server) = pair(0x1302).await;
    let bytes = client.seal(&[b'x'; 16384]);
    for byte in bytes[..bytes.len() - 1].chunks(100) {
        client.io.write_all(byte).await.expect("the pipe takes it");
        assert!(!is_filled(&mut server));
    }
    server.park();
    assert!(server.footprint() <= PARKED + bytes.len(), "{} bytes", server.footprint());
}
