//! What is counted: how requests ended, and which connections went from one process to the next.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::http::StatusCode;

use crate::handover::parcel::Parcel;
use crate::printable::counted;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer was written whole.
    Answered,
    /// The client closed before the answer was whole.
    ClientGone,
    /// The client read nothing of it for too long.
    Stalled,
    /// The stop cut it.
    Cut,
}

impl Outcome {
    /// Its name in the access log and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ClientGone => "client gone",
            Self::Stalled => "stalled",
            Self::Cut => "cut",
        }
    }
}

/// What has been counted since the start.
#[derive(Debug, Default)]
pub struct Totals {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once, for their client had too many.
    pub turned_away: AtomicU64,
    /// Requests ended, by the first digit of their status; 0 is those that never had one.
    pub by_class: [AtomicU64; 6],
    /// Requests whose client went away.
    pub client_gone: AtomicU64,
    /// Requests the stop cut.
    pub cut: AtomicU64,
    /// Connections given to the next process.
    pub handed_over: Carried,
    /// Connections that could not be: they linger.
    pub stayed: NotCarriedCounts,
    /// Connections taken from an earlier process.
    pub taken_over: Carried,
    /// Connections that an earlier process left and this one closed.
    pub not_understood: AtomicU64,
}

/// Connections that went from one process to the next.
#[derive(Debug, Default)]
pub struct Carried {
    /// Between two requests.
    pub connections: AtomicU64,
    /// Upgraded, and tied to an upstream.
    pub tunnels: AtomicU64,
}

impl Carried {
    /// Connections and tunnels.
    #[must_use]
    pub fn counts(&self) -> [u64; 2] {
        [self.connections.load(Relaxed), self.tunnels.load(Relaxed)]
    }

    /// What counts a parcel.
    pub(in crate::server) fn counter(&self, parcel: &Parcel) -> &AtomicU64 {
        match parcel {
            Parcel::Connection(..) => &self.connections,
            Parcel::Tunnel { .. } => &self.tunnels,
        }
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [connections, tunnels] = self.counts();
        write!(f, "{} and {}", counted(connections, "connection"), counted(tunnels, "tunnel"))
    }
}

/// Why a connection is not carried to the next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NotCarried {
    /// Nothing keeps it until there is a next process.
    NoStore,
    /// The service is stopped for good.
    NoNext,
    /// `[handover]` says so.
    SwitchedOff,
    /// The body of its last request was not read to its end.
    UnreadBody,
    /// The mailbox did not take it.
    MailboxFull,
}

impl NotCarried {
    const ALL: [Self; 5] =
        [Self::NoStore, Self::NoNext, Self::SwitchedOff, Self::UnreadBody, Self::MailboxFull];
}

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStore => "there is no store",
            Self::NoNext => "there is no next process",
            Self::SwitchedOff => "switched off in [handover]",
            Self::UnreadBody => "a request's body was not read",
            Self::MailboxFull => "refused by the mailbox",
        })
    }
}

/// Connections that are not carried, by the reason.
#[derive(Debug, Default)]
pub struct NotCarriedCounts([AtomicU64; NotCarried::ALL.len()]);

impl NotCarriedCounts {
    /// Counts some.
    pub(in crate::server) fn add(&self, reason: NotCarried, connections: usize) {
        self.0[reason as usize].fetch_add(connections as u64, Relaxed);
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

/// The last part of a stop's report: nothing where there are none.
impl fmt::Display for NotCarriedCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (reason, number) in NotCarried::ALL.iter().zip(&self.0) {
            let number = number.load(Relaxed);
            if number > 0 {
                write!(f, "; {} closed: {reason}", counted(number, "connection"))?;
            }
        }
        Ok(())
    }
}

impl Totals {
    pub(super) fn count(&self, outcome: Outcome, status: Option<StatusCode>) {
        let class = status.map_or(0, |s| usize::from(s.as_u16() / 100).min(5));
        self.by_class[class].fetch_add(1, Relaxed);
        match outcome {
            Outcome::Answered => {}
            Outcome::ClientGone | Outcome::Stalled => _ = self.client_gone.fetch_add(1, Relaxed),
            Outcome::Cut => _ = self.cut.fetch_add(1, Relaxed),
        }
    }

    /// Requests ended, in whatever way.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.by_class.iter().map(|n| n.load(Relaxed)).sum()
    }
}
