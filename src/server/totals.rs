//! The account of a server: how its requests ended, and which connections went from one process to its successor.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::access::{self, AccessLog};
use super::connection;
use super::durations::{Durations, DurationsView};
use super::peer::Peer;
use super::route::{RouteId, RouteNames};
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

/// A request that has ended, with what its connection knows of it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) request: connection::Ended,
    pub(super) route: RouteId,
    pub(super) peer: Peer,
    /// Bytes of its answer that were sent.
    pub(super) sent: u64,
}

/// The account of one thread's requests since the start, and its connections. On a cache line of its own (two, for
/// processors fetch them in pairs): no thread waits for another to count.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    /// By the first digit of their status; 0 is those that never had one.
    by_class: [AtomicU64; 6],
    client_gone: AtomicU64,
    broken_off: AtomicU64,
    cut: AtomicU64,
    /// Bytes of the answers of requests that have ended.
    sent: AtomicU64,
    durations: Durations,
}

/// The account of a server's connections and requests since the start.
pub(crate) struct Totals {
    /// One for each thread that connections live on.
    shards: Box<[Shard]>,
    access: AccessLog,
    routes: RouteNames,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once, for their client had too many.
    pub turned_away: AtomicU64,
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
        f.debug_struct("Totals").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Totals {
    /// An account of so many threads, by routes, that tells `access` of each request.
    pub(crate) fn new(threads: usize, access: AccessLog, routes: RouteNames) -> Self {
        Self {
            shards: (0..threads).map(|_| Shard::default()).collect(),
            access,
            routes,
            accepted: AtomicU64::default(),
            turned_away: AtomicU64::default(),
            handed_over: Carried::default(),
            not_carried: NotCarriedCounts::default(),
            taken_over: Carried::default(),
            not_understood: AtomicU64::default(),
        }
    }

    /// An account of one thread, without a log and metrics.
    pub(crate) fn unobserved() -> Self {
        Self::new(1, AccessLog::off(), RouteNames::new([]))
    }

    /// The thread with the fewest connections.
    pub(super) fn least_loaded(&self) -> usize {
        let loads = self.shards.iter().map(|shard| shard.connections.load(Relaxed));
        loads.enumerate().min_by_key(|(_, load)| *load).map_or(0, |(thread, _)| thread)
    }

    /// A connection has been given to a thread.
    pub(super) fn opened(&self, thread: usize) {
        self.shards[thread].connections.fetch_add(1, Relaxed);
    }

    /// A connection of a thread is closed.
    pub(super) fn closed(&self, thread: usize) {
        self.shards[thread].connections.fetch_sub(1, Relaxed);
    }

    /// A request of a thread's has begun.
    pub(super) fn begun(&self, thread: usize) {
        self.shards[thread].in_flight.fetch_add(1, Relaxed);
    }

    /// The names of the routes.
    pub(crate) fn routes(&self) -> &RouteNames {
        &self.routes
    }

    /// A request of a thread's has ended.
    pub(super) fn ended(&self, thread: usize, ended: Ended) {
        let Ended { request: connection::Ended { exchange, outcome }, route, peer, sent } = ended;
        let shard = &self.shards[thread];
        shard.in_flight.fetch_sub(1, Relaxed);
        match outcome {
            Outcome::Carried => return,
            Outcome::Answered => {}
            Outcome::ClientGone | Outcome::Stalled => _ = shard.client_gone.fetch_add(1, Relaxed),
            Outcome::BrokenOff => _ = shard.broken_off.fetch_add(1, Relaxed),
            Outcome::Cut => _ = shard.cut.fetch_add(1, Relaxed),
        }
        let class = exchange.status.map_or(0, |s| usize::from(s.as_u16() / 100).min(5));
        shard.by_class[class].fetch_add(1, Relaxed);
        let took = exchange.started.elapsed();
        shard.durations.add(took);
        shard.sent.fetch_add(sent, Relaxed);
        self.access.log(&access::Record {
            method: &exchange.method,
            uri: &exchange.uri,
            route: self.routes.name(route),
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
        self.shards.iter().map(|shard| shard.in_flight.load(Relaxed)).sum()
    }

    /// Requests ended, by the first digit of their status; 0 is those that never had one.
    #[must_use]
    pub(crate) fn by_class(&self) -> [u64; 6] {
        std::array::from_fn(|class| self.sum(|shard| &shard.by_class[class]))
    }

    /// Requests whose client went away.
    #[must_use]
    pub(crate) fn client_gone(&self) -> u64 {
        self.sum(|shard| &shard.client_gone)
    }

    /// Requests whose answer broke off on this side.
    #[must_use]
    pub(crate) fn broken_off(&self) -> u64 {
        self.sum(|shard| &shard.broken_off)
    }

    /// Requests that the stop cut.
    #[must_use]
    pub(crate) fn cut(&self) -> u64 {
        self.sum(|shard| &shard.cut)
    }

    /// Requests ended, in whatever way.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.by_class().iter().sum()
    }

    /// Bytes of the answers of requests that have ended.
    #[must_use]
    pub(super) fn sent(&self) -> u64 {
        self.sum(|shard| &shard.sent)
    }

    /// The time that requests took.
    #[must_use]
    pub(crate) fn durations(&self) -> DurationsView {
        let mut view = DurationsView::default();
        self.shards.iter().for_each(|shard| view.add(&shard.durations));
        view
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| counter(shard).load(Relaxed)).sum()
    }
}
