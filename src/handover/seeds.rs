//! What `fuzz/seeds/parcels` begins with is what its names say, in the format of this version.
//!
//! `UPDATE_EXPECTED=1` writes the files anew. Whoever changes the format has to: a fuzzer that begins with messages of
//! another version gets no further than their first byte.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use bytes::Bytes;

use super::parcel::{self, ConnectionNote, Count, CountsNote, Flow, Parcel, Refusal, TunnelNote, VERSION};
use crate::tls::tests::notes;
use crate::tls::{Records, TlsNote};

const FOLDER: &str = "fuzz/seeds/parcels";

/// A suite of TLS 1.3, and one of TLS 1.2.
const TLS_1_3: u16 = 0x1302;
const TLS_1_2: u16 = 0xc02b;

pub(super) fn socket() -> OwnedFd {
    UnixStream::pair().expect("a pair of sockets").0.into()
}

pub(super) fn connection(read_ahead: &[u8], tls: Option<TlsNote>) -> Parcel {
    let note = ConnectionNote {
        peer: Some(([127, 0, 0, 1], 4711).into()),
        answered: 3,
        idle_ms: 1500,
        read_ahead: Bytes::copy_from_slice(read_ahead),
        tls,
    };
    Parcel::Connection(socket(), note)
}

pub(super) fn tunnel(tls: Option<TlsNote>) -> Parcel {
    let note = TunnelNote {
        peer: Some((std::net::Ipv6Addr::LOCALHOST, 443).into()),
        method: "GET".into(),
        uri: "/chat?room=1".into(),
        age_ms: 60_000,
        up: Flow { unsent: Bytes::from_static(b"to the upstream"), ended: false },
        down: Flow { unsent: Bytes::new(), ended: true },
        id: "0123456789abcdef0123456789abcdef".into(),
        route: "/app/*".into(),
        tls,
    };
    Parcel::Tunnel { client: socket(), upstream: socket(), note }
}

fn counts() -> Parcel {
    let labels = ["/app/*", "GET", "200"].map(String::from).into();
    let count = Count { name: "steadfast_http_requests_total".into(), labels, value: 300 };
    Parcel::Counts(CountsNote { first: true, awaited: 1, counts: vec![count] })
}

fn message(parcels: impl IntoIterator<Item = Parcel>) -> Vec<u8> {
    let mut message = Vec::new();
    for parcel in parcels {
        assert!(parcel.write_to(&mut message));
    }
    message
}

/// A message with another byte at this place.
fn changed(mut message: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    message[at] = byte;
    message
}

/// Its name, the message, and what is read of it.
type Seed = (&'static str, Vec<u8>, Vec<Result<&'static str, Refusal>>);

fn seeds() -> Vec<Seed> {
    let full = |suite| Some(notes::full(suite));
    let mut unknown = notes::full(TLS_1_3);
    let (make_unknown, why) = notes::UNKNOWN_SUITE;
    make_unknown(&mut unknown);
    let cut = message([tunnel(full(TLS_1_3))]);
    vec![
        ("connection", message([connection(b"", None)]), vec![Ok("connection")]),
        (
            "connections",
            message([connection(b"GET /half", None), connection(b"", None)]),
            vec![Ok("connection"); 2],
        ),
        (
            "connection_over_tls",
            message([connection(b"", full(TLS_1_3))]),
            vec![Ok("connection over TLSv1.3")],
        ),
        (
            "connection_over_tls_1_2",
            message([connection(b"GET /half", full(TLS_1_2))]),
            vec![Ok("connection over TLSv1.2")],
        ),
        ("connection_of_an_unknown_suite", message([connection(b"", Some(unknown))]), vec![Ok(why)]),
        ("tunnel", message([tunnel(None)]), vec![Ok("tunnel")]),
        ("tunnel_over_tls", message([tunnel(full(TLS_1_3))]), vec![Ok("tunnel over TLSv1.3")]),
        ("tunnel_over_tls_1_2", message([tunnel(full(TLS_1_2))]), vec![Ok("tunnel over TLSv1.2")]),
        ("counts", message([counts()]), vec![Ok("counts")]),
        ("tickets", message([Parcel::Tickets(notes::ticket_keys())]), vec![Ok("tickets")]),
        ("both", message([tunnel(None), connection(b"", None)]), vec![Ok("tunnel"), Ok("connection")]),
        ("cut_short", cut[..cut.len() / 2].to_vec(), vec![Err(Refusal::Short)]),
        (
            "another_version",
            changed(message([tunnel(None), connection(b"", None)]), 0, VERSION + 1),
            vec![Err(Refusal::Version(VERSION + 1)), Ok("connection")],
        ),
        (
            "wrong_descriptors",
            changed(message([connection(b"", None), connection(b"", None)]), 1, 3),
            vec![Err(Refusal::Descriptors(3, 1)), Ok("connection")],
        ),
    ]
}

/// What is read of a message that has all its descriptors.
fn read(message: &[u8]) -> Vec<Result<String, Refusal>> {
    let announced = parcel::records(message).filter_map(|record| Some(record.ok()?.0)).sum();
    let over_tls = |kind: &str, tls: Option<TlsNote>| match tls.map(Records::from_note) {
        None => kind.to_owned(),
        Some(Ok(records)) => format!("{kind} over {}", records.session().version().name()),
        Some(Err(error)) => error.to_string(),
    };
    let named = |parcel| match parcel {
        Parcel::Connection(_, note) => over_tls("connection", note.tls),
        Parcel::Tunnel { note, .. } => over_tls("tunnel", note.tls),
        Parcel::Counts(_) => "counts".to_owned(),
        Parcel::Tickets(_) => "tickets".to_owned(),
    };
    let descriptors = std::iter::repeat_with(socket).take(announced).collect();
    parcel::read(message, descriptors).into_iter().map(|parcel| parcel.map(named)).collect()
}

#[test]
fn each_seed_of_the_fuzzer_is_what_its_name_says() {
    let seeds = seeds();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        for (name, message, _) in &seeds {
            fs::write(folder.join(name), message).expect("it is written");
        }
    }
    let lie_there: BTreeSet<_> = fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    assert_eq!(lie_there.len(), 14, "{lie_there:?}");
    assert_eq!(lie_there, seeds.iter().map(|(name, ..)| (*name).to_owned()).collect());
    for (name, made, expected) in &seeds {
        let stored = fs::read(folder.join(name)).expect("it is read");
        let expected: Vec<_> = expected.iter().cloned().map(|read| read.map(str::to_owned)).collect();
        assert_eq!(read(&stored), expected, "{FOLDER}/{name}; UPDATE_EXPECTED=1 writes it");
        assert!(stored == *made, "{FOLDER}/{name} is not what is written today; UPDATE_EXPECTED=1 writes it");
    }
}
