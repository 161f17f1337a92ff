//! Accept loops over a set of listeners, the sweep over their connections, and their drain: what the http child
//! and the admin child both are.

pub(crate) mod access;
pub mod address;
mod connection;
pub mod limits;
pub mod listener;
mod peer;
mod registry;
mod state;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod totals;
pub(crate) mod tunnel;

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use self::connection::task::{self, Serving, Start};
pub use self::connection::{Connection, InFlight, RequestView};
use self::limits::{Limits, Trusted};
use self::listener::Listener;
pub use self::peer::Peer;
pub use self::registry::Registry;
pub use self::state::{Command, State, Waiting};
use self::stream::{ClientStream, Socket};
pub use self::totals::{Carried, NotCarried, NotCarriedCounts, Outcome, Totals};
use crate::handover::Handover;
use crate::handover::mailbox::Mailbox;
use crate::handover::parcel::Parcel;

/// How often connections are looked at for timeouts.
const SWEEP: Duration = Duration::from_millis(250);
/// How long a connection stays with hyper after an answer, in the hope of a next request.
const PARK_AFTER: Duration = Duration::from_millis(500);
/// How long a client that was answered for the last time may go on sending.
const CLOSING: Duration = Duration::from_secs(2);
/// The least that hyper buffers of one connection, in either direction.
const BUFFER: usize = 64 << 10;
/// How long to wait after `accept` failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long after the last failure of `accept` it is over: at the limit, one connection that closes lets one more in.
const ACCEPT_CALM: Duration = Duration::from_secs(1);
/// How many connections leave together, if so many are ready to.
const BATCH: usize = 250;
/// How long the first of them waits for others, where nobody waits for them.
const GATHER: Duration = Duration::from_millis(5);

/// A set of listeners with what answers there.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// A restarted child gets them again; none are left once they are closed.
    listeners: Arc<Mutex<Vec<Arc<Listener>>>>,
    registry: Arc<Registry>,
    serving: Arc<Serving>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    limits: Limits,
    trusted: Arc<Trusted>,
}

impl Server {
    pub(crate) fn new(
        listeners: Vec<Listener>,
        router: Router,
        registry: Arc<Registry>,
        limits: Limits,
    ) -> Self {
        let mut http1 = http1::Builder::new();
        // The sweep times heads: a timer of hyper's own would be one more object for each of them.
        http1.header_read_timeout(None);
        // What is larger is answered with 431. The buffer holds a head and, beside it, a chunk of a body.
        http1.max_header_size(limits.header_limit).max_buf_size(limits.header_limit.max(BUFFER));
        Self {
            listeners: Arc::new(Mutex::new(listeners.into_iter().map(Arc::new).collect())),
            registry,
            serving: Arc::new(Serving {
                http1,
                router,
                body_limit: limits.body_limit,
                requests_per_connection: limits.requests_per_connection,
                last_answers: AtomicBool::new(false),
            }),
            places: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            limits,
            trusted: Arc::default(),
        }
    }

    /// The same, believing these peers.
    pub(crate) fn trusting(self, trusted: Trusted) -> Self {
        Self { trusted: Arc::new(trusted), ..self }
    }

    /// Its connections.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its listeners, until they are closed.
    pub(crate) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on every answer is its connection's last.
    pub(crate) fn announce_close(&self) {
        self.serving.last_answers.store(true, Relaxed);
    }

    /// Accepts and sweeps until it is dropped.
    pub(crate) async fn serve(&self) {
        let listeners = self.listeners();
        let accepting = join_all(listeners.iter().map(|l| self.accept_from(l)));
        tokio::join!(accepting, self.sweep());
    }

    async fn accept_from(&self, listener: &Listener) {
        // When it last failed; said at the beginning and at the end, not at every attempt.
        let mut failed: Option<Instant> = None;
        loop {
            // At the limit, connections wait in the backlog.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((socket, peer)) => {
                    self.start(socket, peer, Some(place));
                    if failed.is_some_and(|at| at.elapsed() >= ACCEPT_CALM) {
                        failed = None;
                        tracing::info!(address = %listener.address(), "accepting again");
                    }
                }
                // The client was gone before its turn.
                Err(e) if is_of_one_connection(&e) => {}
                Err(error) => {
                    if failed.replace(Instant::now()).is_none() {
                        tracing::warn!(address = %listener.address(), %error, "cannot accept; trying again until it can");
                    }
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Stops listening. Of a listener that another process holds too, the backlog waits for that process. Of any
    /// other, what the backlog holds is taken first, whatever the limit: it would be reset.
    pub(crate) async fn close(&self, held_elsewhere: bool) {
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        for listener in listeners {
            if held_elsewhere {
                listener.leave();
                continue;
            }
            while let Some(Ok((socket, peer))) = now_or_never(listener.accept()).await {
                self.start(socket, peer, None);
            }
            listener.unlink();
        }
    }

    fn start(&self, socket: Socket, peer: Peer, permit: Option<OwnedSemaphorePermit>) {
        let trusted = self.trusted.contains(peer);
        if let Some(client) = limits::client(peer)
            && !trusted
            && self.registry.connections_of(client) >= self.limits.connections_per_client
        {
            self.registry.totals().turned_away.fetch_add(1, Relaxed);
            return;
        }
        let stream = ClientStream::new(socket, Bytes::new(), self.registry.open(peer, trusted), permit);
        self.tasks.spawn(task::serve(stream, Arc::clone(&self.serving), Start::Active));
    }

    /// Serves a connection that no listener accepted.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn serve_one(&self, socket: tokio::net::UnixStream) {
        self.start(Socket::Unix(socket), Peer::Unix, None);
    }

    /// Takes a connection over from an earlier process, or back from the way to the next one.
    pub(crate) fn adopt(&self, parcel: Parcel) -> io::Result<()> {
        // At the limit it comes all the same: it was there before those that wait in the backlog.
        let permit = Arc::clone(&self.places).try_acquire_owned().ok();
        match parcel {
            Parcel::Connection(descriptor, note) => {
                let socket = Socket::adopt(descriptor)?;
                let connection = self.registry.reopen(&note, self.trusted.contains(note.peer.into()));
                let stream = ClientStream::new(socket, note.read_ahead, connection, permit);
                self.tasks.spawn(task::serve(stream, Arc::clone(&self.serving), Start::Parked));
            }
            Parcel::Tunnel { client, upstream, note } => {
                let (client, upstream) = (Socket::adopt(client)?, Socket::adopt(upstream)?);
                let connection = self.registry.reopen_upgraded(&note)?;
                let client = ClientStream::new(client, Bytes::new(), connection, permit);
                self.tasks.spawn(tunnel::resume(client, upstream, note.up, note.down));
            }
        }
        Ok(())
    }

    /// Takes over what waits in the mailbox.
    pub(crate) fn take_over(&self, mailbox: &Mailbox) -> io::Result<()> {
        let Totals { taken_over, not_understood, .. } = self.registry.totals();
        while let Some(parcels) = mailbox.take()? {
            for parcel in parcels {
                let counter = parcel.as_ref().map_or(not_understood, |p| taken_over.counter(p));
                match parcel.map_err(io::Error::other).and_then(|p| self.adopt(p)) {
                    Ok(()) => _ = counter.fetch_add(1, Relaxed),
                    Err(error) => {
                        not_understood.fetch_add(1, Relaxed);
                        tracing::warn!("closed a connection that was handed over: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at every connection now and then: one clock for all of them, whatever their number.
    async fn sweep(&self) {
        loop {
            // An idle daemon does not wake up.
            self.registry.occupied().await;
            tokio::time::sleep(SWEEP).await;
            for connection in self.registry.connections() {
                connection.give(self.due(&connection));
            }
        }
    }

    fn due(&self, connection: &Connection) -> Command {
        let limits = &self.limits;
        let idle = connection.idle_for();
        let until_head =
            if connection.has_answered() { limits.keepalive_timeout } else { limits.header_timeout };
        match connection.state() {
            State::Parked if idle >= until_head => Command::Finish,
            State::Idle if connection.is_quiet() && idle >= PARK_AFTER => Command::Park,
            // It cannot be parked, nor told anything.
            State::Idle if connection.is_out_of_step() => {
                let limit = if connection.has_heard() { limits.header_timeout } else { until_head };
                if idle >= limit { Command::Drop } else { Command::None }
            }
            State::Idle if idle >= limits.header_timeout => Command::TimeOut,
            State::Busy => match (connection.waits_for(), connection.stalled_for()) {
                (Waiting::RequestBody, stalled) if stalled >= limits.read_timeout => Command::TimeOut,
                (Waiting::Client, stalled) if stalled >= limits.write_timeout => Command::Drop,
                _ => Command::None,
            },
            State::Closing if idle >= CLOSING => Command::Drop,
            State::Idle | State::Parked | State::Upgraded | State::Closing => Command::None,
        }
    }

    /// Lets every connection come to its end: an idle one may ask once more within `linger`, a busy one gets its
    /// answer. Returns when all are closed.
    pub(crate) async fn drain(&self, linger: Duration) {
        tokio::select! {
            () = self.linger(linger) => {}
            () = self.sweep() => {}
        }
    }

    async fn linger(&self, linger: Duration) {
        self.announce_close();
        tokio::select! {
            () = self.registry.emptied() => return,
            () = tokio::time::sleep(linger) => {}
        }
        self.order(Command::Finish);
        self.registry.emptied().await;
    }

    /// Hands every connection over that can be: an idle one and a tunnel now, a busy one after its answer. What
    /// cannot be lingers, as in [`Self::drain`]. Returns when none is left.
    pub(crate) async fn carry(&self, handover: &Handover, linger: Duration) {
        let mut finish = None;
        for connection in self.registry.connections() {
            let is_tunnel = connection.state() == State::Upgraded;
            match handover.refuses(is_tunnel) {
                _ if connection.state() == State::Closing => {}
                None => connection.give(Command::Carry),
                Some(reason) => {
                    self.registry.totals().stayed.add(reason, 1);
                    // A tunnel cannot be told.
                    if !is_tunnel {
                        finish = Some(Instant::now() + linger);
                    }
                }
            }
        }
        if finish.is_some() {
            self.announce_close();
        }
        tokio::select! {
            () = self.see_off(handover, linger, finish) => {}
            () = self.sweep() => {}
        }
    }

    async fn see_off(&self, handover: &Handover, linger: Duration, mut finish: Option<Instant>) {
        let Totals { handed_over, stayed, .. } = self.registry.totals();
        let mut leaving = self.registry.leaving().await;
        loop {
            let mut gathered = Gathered { parcels: Vec::new(), registry: &self.registry };
            let parcels = &mut gathered.parcels;
            tokio::select! {
                biased;
                _ = leaving.recv_many(parcels, BATCH) => {}
                () = self.registry.emptied() => {
                    // The last one may have left since the outbox was looked at.
                    parcels.extend(std::iter::from_fn(|| leaving.try_recv().ok()));
                    if parcels.is_empty() {
                        return;
                    }
                }
                () = at(finish) => {
                    finish = None;
                    self.order(Command::Finish);
                    continue;
                }
            }
            if !handover.is_taken_out() {
                // Each message takes room in a queue that nobody empties: a few full ones rather than many.
                tokio::time::sleep(GATHER).await;
                parcels.extend(std::iter::from_fn(|| leaving.try_recv().ok()));
            }
            let parcels = std::mem::take(parcels);
            let mut counters: Vec<_> = parcels.iter().map(|parcel| handed_over.counter(parcel)).collect();
            if let Err((refused, error)) = handover.put(parcels).await {
                tracing::warn!("{} connections cannot be handed over and linger: {error}", refused.len());
                stayed.add(NotCarried::MailboxFull, refused.len());
                counters.truncate(counters.len() - refused.len());
                for parcel in refused {
                    // What cannot be taken back either is closed.
                    let _ = self.adopt(parcel);
                }
                self.announce_close();
                finish.get_or_insert(Instant::now() + linger);
            }
            for counter in counters {
                counter.fetch_add(1, Relaxed);
            }
        }
    }

    fn order(&self, order: Command) {
        for connection in self.registry.connections() {
            connection.give(order);
        }
    }
}

/// Parcels on their way from the outbox to the mailbox. They go back if the child ends meanwhile: whoever sees the
/// others off is to find them.
struct Gathered<'a> {
    parcels: Vec<Parcel>,
    registry: &'a Registry,
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.registry.bring_back(self.parcels.drain(..));
    }
}

/// Whether an error of `accept` is that of the connection it would have returned (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// What a future has to say at once.
async fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
