//! A connection travels from any state, and goes on as if it had not.

use super::*;
use crate::tls::note::NoteError;

#[tokio::test]
async fn a_request_cut_anywhere_survives_a_carry_at_the_cut() {
    let request = b"GET / HTTP/1.1\r\n\r\n";
    for suite in SUITES {
        let (mut client, mut server) = pair(suite).await;
        for cut in 0..60 {
            let bytes = client.seal(request);
            let cut = cut.min(bytes.len());
            client.io.write_all(&bytes[..cut]).await.expect("the pipe takes it");
            let mut got = read_now(&mut server).await.expect("no error").unwrap_or_default();
            server = carry(server);
            client.io.write_all(&bytes[cut..]).await.expect("the pipe takes it");
            while got.len() < request.len() {
                let mut more = [0; 64];
                let n = server.read(&mut more).await.expect("the rest");
                got.extend_from_slice(&more[..n]);
            }
            assert_eq!(got, request, "{suite:x} cut at {cut}");
        }
    }
}

#[tokio::test]
async fn plaintext_not_yet_read_and_ciphertext_not_yet_sent_travel() {
    let (mut client, mut server) = pair(0x1302).await;
    client.send(b"one two three").await;
    server.read_exact(&mut [0; 4]).await.expect("one");
    server = carry(server);
    assert!(server.has_read_ahead());
    let mut rest = [0; 9];
    server.read_exact(&mut rest).await.expect("the rest");
    assert_eq!(&rest, b"two three");

    // A client that does not read: a megabyte fills the pipe, and what is sealed beyond it waits.
    let data: Vec<u8> = (0..=250).cycle().take(1 << 21).collect();
    let mut written = 0;
    loop {
        tokio::select! {
            biased;
            n = server.write(&data[written..]) => written += n.expect("it is taken"),
            () = std::future::ready(()) => break,
        }
    }
    assert!(server.has_unsent());
    server = carry(server);
    let mut got = Vec::new();
    let mut is_flushed = false;
    while got.len() < written || !is_flushed {
        tokio::select! {
            biased;
            result = server.flush(), if !is_flushed => {
                result.expect("it is flushed");
                is_flushed = true;
            }
            () = std::future::ready(()) => {}
        }
        got.extend(client.receive().await.expect("in order"));
    }
    assert!(got == data[..written]);
}

#[tokio::test]
async fn key_updates_of_both_sides_come_before_between_and_after_carries() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for suite in [0x1301, 0x1302, 0x1303] {
        let (mut client, mut server) = pair(suite).await;
        let mut updates = 0;
        for _ in 0..3000 {
            match random.u8(0..6) {
                0 => server = carry(server),
                1 if updates < 30 => {
                    let bytes = client.key_update();
                    updates += 1;
                    client.io.write_all(&bytes).await.expect("the pipe takes it");
                    assert!(!is_filled(&mut server), "a KeyUpdate wakes nobody");
                }
                2 | 3 => {
                    client.send(b"ask").await;
                    let mut got = [0; 3];
                    server.read_exact(&mut got).await.expect("what was asked");
                    assert_eq!(&got, b"ask");
                    updates = 0;
                }
                4 => {
                    write(&mut server, b"answer").await;
                    assert_eq!(client.receive().await.expect("the right keys"), b"answer");
                }
                _ => server.park(),
            }
        }
    }
}

/// The numbers and contents of the records in `bytes`, of which the first has this number, over KeyUpdates.
pub(super) fn opened(
    suite: &'static Suite,
    secret: &[u8],
    mut seq: u64,
    bytes: &mut [u8],
) -> Vec<(u64, u8, Vec<u8>)> {
    let mut material = Material::new(suite, secret).expect("its own length");
    let (mut records, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let length = 5 + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        let (record, after) = rest.split_at_mut(length);
        let (kind, plain) = material.keys(suite).open(seq, record).expect("in order");
        records.push((seq, kind, plain.to_vec()));
        seq += 1;
        if kind == 22 {
            (material, seq) = (material.next(suite), 0);
        }
        rest = after;
    }
    records
}

#[tokio::test]
async fn worn_out_keys_are_replaced_in_tls_1_3_and_end_the_connection_in_tls_1_2() {
    for id in SUITES {
        let (mut client, server) = pair(id).await;
        assert_eq!(client.receive().await, Ok(Vec::new()), "its tickets");
        let suite = suite(id);
        let (io, mut note) = server.into_note().expect("it may travel");
        let secret = note.write.material.clone();
        note.write.seq = suite.limit - 3;
        let mut server = TlsStream::new(io, Records::from_note(note).expect("it is understood"));
        let mut results = Vec::new();
        for _ in 0..4 {
            results.push(server.write(b"x").await.map_err(|error| error.kind()));
        }
        server.flush().await.expect("it is flushed");
        let mut bytes = vec![0; 4096];
        let n = client.io.read(&mut bytes).await.expect("the records");
        let records = opened(suite, &secret, suite.limit - 3, &mut bytes[..n]);
        let x = || b"x".to_vec();
        let limit = suite.limit;
        let first = [(limit - 3, 23, x()), (limit - 2, 23, x())];
        let (then, ends) = match suite.version {
            Version::Tls13 => {
                (vec![(limit - 1, 22, vec![24, 0, 0, 1, 0]), (0, 23, x()), (1, 23, x())], [Ok(1); 2])
            }
            Version::Tls12 => (vec![(limit - 1, 21, vec![1, 0])], [Err(ErrorKind::BrokenPipe); 2]),
        };
        assert_eq!(records, [&first[..], &then].concat(), "{id:x}");
        assert_eq!(results, [&[Ok(1), Ok(1)], &ends[..]].concat(), "{id:x}");
    }
}

#[tokio::test]
async fn a_note_that_comes_back_goes_on_with_the_numbers_at_which_it_left() {
    for id in SUITES {
        let (mut client, server) = pair(id).await;
        client.receive().await.expect("its tickets");
        let suite = suite(id);
        let (io, note) = server.into_note().expect("it may travel");
        let (secret, first) = (note.write.material.clone(), note.write.seq);
        let mut server = TlsStream::new(io, Records::from_note(note).expect("it is understood"));
        for _ in 0..5 {
            write(&mut server, b"answer").await;
            client.send(b"ask").await;
            server.read_exact(&mut [0; 3]).await.expect("it is read");
            // As if the mailbox had refused it, or the successor had died with it unread. `into_note` takes the connection,
            // and `from_note` the note: of two owners both would use the next number.
            let (io, note) = server.into_note().expect("it may travel");
            server = TlsStream::new(io, Records::from_note(note).expect("it is understood"));
        }
        let mut bytes = vec![0; 4096];
        let n = client.io.read(&mut bytes).await.expect("the records");
        let numbers: Vec<_> = opened(suite, &secret, first, &mut bytes[..n]).iter().map(|r| r.0).collect();
        assert_eq!(numbers, (first..first + 5).collect::<Vec<_>>(), "{id:x}: each one once, and in order");
    }
}

#[tokio::test]
async fn an_owed_key_update_travels() {
    let (mut client, mut server) = pair(0x1302).await;
    let bytes = client.key_update();
    client.io.write_all(&bytes).await.expect("the pipe takes it");
    assert!(!is_filled(&mut server));
    server = carry(carry(server));
    write(&mut server, b"answer").await;
    assert_eq!(client.receive().await.expect("the keys that it asked for"), b"answer");
}

#[tokio::test]
async fn a_note_shows_no_secret() {
    let (_client, server) = pair(0x1302).await;
    let (_io, note) = server.into_note().expect("it may travel");
    let shown = format!("{note:?}");
    assert!(shown.len() < 200 && shown.contains("localhost") && !shown.contains("material"), "{shown}");
}

#[tokio::test]
async fn a_note_that_no_connection_writes_is_refused_with_a_reason() {
    type Damage = fn(&mut TlsNote);
    let damages: [(NoteError, Damage); 9] = [
        (NoteError::Suite(0x1304), |note| note.session.suite = 0x1304),
        (NoteError::Material, |note| note.read.material.truncate(32)),
        (NoteError::Material, |note| note.session.suite = 0x1301),
        (NoteError::Sequence, |note| note.write.seq = 1 << 25),
        (NoteError::Sequence, |note| note.read.seq = 1 << 50),
        (NoteError::Length, |note| note.raw = vec![0; 1 << 20]),
        (NoteError::Length, |note| note.session.server_name = Some("x".repeat(256).into())),
        (NoteError::State, |note| note.handshake = vec![1]),
        (NoteError::State, |note| note.handshake = vec![24, 0, 0, 1, 0]),
    ];
    for (error, damage) in damages {
        let (_client, server) = pair(0x1302).await;
        let (_io, mut note) = server.into_note().expect("it may travel");
        damage(&mut note);
        assert_eq!(Records::from_note(note).err(), Some(error));
    }
}

#[tokio::test]
async fn no_note_makes_it_panic() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (_client, server) = pair(0x1302).await;
    let (_io, note) = server.into_note().expect("it may travel");
    let bytes = postcard::to_allocvec(&note).expect("it is written");
    let mut understood = 0;
    for round in 0..50_000 {
        let mut damaged = bytes.clone();
        let at = random.usize(..damaged.len());
        damaged[at] = random.u8(..);
        if round % 3 == 0 {
            damaged.truncate(random.usize(..damaged.len()));
        }
        let Ok(note) = postcard::from_bytes::<TlsNote>(&damaged) else { continue };
        let Ok(records) = Records::from_note(note) else { continue };
        understood += 1;
        if round % 64 == 0 {
            let (mut theirs, ours) = tokio::io::duplex(4096);
            theirs.write_all(&[&[23, 3, 3, 0, 20][..], &[9; 20]].concat()).await.expect("the pipe takes it");
            let mut server = TlsStream::new(ours, records);
            let _ = server.write_all(b"x").await;
            let _ = read_now(&mut server).await;
        }
    }
    assert!(understood > 0);
}
