//! Notes for the tests of whoever carries them, to whom a note shows nothing.

use crate::tls::TicketKeys;
use crate::tls::note::HalfNote;
use crate::tls::records::Counts;
use crate::tls::session::{Alpn, Session};

use super::*;

/// A note of which each field has something in it, as far as its suite's version allows. It is always the same.
pub(crate) fn full(id: u16) -> TlsNote {
    let suite = suite(id);
    let half = |byte: u8, seq| {
        let material = (1..=48).map(|length| vec![byte; length]);
        let material = material.into_iter().find(|material| Material::new(suite, material).is_some());
        HalfNote { material: material.expect("one of them has its length"), seq }
    };
    let updates = suite.version == Version::Tls13;
    TlsNote {
        session: Session {
            suite: id,
            alpn: Some(Alpn::Http1),
            server_name: Some("example.org".into()),
            client: Some("CN=client".into()),
            resumed: true,
            policy: 7,
        },
        read: half(1, 3),
        write: half(2, 300),
        owes_update: updates,
        counts: Counts::default(),
        handshake: if updates { vec![24, 0] } else { Vec::new() },
        plain: b"GET /half".to_vec(),
        raw: vec![23, 3, 3, 0, 40, 9],
        unsent: vec![23, 3, 3, 0, 20, 9, 9],
    }
}

/// What makes a note one that no connection goes on from, and the reason that is given.
pub(crate) type Damage = (fn(&mut TlsNote), &'static str);

pub(crate) const UNKNOWN_SUITE: Damage = (|note| note.session.suite = 0x1304, "unknown cipher suite 0x1304");
pub(crate) const SHORT_SECRET: Damage =
    (|note| note.read.material.truncate(10), "keying material of a wrong length");
/// Each of these.
pub(crate) const DAMAGES: [Damage; 2] = [UNKNOWN_SUITE, SHORT_SECRET];

/// The number of bytes that a note has of records that have not come whole, and of those that have not been sent.
pub(crate) fn held(note: &TlsNote) -> [usize; 2] {
    [note.raw.len(), note.unsent.len()]
}

/// The keys of tickets, which are always the same.
pub(crate) fn ticket_keys() -> TicketKeys {
    let (name, key, made) = ([1_u8; 16], [2_u8; 32], 1_800_000_000_u64);
    let bytes = postcard::to_allocvec(&[(name, key, made)][..]).expect("they are written");
    postcard::from_bytes(&bytes).expect("they are read")
}
