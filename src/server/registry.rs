//! Every connection the daemon holds, and the request that each is answering.
//!
//! One registry feeds the drain, the cut events, the report, `STATUS=`, the metrics and `/status` alike. It is
//! written from three places: the accept loop opens a connection, the connection's IO says what was read and
//! flushed and closes it, and the request's guard says what is being answered. Whoever wants something of a
//! connection leaves an [`Order`] and wakes its task.
//!
//! A request costs two uncontended locks and a handful of relaxed atomics; a connection costs one shared lock when
//! it opens and one when it closes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::access::AccessLog;
use super::connection::{Connection, RequestView};
use super::limits;
use super::peer::Peer;
use super::state::Command;
use super::totals::Totals;
use crate::handover::parcel::{ConnectionNote, Parcel, TunnelNote};

/// The open connections, and how many each client address has.
#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    by_client: HashMap<IpAddr, usize>,
}

/// The connections of one listener child.
pub struct Registry {
    /// What `Connection::since` counts from.
    epoch: Instant,
    /// The watchdog's clock in milliseconds, which nobody else has to read the time for; 0 without a watchdog.
    pub(super) ticks: AtomicU64,
    next_id: AtomicU64,
    open: Mutex<Open>,
    pub(super) in_flight: AtomicUsize,
    pub(super) totals: Totals,
    pub(super) durations: metrics::Histogram,
    pub(super) access: AccessLog,
    /// Connections that leave, on their way to the mailbox.
    pub(super) outbox: mpsc::UnboundedSender<Parcel>,
    leaving: tokio::sync::Mutex<mpsc::UnboundedReceiver<Parcel>>,
    /// Told when the last connection is gone, and when the first one comes.
    changed: Notify,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty registry that records each request's duration in seconds, and tells `access` of it.
    #[must_use]
    pub(crate) fn new(durations: metrics::Histogram, access: AccessLog) -> Arc<Self> {
        let (outbox, leaving) = mpsc::unbounded_channel();
        Arc::new(Self {
            epoch: Instant::now(),
            ticks: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            open: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            totals: Totals::default(),
            durations,
            access,
            outbox,
            leaving: tokio::sync::Mutex::new(leaving),
            changed: Notify::new(),
        })
    }

    /// A connection was accepted.
    pub(crate) fn open(self: &Arc<Self>, peer: Peer, trusted: bool) -> Arc<Connection> {
        self.totals.accepted.fetch_add(1, Relaxed);
        self.insert(peer, trusted, 0, Duration::ZERO)
    }

    /// A connection has come from an earlier process.
    pub(super) fn reopen(self: &Arc<Self>, note: &ConnectionNote, trusted: bool) -> Arc<Connection> {
        self.insert(note.peer.into(), trusted, note.answered, Duration::from_millis(note.idle_ms))
    }

    /// A tunnel has come from an earlier process: a request that goes on.
    pub(super) fn reopen_upgraded(self: &Arc<Self>, note: &TunnelNote) -> io::Result<Arc<Connection>> {
        let method = note.method.parse().map_err(io::Error::other)?;
        let uri = note.uri.parse().map_err(io::Error::other)?;
        let connection = self.insert(note.peer.into(), false, 0, Duration::ZERO);
        connection.go_on(method, uri, Duration::from_millis(note.age_ms));
        Ok(connection)
    }

    fn insert(self: &Arc<Self>, peer: Peer, trusted: bool, answered: u64, idle: Duration) -> Arc<Connection> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection::new(id, peer, trusted, Arc::clone(self), answered, idle));
        let mut open = self.lock();
        open.connections.insert(id, Arc::clone(&connection));
        if let Some(client) = limits::client(peer) {
            *open.by_client.entry(client).or_default() += 1;
        }
        if open.connections.len() == 1 {
            self.changed.notify_waiters();
        }
        connection
    }

    pub(super) fn remove(&self, connection: &Connection) {
        let mut open = self.lock();
        open.connections.remove(&connection.id());
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

    /// How many connections a client address has open.
    pub(super) fn connections_of(&self, client: IpAddr) -> usize {
        self.lock().by_client.get(&client).copied().unwrap_or_default()
    }

    /// Every open connection. A copy: none is held up while it is looked at.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock().connections.values().cloned().collect()
    }

    /// How many connections are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// Whether no connection is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().connections.is_empty()
    }

    /// How many requests are being answered, upgraded connections among them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// The requests in flight, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestView> {
        let mut requests: Vec<_> = self.connections().iter().filter_map(|c| c.view()).collect();
        requests.sort_by_key(|r| std::cmp::Reverse(r.age));
        requests
    }

    /// What has been counted.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The connections that leave. Whoever holds the lock sees to it that they get there.
    pub(super) async fn leaving(&self) -> tokio::sync::MutexGuard<'_, mpsc::UnboundedReceiver<Parcel>> {
        self.leaving.lock().await
    }

    /// Puts connections that were taken out of [`Self::leaving`] back.
    pub(super) fn bring_back(&self, parcels: impl Iterator<Item = Parcel>) {
        for parcel in parcels {
            // The registry holds the other end.
            let _ = self.outbox.send(parcel);
        }
    }

    /// Closes every connection now, whatever is in flight.
    pub fn cut(&self) {
        for connection in self.connections() {
            connection.give(Command::Cut);
        }
    }

    /// Returns when no connection is open.
    pub async fn emptied(&self) {
        self.until(Self::is_empty).await;
    }

    /// Returns when a connection is open.
    pub async fn occupied(&self) {
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

    /// Sets the watchdog's clock.
    pub(crate) fn tick(&self) {
        self.ticks.store(self.now(), Relaxed);
    }

    /// The requests whose handler has held its thread for `limit` or longer, with a number for the occasion.
    pub(crate) fn held_for(&self, limit: Duration) -> Vec<((u64, u64), RequestView, Duration)> {
        let now = self.ticks.load(Relaxed);
        let held_for = |connection: &Arc<Connection>| {
            let since = connection.held_since()?;
            let held = Duration::from_millis(now.saturating_sub(since));
            Some(((connection.id(), since), connection.view()?, held)).filter(|_| held >= limit)
        };
        self.connections().iter().filter_map(held_for).collect()
    }

    /// Milliseconds of the registry's clock.
    pub(super) fn now(&self) -> u64 {
        // The offset leaves room for connections that have been idle since before the registry was made.
        const OFFSET: u64 = 1 << 40;
        OFFSET + millis(self.epoch.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
