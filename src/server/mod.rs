//! Accept loops over a set of listeners, and the connections that come of them: what the http child and the admin child
//! both are.
//!
//! | | |
//! |---|---|
//! | `listener`, `address` | where connections come from |
//! | `registry`, `totals`, `access` | the open ones; the account of all; the log of their requests |
//! | `connection` | one of them: its states, its commands, its task |
//! | `handler`, `offloaded` | what answers its requests, also on other threads than its own |
//! | `socket`, `wire`, `stream`, `read_ahead` | its socket; what is on it; as hyper sees it; what was read of it before its time |
//! | `threads` | the threads that it lives on |
//! | `sweep`, `limits`, `clock` | how long a client may take |
//! | `departures`, `tunnel` | to the successor; connections that became another protocol |

pub(crate) mod access;
pub(crate) mod address;
mod clock;
mod connection;
pub(crate) mod departures;
pub(crate) mod durations;
mod handler;
pub(crate) mod handshakes;
pub(crate) mod limits;
pub(crate) mod listener;
mod offloaded;
mod peer;
mod read_ahead;
mod registry;
pub(crate) mod request_id;
pub(crate) mod requests;
pub(crate) mod route;
pub(crate) mod socket;
mod stream;
mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod threads;
mod totals;
pub(crate) mod trace;
pub(crate) mod tunnel;
mod wire;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

#[cfg(feature = "benches")]
pub(crate) use self::clock::Clock;
pub(crate) use self::connection::RequestView;
#[cfg(feature = "benches")]
pub(crate) use self::connection::{Event, Exchange, Machine};
pub use self::connection::{InFlight, State, Waiting};
pub(crate) use self::handler::{Answering, Handler};
pub(crate) use self::offloaded::Offloaded;
pub use self::peer::Peer;
pub(crate) use self::registry::Registry;
pub(crate) use self::route::RouteId;
pub(crate) use self::totals::Totals;

use self::connection::http1::Http1s;
use self::connection::task::Serve;
use self::connection::{Command, Serving};
use self::departures::Departures;
use self::limits::{AtLimit, Limits, Trusted};
use self::listener::Listener;
use self::socket::Socket;
use self::stream::ClientStream;
use self::threads::IoThreads;
use self::totals::Refused;
use self::wire::Wire;
use crate::event;
use crate::tls::Acceptor;

/// The least that hyper buffers of one connection, in either direction.
const BUFFER: usize = 64 << 10;
/// The pause after `accept` failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// The time without a failure of `accept` after which the shortage is over. At the limit single connections still get
/// in, one for each that closes.
const ACCEPT_CALM: Duration = Duration::from_secs(1);

/// A set of listeners with what answers there.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Shared with the child, which is given them anew when it is restarted; empty once they are closed.
    listeners: Arc<Mutex<Vec<Arc<Listener>>>>,
    registry: Arc<Registry>,
    http1s: Arc<Http1s>,
    /// One for each connection that may be open.
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    threads: IoThreads,
    limits: Arc<Limits>,
    trusted: Arc<Trusted>,
    /// What accepts TLS, if anything does.
    tls: Option<Acceptor>,
    departures: Option<Arc<Departures>>,
}

impl Server {
    pub(crate) fn new(
        listeners: Vec<Listener>,
        handler: impl Handler + 'static,
        registry: Arc<Registry>,
        limits: Limits,
    ) -> Self {
        let mut http1 = http1::Builder::new();
        // The sweep times heads: hyper's own timer would cost an allocation for each.
        http1.header_read_timeout(None);
        // A larger head is answered with 431, and so is one of more than 100 fields: with a limit of its own, hyper would
        // take the room for them from the heap for each head. The buffer holds a head and, beside it, a chunk of a body.
        http1.max_header_size(limits.header_limit).max_buf_size(limits.header_limit.max(BUFFER));
        let serving = Serving {
            handler: Box::new(handler),
            body_limit: limits.body_limit,
            requests_per_connection: limits.requests_per_connection,
            header_limit: limits.header_limit,
            h2c: AtomicBool::new(false),
            last_answers: AtomicBool::new(false),
            hsts: OnceLock::new(),
        };
        Self {
            listeners: Arc::new(Mutex::new(listeners.into_iter().map(Arc::new).collect())),
            registry,
            http1s: Arc::new(Http1s::new(http1, serving)),
            permits: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            threads: IoThreads::default(),
            limits: Arc::new(limits),
            trusted: Arc::default(),
            tls: None,
            departures: None,
        }
    }

    /// The same, with this `Strict-Transport-Security` in each answer over TLS, if any.
    pub(crate) fn with_hsts(self, hsts: Option<HeaderValue>) -> Self {
        if let Some(hsts) = hsts {
            // It is made once.
            let _ = self.http1s.serving().hsts.set(hsts);
        }
        self
    }

    /// The same, for clients that may speak HTTP/2 without having asked if it is spoken.
    pub(crate) fn speaking_h2c(self, h2c: bool) -> Self {
        self.http1s.serving().h2c.store(h2c, Relaxed);
        self
    }

    /// The same, with proxies that are trusted.
    pub(crate) fn trusting(self, trusted: Trusted) -> Self {
        Self { trusted: Arc::new(trusted), ..self }
    }

    /// The same, with what accepts TLS on some of its listeners. It takes over a connection of another process only if it
    /// would have judged its client in the same way.
    pub(crate) fn over(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// The same, with connections that live on these threads; else it is the runtime that serves them. Its registry
    /// counts for as many threads.
    pub(crate) fn on(self, threads: IoThreads) -> Self {
        Self { threads, ..self }
    }

    /// The same, with a way for its connections to the successor.
    pub(crate) fn with_departures(self, departures: Arc<Departures>) -> Self {
        Self { departures: Some(departures), ..self }
    }

    /// Its listeners, until they are closed.
    pub(crate) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on every answer is its connection's last.
    pub(crate) fn announce_close(&self) {
        self.http1s.serving().last_answers.store(true, Relaxed);
    }

    // ---- accepting ----

    /// Accepts and sweeps until it is dropped.
    pub(crate) async fn serve(&self) {
        let listeners = self.listeners();
        let accepting = join_all(listeners.iter().map(|l| self.accept_from(l)));
        tokio::join!(accepting, self.sweep());
    }

    async fn accept_from(&self, listener: &Listener) -> Infallible {
        // The time of the last failure. The log tells of the first one and of the end, not of every attempt.
        let mut failed: Option<Instant> = None;
        loop {
            let accepted = listener.accept(self.permit()).await;
            match accepted {
                Ok(Some((socket, peer, permit))) => {
                    self.start(socket, peer, Some(permit), listener.tls());
                    if failed.is_some_and(|at| at.elapsed() >= ACCEPT_CALM) {
                        failed = None;
                        tracing::info!(
                            message_id = event::ACCEPTS_AGAIN,
                            address = %listener.address(),
                            "accepting again"
                        );
                    }
                }
                // The client was gone before its turn.
                Ok(None) => {}
                Err(e) if is_of_one_connection(&e) => {}
                Err(error) => {
                    if failed.replace(Instant::now()).is_none() {
                        tracing::warn!(
                            message_id = event::CANNOT_ACCEPT,
                            address = %listener.address(),
                            %error,
                            "cannot accept; trying again until it can"
                        );
                    }
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Returns a permit for one more connection. At the limit, connections wait in the backlog.
    async fn permit(&self) -> OwnedSemaphorePermit {
        let permit = async {
            match Arc::clone(&self.permits).acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => unreachable!("nobody closes the semaphore"),
            }
        };
        match self.limits.at_limit {
            _ if self.permits.available_permits() > 0 => permit.await,
            AtLimit::Wait => {
                self.registry.totals().refused.add(Refused::Waited);
                permit.await
            }
            AtLimit::Evict => tokio::select! {
                permit = permit => permit,
                never = self.evict() => match never {},
            },
        }
    }

    /// Closes the connection that has been without a request for longest, and if all have one looks again.
    async fn evict(&self) -> Infallible {
        loop {
            self.registry.evict();
            tokio::time::sleep(sweep::STEP).await;
        }
    }

    /// Stops listening. The backlog of a listener that another process holds too waits for that process. From
    /// any other the connections in the backlog are accepted first, whatever the limit: they would be reset.
    pub(crate) async fn close(&self, held_elsewhere: bool) {
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        for listener in listeners {
            if held_elsewhere {
                listener.leave();
                continue;
            }
            loop {
                match listener.accept_now() {
                    Ok(Some((socket, peer))) => self.start(socket, peer, None, listener.tls()),
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_of_one_connection(&error) => {}
                    // There are no descriptors left: some become free with every connection that closes.
                    Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
                }
            }
            listener.unlink();
        }
    }

    fn start(
        &self,
        socket: OwnedFd,
        peer: Peer,
        permit: Option<OwnedSemaphorePermit>,
        tls: Option<&Acceptor>,
    ) {
        let trusted = self.trusted.contains(peer);
        if let Some(client) = limits::client(peer)
            && !trusted
            && self.registry.connections_of(client) >= self.limits.connections_per_client
        {
            self.registry.totals().refused.add(Refused::ConnectionsPerClient);
            return;
        }
        let thread = self.registry.totals().least_loaded();
        let runtime = self.threads.runtime(thread);
        let _entered = runtime.enter();
        let socket = match Socket::accepted(socket, peer) {
            Ok(socket) => socket,
            // epoll(7) has no room: the client finds its connection closed, as where there is no descriptor for it.
            Err(error) => {
                return tracing::warn!(
                    message_id = event::CANNOT_ACCEPT,
                    %peer,
                    %error,
                    "cannot serve a connection"
                );
            }
        };
        let connection = self.registry.accepted(thread, peer, trusted, self.departures.clone());
        let stream = Box::new(ClientStream::new(Wire::Plain(socket), Bytes::new(), connection, permit));
        self.tasks.spawn(match tls {
            Some(tls) => Serve::after_handshake(stream, tls, &self.http1s),
            None => Serve::new(stream, &self.http1s),
        });
    }

    /// Serves a connection that no listener accepted.
    #[cfg(any(test, fuzzing, feature = "benches"))]
    pub(crate) fn serve_one(&self, socket: tokio::net::UnixStream) {
        self.start(socket.into_std().expect("it is a socket").into(), Peer::Unix, None, None);
    }

    /// The same for one that begins with a handshake of TLS.
    #[cfg(test)]
    pub(crate) fn serve_one_over(&self, socket: tokio::net::UnixStream, tls: &Acceptor) {
        self.start(socket.into_std().expect("it is a socket").into(), Peer::Unix, None, Some(tls));
    }

    // ---- draining ----

    /// Closes every connection gracefully: an idle one may send one more request within `linger`, a busy one
    /// gets its answer. Returns when all are closed.
    pub(crate) async fn drain(&self, linger: Duration) {
        tokio::select! {
            () = self.linger(linger) => {}
            never = self.sweep() => match never {},
        }
    }

    async fn linger(&self, linger: Duration) {
        self.announce_close();
        tokio::select! {
            () = self.registry.emptied() => return,
            () = tokio::time::sleep(linger) => {}
        }
        self.command_all(Command::Finish);
        self.registry.emptied().await;
    }

    /// Closes every connection now, whatever is in flight.
    pub(crate) fn cut(&self) {
        self.registry.cut();
    }

    fn command_all(&self, command: Command) {
        for connection in self.registry.connections() {
            connection.commands().give(command);
        }
    }

    async fn sweep(&self) -> Infallible {
        sweep::sweep(&self.registry, &self.limits).await
    }
}

/// True if an error of `accept` is that of the connection it would have returned (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
