//! The account of a server's handshakes of TLS.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::tls::certificates::{Certificate, Certificates};
use crate::tls::{Reason, Session};

/// The label of a name that is in no certificate, and of no name.
const OTHER: &str = "other";
const NONE: &str = "none";

/// Handshakes since the start, and the certificates that clients are shown.
///
/// A handshake takes a thousand times as long as a lock: these counts need be no faster than one.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    succeeded: Mutex<Succeeded>,
    failed: [AtomicU64; Reason::ALL.len()],
    certificates: OnceLock<Arc<Certificates>>,
}

#[derive(Debug, Default)]
struct Succeeded {
    by_terms: BTreeMap<Terms, u64>,
    by_name: BTreeMap<Box<str>, u64>,
}

/// What a client and the server have agreed on, as metrics and the status show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Terms {
    /// The version: `TLSv1.3`.
    pub(crate) version: &'static str,
    /// The cipher suite, by its name at IANA.
    pub(crate) suite: &'static str,
    /// The protocol (ALPN): `h2`, `http/1.1`, `none`.
    pub(crate) alpn: &'static str,
    /// True if the client has resumed an earlier session.
    pub(crate) resumed: bool,
}

impl Handshakes {
    /// These certificates are shown from now on.
    pub(crate) fn follow(&self, certificates: Arc<Certificates>) {
        // A process has one config.
        let _ = self.certificates.set(certificates);
    }

    /// A client and the server have agreed.
    pub(super) fn succeeded(&self, session: &Session) {
        let terms = Terms {
            version: session.version().name(),
            suite: session.suite_name(),
            alpn: session.alpn().map_or(NONE, |alpn| alpn.name()),
            resumed: session.is_resumed(),
        };
        let name = match (session.server_name(), self.certificates.get()) {
            (None, _) => NONE,
            (Some(name), Some(certificates)) => certificates.name_of(name).unwrap_or(OTHER),
            (Some(_), None) => OTHER,
        };
        let mut succeeded = self.succeeded.lock().unwrap_or_else(PoisonError::into_inner);
        *succeeded.by_terms.entry(terms).or_default() += 1;
        *succeeded.by_name.entry(name.into()).or_default() += 1;
    }

    /// They have not, for a reason.
    pub(super) fn failed(&self, reason: Reason) {
        self.failed[reason as usize].fetch_add(1, Relaxed);
    }

    /// Those that have succeeded, by what was agreed on.
    pub(crate) fn by_terms(&self) -> Vec<(Terms, u64)> {
        let succeeded = self.succeeded.lock().unwrap_or_else(PoisonError::into_inner);
        succeeded.by_terms.iter().map(|(terms, number)| (*terms, *number)).collect()
    }

    /// The same by the name that the client asked for (SNI), as it stands in the certificates: `other` for one that is in
    /// none of them, and `none`.
    pub(crate) fn by_name(&self) -> Vec<(Box<str>, u64)> {
        let succeeded = self.succeeded.lock().unwrap_or_else(PoisonError::into_inner);
        succeeded.by_name.iter().map(|(name, number)| (name.clone(), *number)).collect()
    }

    /// Those that have failed, by the reason.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(&self.failed).map(|(reason, number)| (reason, number.load(Relaxed)))
    }

    /// The certificates; none without TLS.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.get().into_iter().flat_map(|certificates| certificates.iter())
    }

    /// True if there is TLS.
    pub(crate) fn are_possible(&self) -> bool {
        self.certificates.get().is_some()
    }
}
