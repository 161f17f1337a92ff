//! The account of a server: how its requests ended, and which connections went from one process to its successor.

use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::access::{self, AccessLog};
use super::connection;
use super::durations::{Durations, DurationsView};
use super::handshakes::Handshakes;
use super::peer::Peer;
use super::requests::{Labels, Places, Requests};
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
    /// The same of the answer's body.
    pub(super) body: u64,
}

/// The account of one thread's requests since the start, and its connections. On a cache line of its own (two, for
/// processors fetch them in pairs): no thread waits for another to count.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    requests: Requests,
    client_gone: AtomicU64,
    broken_off: AtomicU64,
    cut: AtomicU64,
    durations: Durations,
}

/// The account of a server's connections and requests since the start.
pub(crate) struct Totals {
    /// One for each thread that connections live on.
    shards: Box<[Shard]>,
    access: AccessLog,
    routes: RouteNames,
    places: Places,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Clients that were not served, or not to the end.
    pub refused: RefusedCounts,
    /// Handshakes of TLS.
    pub handshakes: Handshakes,
    /// Connections given to the successor.
    pub handed_over: Carried,
    /// Connections that could not be given to it: they linger.
    pub not_carried: NotCarriedCounts,
    /// Connections taken from a predecessor.
    pub taken_over: Carried,
    /// Connections that a predecessor left and this process closed: it could not read what they are, or their TLS had come
    /// before.
    pub not_understood: AtomicU64,
    /// The same of those that it could read: their clients were judged by another policy than `[https]` has now.
    pub judged_otherwise: AtomicU64,
}

/// Connections that went from one process to its successor.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Between two requests.
    pub connections: AtomicU64,
    /// Tunnels through `proxy`.
    pub tunnels: AtomicU64,
    /// Those of both over TLS.
    pub over_tls: AtomicU64,
}

impl Carried {
    /// Connections and tunnels.
    #[must_use]
    pub(crate) fn counts(&self) -> [u64; 2] {
        [self.connections.load(Relaxed), self.tunnels.load(Relaxed)]
    }

    /// The number of those of both over TLS.
    #[must_use]
    pub(crate) fn over_tls(&self) -> u64 {
        self.over_tls.load(Relaxed)
    }

    /// The number of connections and of tunnels among parcels, and of those over TLS.
    pub(super) fn kinds(parcels: &[Parcel]) -> [u64; 3] {
        let number = |is: fn(&Parcel) -> bool| parcels.iter().filter(|parcel| is(parcel)).count() as u64;
        [
            number(|parcel| matches!(parcel, Parcel::Connection(..))),
            number(|parcel| matches!(parcel, Parcel::Tunnel { .. })),
            number(Parcel::is_over_tls),
        ]
    }

    /// Counts those that are not left, of each kind.
    pub(super) fn add(&self, before: [u64; 3], left: [u64; 3]) {
        for (counter, (before, left)) in
            [&self.connections, &self.tunnels, &self.over_tls].into_iter().zip(before.into_iter().zip(left))
        {
            counter.fetch_add(before - left, Relaxed);
        }
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [connections, tunnels] = self.counts();
        write!(f, "{} and {}", counted(connections, "connection"), counted(tunnels, "tunnel"))?;
        match self.over_tls() {
            0 => Ok(()),
            over_tls => write!(f, " ({over_tls} over TLS)"),
        }
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

    /// Those of each reason.
    pub(crate) fn by_reason(&self) -> impl Iterator<Item = (NotCarried, u64)> {
        NotCarried::ALL.into_iter().zip(&self.0).map(|(reason, number)| (reason, number.load(Relaxed)))
    }

    /// All of them.
    #[must_use]
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

/// The reasons for which a client is not served, or not to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It sent no request, or what no server may take for one (400).
    BadRequest,
    /// Its head was too large (431, or 414).
    HeadTooLarge,
    /// Its head did not come in time (408).
    HeaderTimeout,
    /// The body was too large (413).
    BodyTooLarge,
    /// The body did not come in time, or too slowly (408, or the connection was closed).
    SlowBody,
    /// The answer was not read in time, or too slowly.
    SlowReader,
    /// Its tunnel was silent for too long.
    SilentTunnel,
    /// It had too many connections.
    ConnectionsPerClient,
    /// It waited in the backlog, for there were too many connections.
    Waited,
    /// It was closed without a request in flight, for another to be served.
    Evicted,
    /// It sent many frames of HTTP/2 that ask for nothing, or took back its requests as fast as it made them.
    Flood,
}

impl Refused {
    const ALL: [Self; 11] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::HeaderTimeout,
        Self::BodyTooLarge,
        Self::SlowBody,
        Self::SlowReader,
        Self::SilentTunnel,
        Self::ConnectionsPerClient,
        Self::Waited,
        Self::Evicted,
        Self::Flood,
    ];

    /// Its name in metrics.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::SilentTunnel => "silent_tunnel",
            Self::ConnectionsPerClient => "connections_per_client",
            Self::Waited => "waited",
            Self::Evicted => "evicted",
            Self::Flood => "flood",
        }
    }
}

/// Clients that were not served, by the reason.
#[derive(Debug, Default)]
pub(crate) struct RefusedCounts([AtomicU64; Refused::ALL.len()]);

impl RefusedCounts {
    /// Counts one.
    pub(in crate::server) fn add(&self, reason: Refused) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    /// Those of each reason.
    pub(crate) fn by_reason(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().zip(&self.0).map(|(reason, number)| (reason, number.load(Relaxed)))
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
            places: Places::new(),
            accepted: AtomicU64::default(),
            refused: RefusedCounts::default(),
            handshakes: Handshakes::default(),
            handed_over: Carried::default(),
            not_carried: NotCarriedCounts::default(),
            taken_over: Carried::default(),
            not_understood: AtomicU64::default(),
            judged_otherwise: AtomicU64::default(),
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

    /// The access log.
    pub(crate) fn access(&self) -> &AccessLog {
        &self.access
    }

    /// The names of the routes.
    pub(crate) fn routes(&self) -> &RouteNames {
        &self.routes
    }

    /// A request of a thread's has ended.
    pub(super) fn ended(&self, thread: usize, ended: Ended) {
        let shard = &self.shards[thread];
        if ended.request.outcome != Outcome::Carried {
            self.count(shard, ended);
        }
        // Last: whoever sees none in flight finds all of them counted. `Release`, with the `Acquire` of `in_flight`.
        shard.in_flight.fetch_sub(1, Release);
    }

    /// Counts a request that has ended here, and logs it.
    fn count(&self, shard: &Shard, ended: Ended) {
        let Ended { request: connection::Ended { exchange, outcome }, route, peer, sent, body } = ended;
        match outcome {
            Outcome::Answered | Outcome::Carried => {}
            Outcome::ClientGone | Outcome::Stalled => _ = shard.client_gone.fetch_add(1, Relaxed),
            Outcome::BrokenOff => _ = shard.broken_off.fetch_add(1, Relaxed),
            Outcome::Cut => _ = shard.cut.fetch_add(1, Relaxed),
        }
        shard.requests.add(&self.places, route, &exchange.method, exchange.status);
        let took = exchange.started.elapsed();
        shard.durations.add(took);
        self.access.log(access::Ended {
            exchange,
            route: self.routes.name(route),
            peer,
            outcome,
            took,
            sent,
            body,
        });
    }

    /// The number of requests being answered, tunnels among them.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.shards.iter().map(|shard| shard.in_flight.load(Acquire)).sum()
    }

    /// Requests ended, by route, method and status.
    pub(crate) fn requests_apart(&self) -> impl Iterator<Item = (Labels, u64)> {
        let sum = |place| self.shards.iter().map(|shard| shard.requests.at(place)).sum();
        self.places.all(&self.routes).map(move |(place, labels)| (labels, sum(place)))
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
        self.shards.iter().map(|shard| shard.requests.total()).sum()
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
