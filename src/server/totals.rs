//! The account of a server: how its requests ended, and which connections went from one process to its successor.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::access::{self, AccessLog};
use super::connection::Ended;
use super::peer::Peer;
use crate::handover::NotCarried;
use crate::handover::parcel::Parcel;
use crate::printable::counted;

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its answer was written whole.
    Answered,
    /// The client closed before the answer was whole.
    ClientGone,
    /// The client read nothing of it for too long.
    Stalled,
    /// Its handler, or the upstream, did not produce the rest of the answer.
    BrokenOff,
    /// The stop cut it.
    Cut,
    /// It goes on in the successor: for this process it neither ends nor counts.
    Carried,
}

impl Outcome {
    /// Its name in the access log and in metrics.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ClientGone => "client gone",
            Self::Stalled => "stalled",
            Self::BrokenOff => "broken off",
            Self::Cut => "cut",
            Self::Carried => "carried",
        }
    }
}

/// The account of a server's connections and requests since the start.
pub(crate) struct Totals {
    in_flight: AtomicUsize,
    durations: metrics::Histogram,
    access: AccessLog,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once, for their client had too many.
    pub turned_away: AtomicU64,
    /// Requests ended, by the first digit of their status; 0 is those that never had one.
    pub by_class: [AtomicU64; 6],
    /// Requests whose client went away.
    pub client_gone: AtomicU64,
    /// Requests whose answer broke off on this side.
    pub broken_off: AtomicU64,
    /// Requests the stop cut.
    pub cut: AtomicU64,
    /// Connections given to the successor.
    pub handed_over: Carried,
    /// Connections that could not be given to it: they linger.
    pub not_carried: NotCarriedCounts,
    /// Connections taken from a predecessor.
    pub taken_over: Carried,
    /// Connections that a predecessor left and this process closed: it could not read what they are.
    pub not_understood: AtomicU64,
}

/// Connections that went from one process to its successor.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Between two requests.
    pub connections: AtomicU64,
    /// Tunnels through `proxy`.
    pub tunnels: AtomicU64,
}

impl Carried {
    /// Connections and tunnels.
    #[must_use]
    pub(crate) fn counts(&self) -> [u64; 2] {
        [self.connections.load(Relaxed), self.tunnels.load(Relaxed)]
    }

    /// The number of connections, and of tunnels, among parcels.
    pub(super) fn kinds(parcels: &[Parcel]) -> [u64; 2] {
        let tunnels = parcels.iter().filter(|parcel| matches!(parcel, Parcel::Tunnel { .. })).count();
        [(parcels.len() - tunnels) as u64, tunnels as u64]
    }

    /// Counts those that are not left, of each kind.
    pub(super) fn add(&self, before: [u64; 2], left: [u64; 2]) {
        self.connections.fetch_add(before[0] - left[0], Relaxed);
        self.tunnels.fetch_add(before[1] - left[1], Relaxed);
    }

    /// The counter of a parcel's kind.
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

/// Connections that are not carried, by the reason.
#[derive(Debug, Default)]
pub(crate) struct NotCarriedCounts([AtomicU64; NotCarried::ALL.len()]);

impl NotCarriedCounts {
    /// Adds to a reason's counter.
    pub(in crate::server) fn add(&self, reason: NotCarried, connections: usize) {
        self.0[reason as usize].fetch_add(connections as u64, Relaxed);
    }

    /// All of them.
    #[must_use]
    pub(crate) fn total(&self) -> u64 {
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

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Totals").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Totals {
    /// An account that records each request's duration in seconds, and tells `access` of it.
    pub(crate) fn new(durations: metrics::Histogram, access: AccessLog) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            durations,
            access,
            accepted: AtomicU64::default(),
            turned_away: AtomicU64::default(),
            by_class: Default::default(),
            client_gone: AtomicU64::default(),
            broken_off: AtomicU64::default(),
            cut: AtomicU64::default(),
            handed_over: Carried::default(),
            not_carried: NotCarriedCounts::default(),
            taken_over: Carried::default(),
            not_understood: AtomicU64::default(),
        }
    }

    /// An account without a log and metrics.
    pub(crate) fn unobserved() -> Self {
        Self::new(metrics::Histogram::noop(), AccessLog::off())
    }

    /// A request has begun.
    pub(super) fn begun(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request has ended, with so many bytes of its answer sent.
    pub(super) fn ended(&self, ended: Ended, peer: Peer, sent: u64) {
        let Ended { exchange, outcome } = ended;
        self.in_flight.fetch_sub(1, Relaxed);
        match outcome {
            Outcome::Carried => return,
            Outcome::Answered => {}
            Outcome::ClientGone | Outcome::Stalled => _ = self.client_gone.fetch_add(1, Relaxed),
            Outcome::BrokenOff => _ = self.broken_off.fetch_add(1, Relaxed),
            Outcome::Cut => _ = self.cut.fetch_add(1, Relaxed),
        }
        let class = exchange.status.map_or(0, |s| usize::from(s.as_u16() / 100).min(5));
        self.by_class[class].fetch_add(1, Relaxed);
        let took = exchange.started.elapsed();
        self.durations.record(took.as_secs_f64());
        self.access.log(&access::Record {
            method: &exchange.method,
            uri: &exchange.uri,
            peer,
            status: exchange.status,
            outcome,
            took,
            sent,
        });
    }

    /// The number of requests being answered, tunnels among them.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Requests ended, in whatever way.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.by_class.iter().map(|n| n.load(Relaxed)).sum()
    }
}
