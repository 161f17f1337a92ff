//! The set of a server's open connections.
//!
//! It feeds the sweep, the drain, the cut events, the report, `STATUS=`, the metrics and `/status` alike. A connection
//! takes its lock when it opens and when it closes, a request never.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::clock::Clock;
use super::connection::{Command, Connection, RequestView, Slot};
use super::departures::Departures;
use super::limits;
use super::peer::Peer;
use super::totals::{Refused, Totals};
use crate::handover::parcel::{ConnectionNote, TunnelNote};

/// The open connections, and how many each client address has.
#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    by_client: HashMap<IpAddr, usize>,
    /// Bytes that those which are closed had received and sent.
    moved_before: [u64; 2],
}

/// The connections of one server.
#[derive(Debug)]
pub(crate) struct Registry {
    clock: Clock,
    /// The watchdog's clock in milliseconds: written by the watchdog alone, read by each connection's task instead of
    /// the time; 0 without a watchdog.
    watchdog_now: AtomicU64,
    started: Instant,
    next_id: AtomicU64,
    open: Mutex<Open>,
    totals: Totals,
    /// Told when the last connection is gone, and when the first one comes.
    changed: Notify,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub(crate) fn new(totals: Totals) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::new(),
            watchdog_now: AtomicU64::new(0),
            started: Instant::now(),
            next_id: AtomicU64::new(0),
            open: Mutex::default(),
            totals,
            changed: Notify::new(),
        })
    }

    /// A connection was accepted.
    pub(crate) fn accepted(
        self: &Arc<Self>,
        thread: usize,
        peer: Peer,
        trusted: bool,
        departures: Option<Arc<Departures>>,
    ) -> Arc<Connection> {
        self.totals.accepted.fetch_add(1, Relaxed);
        self.insert(Connection::accepted(self.slot(thread), peer, trusted, Arc::clone(self), departures))
    }

    /// A connection has come from another process.
    pub(super) fn taken_over(
        self: &Arc<Self>,
        thread: usize,
        trusted: bool,
        departures: Option<Arc<Departures>>,
        note: &ConnectionNote,
    ) -> Arc<Connection> {
        self.insert(Connection::taken_over(self.slot(thread), trusted, Arc::clone(self), departures, note))
    }

    /// A tunnel has come from another process.
    pub(super) fn tunnel_taken_over(
        self: &Arc<Self>,
        thread: usize,
        departures: Option<Arc<Departures>>,
        note: &TunnelNote,
    ) -> io::Result<Arc<Connection>> {
        Ok(self.insert(Connection::tunnel(self.slot(thread), Arc::clone(self), departures, note)?))
    }

    /// A place for a connection, or for a stream.
    pub(super) fn slot(&self, thread: usize) -> Slot {
        Slot { id: self.next_id.fetch_add(1, Relaxed), thread }
    }

    fn insert(&self, connection: Connection) -> Arc<Connection> {
        let connection = Arc::new(connection);
        self.totals.opened(connection.slot().thread);
        let mut open = self.lock();
        open.connections.insert(connection.slot().id, Arc::clone(&connection));
        if let Some(client) = limits::client(connection.peer()) {
            *open.by_client.entry(client).or_default() += 1;
        }
        if open.connections.len() == 1 {
            self.changed.notify_waiters();
        }
        connection
    }

    pub(super) fn remove(&self, connection: &Connection) {
        self.totals.closed(connection.slot().thread);
        let mut open = self.lock();
        if open.connections.remove(&connection.slot().id).is_some() {
            let moved = connection.moved();
            open.moved_before = std::array::from_fn(|way| open.moved_before[way] + moved[way]);
        }
        if let Some(client) = limits::client(connection.peer())
            && let Entry::Occupied(mut count) = open.by_client.entry(client)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if open.connections.is_empty() {
            self.changed.notify_waiters();
        }
    }

    /// The number of open connections of a client address.
    pub(super) fn connections_of(&self, client: IpAddr) -> usize {
        self.lock().by_client.get(&client).copied().unwrap_or_default()
    }

    /// Every open connection. A copy, so that the lock is free while the connections are looked at.
    #[must_use]
    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock().connections.values().cloned().collect()
    }

    /// Everything that may have a request: the open connections, and before those that speak HTTP/2 their streams.
    pub(super) fn connections_and_streams(&self) -> impl Iterator<Item = Arc<Connection>> {
        self.connections().into_iter().flat_map(|connection| {
            let streams = connection.streams();
            streams.into_iter().chain([connection])
        })
    }

    /// The number of open connections without a request in flight.
    #[must_use]
    pub(crate) fn idle(&self) -> usize {
        self.connections().iter().filter(|connection| !connection.is_busy()).count()
    }

    /// The number of open connections.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// Bytes received from clients, and sent to them, since the start. A connection that closes meanwhile is counted once:
    /// it is among the copies, and was not yet in `moved_before`.
    #[must_use]
    pub(crate) fn moved(&self) -> [u64; 2] {
        let (before, connections) = {
            let open = self.lock();
            (open.moved_before, open.connections.values().cloned().collect::<Vec<_>>())
        };
        connections
            .iter()
            .map(|connection| connection.moved())
            .fold(before, |sum, moved| std::array::from_fn(|way| sum[way] + moved[way]))
    }

    /// True if no connection is open.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().connections.is_empty()
    }

    /// The number of requests being answered, tunnels among them.
    #[must_use]
    pub(crate) fn in_flight(&self) -> usize {
        self.totals.in_flight()
    }

    /// The requests in flight, oldest first.
    #[must_use]
    pub(crate) fn requests(&self) -> Vec<RequestView> {
        let mut requests: Vec<_> = self.connections_and_streams().filter_map(|c| c.view()).collect();
        requests.sort_by_key(|r| std::cmp::Reverse(r.age));
        requests
    }

    /// The oldest requests in flight, at most so many, and the number of all. Nothing is copied of the others.
    #[must_use]
    pub(crate) fn oldest_requests(&self, most: usize) -> (Vec<RequestView>, usize) {
        let mut requests: Vec<_> =
            self.connections_and_streams().filter_map(|c| Some((c.request_since()?, c))).collect();
        let number = requests.len();
        requests.sort_unstable_by_key(|(since, _)| *since);
        // One may have ended meanwhile.
        (requests.iter().take(most).filter_map(|(_, c)| c.view()).collect(), number)
    }

    /// The account of everything that this server has served.
    #[must_use]
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Closes every connection now, whatever is in flight.
    pub(crate) fn cut(&self) {
        for connection in self.connections() {
            connection.commands().give(Command::Cut);
        }
    }

    /// Closes the connection that has been without a request for longest, so that its permit is free for another. Those
    /// of this machine come last, so that an operator there gets in.
    pub(super) fn evict(&self) {
        let connections = self.connections();
        let candidates = connections.iter().filter_map(|c| Some((c.without_request_since()?, c)));
        let first = candidates.min_by_key(|(since, c)| (limits::client(c.peer()).is_none(), *since));
        if let Some((_, connection)) = first {
            // Before the client can see it.
            self.totals.refused.add(Refused::Evicted);
            connection.commands().give(Command::Drop);
        }
    }

    /// Returns when no connection is open.
    pub(crate) async fn emptied(&self) {
        self.until(Self::is_empty).await;
    }

    /// Returns when a connection is open.
    pub(crate) async fn occupied(&self) {
        self.until(|r| !r.is_empty()).await;
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Enlist before looking, or a change between the two would be missed.
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// The clock that connections are timed by.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The time on the watchdog's clock.
    pub(super) fn watchdog_now(&self) -> u64 {
        self.watchdog_now.load(Relaxed)
    }

    /// Sets the watchdog's clock.
    pub(crate) fn tick(&self) {
        // Never 0: that means "no watchdog".
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.watchdog_now.store(now, Relaxed);
    }

    /// The requests whose handler has blocked its thread for `limit` or longer: a key that is another one each time
    /// that it does, the request, and for how long.
    pub(crate) fn blocked_for(&self, limit: Duration) -> Vec<((u64, u64), RequestView, Duration)> {
        let now = self.watchdog_now();
        let blocked_for = |connection: &Arc<Connection>| {
            let progress = connection.progress();
            let since = progress.handler.since().or(progress.task.since())?;
            let blocked = Duration::from_millis(now.saturating_sub(since));
            Some(((connection.slot().id, since), connection.view()?, blocked)).filter(|_| blocked >= limit)
        };
        self.connections_and_streams().filter_map(|c| blocked_for(&c)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
