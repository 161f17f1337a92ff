//! Parcels: connections on their way from one process to the next, as bytes and descriptors; and counts, and the keys of
//! tickets, as bytes alone.
//!
//! A message is a list of records beside a list of descriptors:
//!
//! ```text
//! version: u8   descriptors: u8   length: u32, little-endian   body: `length` bytes
//! ```
//!
//! A record takes its `descriptors` from the front of the list, so a record that cannot be read is stepped over
//! and the others are not lost. The body of this version is a [`Content`] in postcard's encoding.
//!
//! The successor may be another version of the program, so the bytes are input from outside: nothing in here
//! trusts them, and nothing panics on them.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use postcard::experimental::serialized_size;
use serde::{Deserialize, Serialize};

use crate::tls::{TicketKeys, TlsNote};

/// The version of the records that this program writes, and the only one that it reads.
pub(crate) const VERSION: u8 = 3;

/// The most bytes that a message holds.
pub(super) const MAX_MESSAGE: usize = 8 << 20;

const HEADER: usize = 6;

/// The largest body: a message has room for it. It is more than is read ahead with any limit of a head that the config allows
/// (`daemon/http`), or than a tunnel's two buffers.
pub(crate) const MAX_BODY: usize = MAX_MESSAGE - HEADER;

/// A connection on its way, with its descriptors; or what is no connection.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// An HTTP connection between two requests.
    Connection(OwnedFd, ConnectionNote),
    /// A tunnel: an upgraded connection and the upstream that it leads to.
    Tunnel {
        /// The client's socket.
        client: OwnedFd,
        /// The upstream's.
        upstream: OwnedFd,
        /// All that the successor must know of it.
        note: TunnelNote,
    },
    /// What the process has counted.
    Counts(CountsNote),
    /// What clients resume TLS with.
    Tickets(TicketKeys),
}

/// All that the successor must know of a connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionNote {
    /// The client's address; none for a unix socket.
    pub peer: Option<SocketAddr>,
    /// Requests answered on it.
    pub answered: u64,
    /// The time that it has been idle, in milliseconds.
    pub idle_ms: u64,
    /// Bytes already read: the beginning of the next request.
    pub read_ahead: Bytes,
    /// The state of its TLS; none without. It is in one place at a time, so it is moved and never copied.
    pub tls: Option<TlsNote>,
}

/// All that the successor must know of a tunnel.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TunnelNote {
    /// The client's address; none for a unix socket.
    pub peer: Option<SocketAddr>,
    /// The method of the request that began it.
    pub method: String,
    /// Its path and query.
    pub uri: String,
    /// The time since then, in milliseconds.
    pub age_ms: u64,
    /// The direction to the upstream.
    pub up: Flow,
    /// The direction to the client.
    pub down: Flow,
    /// Its id.
    pub id: String,
    /// The name of its route.
    pub route: String,
    /// The state of the client's TLS, as a connection has it.
    pub tls: Option<TlsNote>,
}

/// One direction of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flow {
    /// Bytes read from one side that the other has yet to take.
    pub unsent: Bytes,
    /// True if the side it comes from has closed: after `unsent` the other is told so.
    pub ended: bool,
}

/// What a process has counted, and has taken from others, since it last told a successor. Sums can be added in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CountsNote {
    /// True of the first one of a process, which has all but what its last requests will add.
    pub first: bool,
    /// The first ones of other processes that this one still waits for: its successor has to, then.
    pub awaited: u32,
    /// The counts.
    pub counts: Vec<Count>,
}

/// A count of what has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// The metric's name.
    pub name: String,
    /// The values of its labels, in the order of the metric's own.
    pub labels: Vec<String>,
    /// How often.
    pub value: u64,
}

/// A record's body. New kinds come last: another program knows the others by their number.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content<C = ConnectionNote, T = TunnelNote, N = CountsNote, K = TicketKeys> {
    /// One descriptor.
    Connection(C),
    /// Two: the client's and the upstream's.
    Tunnel(T),
    /// None.
    Counts(N),
    /// None.
    Tickets(K),
}

impl<C, T, N, K> Content<C, T, N, K> {
    fn descriptors(&self) -> usize {
        match self {
            Self::Connection(_) => 1,
            Self::Tunnel(_) => 2,
            Self::Counts(_) | Self::Tickets(_) => 0,
        }
    }
}

/// The reason why a record was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is another version's.
    #[error("version {0} of the format is not version {VERSION}")]
    Version(u8),
    /// Its body cannot be read.
    #[error("the body is malformed")]
    Body,
    /// It has another number of descriptors than its body needs.
    #[error("{0} descriptors where {1} are needed")]
    Descriptors(usize, usize),
    /// The message ends before the record does: nothing after it can be read either.
    #[error("the message is cut short")]
    Short,
    /// Its message came without the memfd that describes it.
    #[error("the message came without its bytes; are there too few descriptors (LimitNOFILE=)?")]
    Lost,
    /// The bytes of its message are not encrypted under the key that came with it, or none came.
    #[error("the message cannot be decrypted; it is of another version of the format")]
    Encrypted,
    /// It has no descriptors, so it is no connection.
    #[error("{0}")]
    NoConnection(Box<Refusal>),
}

impl Parcel {
    /// Its descriptors, in their order.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (first, second) = match self {
            Self::Connection(socket, _) => (Some(socket), None),
            Self::Tunnel { client, upstream, .. } => (Some(client), Some(upstream)),
            Self::Counts(_) | Self::Tickets(_) => (None, None),
        };
        first.into_iter().chain(second).map(AsFd::as_fd)
    }

    /// True if its client speaks TLS.
    pub(crate) fn is_over_tls(&self) -> bool {
        match self {
            Self::Connection(_, note) => note.tls.is_some(),
            Self::Tunnel { note, .. } => note.tls.is_some(),
            Self::Counts(_) | Self::Tickets(_) => false,
        }
    }

    /// Adds its record to a message. `false`, with the message as it was, if it is too large to travel.
    #[must_use]
    pub(crate) fn write_to(&self, message: &mut Vec<u8>) -> bool {
        let content = match self {
            Self::Connection(_, note) => Content::Connection(note),
            Self::Tunnel { note, .. } => Content::Tunnel(note),
            Self::Counts(note) => Content::Counts(note),
            Self::Tickets(note) => Content::Tickets(note),
        };
        let Ok(length @ ..=MAX_BODY) = serialized_size(&content) else {
            return false;
        };
        // At its full length from the beginning: no copy of a secret is left behind where it has grown.
        message.reserve_exact(HEADER + length);
        message.push(VERSION);
        message.push(u8::try_from(content.descriptors()).unwrap_or(u8::MAX));
        // At most `MAX_BODY`.
        message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        let before = message.len();
        message.resize(before + length, 0);
        postcard::to_slice(&content, &mut message[before..]).is_ok()
    }
}

/// Takes a message apart: a parcel, or the reason why not, for each of its records. Descriptors that no record takes
/// are closed.
#[must_use]
pub(crate) fn read(message: &[u8], descriptors: Vec<OwnedFd>) -> Vec<Result<Parcel, Refusal>> {
    let mut descriptors = descriptors.into_iter();
    records(message)
        .map(|record| {
            let (announced, content) = record?;
            let mut own = descriptors.by_ref().take(announced);
            let (first, second) = (own.next(), own.next());
            own.for_each(drop);
            match (content, first, second) {
                (Ok(Content::Connection(note)), Some(socket), None) => Ok(Parcel::Connection(socket, note)),
                (Ok(Content::Tunnel(note)), Some(client), Some(upstream)) if announced == 2 => {
                    Ok(Parcel::Tunnel { client, upstream, note })
                }
                (Ok(Content::Counts(note)), None, None) if announced == 0 => Ok(Parcel::Counts(note)),
                (Ok(Content::Tickets(note)), None, None) if announced == 0 => Ok(Parcel::Tickets(note)),
                (Ok(content), ..) => Err(Refusal::Descriptors(announced, content.descriptors())),
                (Err(refusal), ..) if announced == 0 => Err(Refusal::NoConnection(Box::new(refusal))),
                (Err(refusal), ..) => Err(refusal),
            }
        })
        .collect()
}

/// The records of a message: how many descriptors each announces, and what it holds.
pub(crate) fn records(
    message: &[u8],
) -> impl Iterator<Item = Result<(usize, Result<Content, Refusal>), Refusal>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((header, after)) = rest.split_first_chunk::<HEADER>() else {
            rest = &[];
            return Some(Err(Refusal::Short));
        };
        let [version, descriptors, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        let Some((body, after)) = after.split_at_checked(length) else {
            rest = &[];
            return Some(Err(Refusal::Short));
        };
        rest = after;
        let content = match version {
            VERSION => postcard::from_bytes(body).map_err(|_| Refusal::Body),
            other => Err(Refusal::Version(other)),
        };
        Some(Ok((usize::from(descriptors), content)))
    })
}

#[cfg(test)]
mod tests {
    //! A record that is written is read, and one that is not understood costs itself alone.

    use proptest::prelude::*;

    use super::super::seeds::{connection, socket, tunnel};
    use super::*;
    use crate::tls::tests::notes;

    #[test]
    fn what_is_written_is_read() {
        for suite in [None, Some(0x1302), Some(0xc02b)] {
            let tls = || suite.map(notes::full);
            let (connection, tunnel) = (connection(b"GET /half", tls()), tunnel(tls()));
            let mut message = Vec::new();
            assert!(connection.write_to(&mut message));
            assert!(tunnel.write_to(&mut message));
            let read = read(&message, vec![socket(), socket(), socket()]);
            let [Ok(Parcel::Connection(_, note)), Ok(Parcel::Tunnel { note: tunnel_note, .. })] = &read[..]
            else {
                panic!("{read:?}");
            };
            let (Parcel::Connection(_, written), Parcel::Tunnel { note: tunnel_written, .. }) =
                (connection, tunnel)
            else {
                unreachable!()
            };
            assert_eq!(*note, written);
            assert_eq!(*tunnel_note, tunnel_written);
        }
    }

    #[test]
    fn another_version_costs_its_own_record_and_descriptors() {
        let mut message = Vec::new();
        assert!(tunnel(None).write_to(&mut message));
        message[0] = VERSION + 1;
        assert!(connection(b"", None).write_to(&mut message));
        let kept = socket();
        let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
        let read = read(&message, vec![socket(), socket(), kept]);
        let [Err(Refusal::Version(_)), Ok(Parcel::Connection(socket, _))] = &read[..] else {
            panic!("{read:?}");
        };
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(socket), number, "the right descriptor");
    }

    #[test]
    fn counts_travel_without_a_descriptor_and_of_another_version_cost_no_connection() {
        let count = Count { name: "requests".into(), labels: vec!["/\"*".into()], value: u64::MAX };
        let note = CountsNote { first: true, awaited: 1, counts: vec![count] };
        let mut message = Vec::new();
        assert!(Parcel::Counts(note.clone()).write_to(&mut message));
        let at = message.len();
        assert!(Parcel::Counts(note.clone()).write_to(&mut message));
        message[at] = VERSION + 1;
        assert!(connection(b"", None).write_to(&mut message));
        let read = read(&message, vec![socket()]);
        let [Ok(Parcel::Counts(read)), Err(Refusal::NoConnection(why)), Ok(Parcel::Connection(..))] =
            &read[..]
        else {
            panic!("{read:?}");
        };
        assert_eq!((read, why), (&note, &Box::new(Refusal::Version(VERSION + 1))));
    }

    #[test]
    fn a_record_without_its_descriptors_is_refused() {
        let mut message = Vec::new();
        assert!(tunnel(None).write_to(&mut message));
        let read = read(&message, vec![socket()]);
        assert!(matches!(&read[..], [Err(Refusal::Descriptors(2, 2))]), "{read:?}");
    }

    #[test]
    fn what_is_too_large_does_not_travel() {
        let mut message = vec![1, 2, 3];
        assert!(!connection(&vec![0; MAX_BODY + 1], None).write_to(&mut message));
        assert_eq!(message, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(message: Vec<u8>, descriptors in 0..4usize) {
            let _ = read(&message, (0..descriptors).map(|_| socket()).collect());
        }

        #[test]
        fn a_damaged_message_yields_at_most_what_was_in_it(
            at: prop::sample::Index,
            byte: u8,
            is_over_tls: bool,
        ) {
            let mut message = Vec::new();
            for _ in 0..3 {
                let parcel = connection(b"GET / HTTP/1.1\r\n", is_over_tls.then(|| notes::full(0x1301)));
                prop_assert!(parcel.write_to(&mut message));
            }
            let at = at.index(message.len());
            message[at] = byte;
            let parcels = read(&message, (0..3).map(|_| socket()).collect());
            prop_assert!(parcels.iter().filter(|p| p.is_ok()).count() <= 3);
        }
    }
}
