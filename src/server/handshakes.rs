//! The account of a server's handshakes of TLS.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::tls::{Reason, Session};

/// Handshakes since the start.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    succeeded: AtomicU64,
    failed: [AtomicU64; Reason::ALL.len()],
}

impl Handshakes {
    /// A client and the server have agreed.
    pub(super) fn succeeded(&self, _: &Session) {
        self.succeeded.fetch_add(1, Relaxed);
    }

    /// They have not, for a reason.
    pub(super) fn failed(&self, reason: Reason) {
        self.failed[reason as usize].fetch_add(1, Relaxed);
    }

    /// Those that have failed, by the reason.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(&self.failed).map(|(reason, number)| (reason, number.load(Relaxed)))
    }
}
