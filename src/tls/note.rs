//! What the next process must know of a TLS connection: its keying material, and where both directions stand.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::records::Counts;
use super::session::Session;

/// The state of a connection between two records. It is a connection's keys: whoever has it can read and continue what
/// the two sides say. So there is one of it at a time (it is no `Clone`), and it shows itself to no log.
///
/// Of the two owners of one note both would seal with the same numbers, and a nonce that is used twice gives the keys away.
#[derive(PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct TlsNote {
    #[zeroize(skip)]
    pub(super) session: Session,
    /// What the client seals.
    pub(super) read: HalfNote,
    /// What we seal.
    pub(super) write: HalfNote,
    /// True if the client has asked for a KeyUpdate that has not been sent.
    pub(super) owes_update: bool,
    #[zeroize(skip)]
    pub(super) counts: Counts,
    /// The beginning of a handshake message.
    pub(super) handshake: Vec<u8>,
    /// Received and opened, not yet read.
    pub(super) plain: Vec<u8>,
    /// Received, not yet opened.
    pub(super) raw: Vec<u8>,
    /// Sealed, not yet sent.
    pub(super) unsent: Vec<u8>,
}

/// One direction.
#[derive(PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(super) struct HalfNote {
    pub(super) material: Vec<u8>,
    /// The number of the next record.
    pub(super) seq: u64,
}

impl fmt::Debug for TlsNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsNote").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Why a note cannot be continued. It is input from outside: another version of the program may have written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoteError {
    /// This program does not know its cipher suite.
    #[error("unknown cipher suite {0:#06x}")]
    Suite(u16),
    /// Its keying material has not the suite's length.
    #[error("keying material of a wrong length")]
    Material,
    /// No connection gets this far.
    #[error("a sequence number out of range")]
    Sequence,
    /// More is buffered than a connection would have.
    #[error("more bytes than a connection holds")]
    Length,
    /// It contradicts itself.
    #[error("a state that no connection has")]
    State,
}
