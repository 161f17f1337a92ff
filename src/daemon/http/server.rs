//! Accept loops over a set of listeners, the sweep over their connections, and their drain: what the http child
//! and the admin child both are.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::connection::{self, Serving};
use super::listener::{Address, Listener};
use super::stream::{ClientStream, Socket};
use crate::daemon::registry::{Connection, Order, Peer, Registry, State};

/// How often connections are looked at for timeouts.
const SWEEP: Duration = Duration::from_millis(250);
/// How long a connection stays with hyper after an answer, in the hope of a next request.
const PARK_AFTER: Duration = Duration::from_millis(500);
/// How long a client that was answered for the last time may go on sending.
const CLOSING: Duration = Duration::from_secs(2);
/// How long to wait after `accept` failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What a connection may take.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) body_limit: u64,
}

/// A set of listeners with what answers there.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Behind a lock so that a restarted child gets them again; empty once closed.
    listeners: Arc<Mutex<Vec<Listener>>>,
    addresses: Arc<[Address]>,
    registry: Arc<Registry>,
    serving: Arc<Serving>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    limits: Limits,
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
        Self {
            addresses: listeners.iter().map(|l| l.address().clone()).collect(),
            listeners: Arc::new(Mutex::new(listeners)),
            registry,
            serving: Arc::new(Serving {
                http1,
                router,
                body_limit: limits.body_limit,
                last_answers: AtomicBool::new(false),
            }),
            places: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            limits,
        }
    }

    /// Where it listens, with the ports that the kernel chose.
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// From now on every answer is its connection's last.
    pub(crate) fn announce_close(&self) {
        self.serving.last_answers.store(true, Relaxed);
    }

    /// Accepts and sweeps until it is dropped.
    pub(crate) async fn serve(&self) {
        let listeners = self.listeners.lock().await;
        let accepting = join_all(listeners.iter().map(|l| self.accept_from(l)));
        tokio::join!(accepting, self.sweep());
    }

    async fn accept_from(&self, listener: &Listener) {
        loop {
            // At the limit, connections wait in the backlog.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((socket, peer)) => self.start(socket, peer, Some(place)),
                // The client was gone before its turn.
                Err(e) if is_of_one_connection(&e) => {}
                Err(error) => {
                    tracing::warn!(address = %listener.address(), %error, "cannot accept; trying again");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Stops listening. What the backlogs hold is taken first, whatever the limit: it would be reset.
    pub(crate) async fn close(&self) {
        for listener in self.listeners.lock().await.drain(..) {
            while let Some(Ok((socket, peer))) = now_or_never(listener.accept()).await {
                self.start(socket, peer, None);
            }
        }
    }

    fn start(&self, socket: Socket, peer: Peer, place: Option<OwnedSemaphorePermit>) {
        let connection = self.registry.open(peer);
        let stream = ClientStream::new(socket, connection, place);
        self.tasks
            .spawn(connection::serve(stream, Arc::clone(&self.serving)));
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

    fn due(&self, connection: &Connection) -> Order {
        let idle = connection.idle_for();
        let until_head = match connection.has_answered() {
            true => self.limits.keepalive_timeout,
            false => self.limits.header_timeout,
        };
        match connection.state() {
            State::Parked if idle >= until_head => Order::Finish,
            State::Idle if connection.is_quiet() && idle >= PARK_AFTER => Order::Park,
            State::Idle if idle >= self.limits.header_timeout => Order::TimeOut,
            State::Closing if idle >= CLOSING => Order::Cut,
            State::Idle | State::Parked | State::Busy | State::Upgraded | State::Closing => Order::None,
        }
    }

    /// Lets every connection come to its end: an idle one may ask once more within `linger`, a busy one gets its
    /// answer. Returns when all are closed.
    pub(crate) async fn drain(&self, linger: Duration) {
        self.announce_close();
        tokio::select! {
            () = self.registry.emptied() => return,
            () = self.sweep() => {}
            () = tokio::time::sleep(linger) => {}
        }
        for connection in self.registry.connections() {
            connection.give(Order::Finish);
        }
        tokio::select! {
            () = self.registry.emptied() => {}
            () = self.sweep() => {}
        }
    }
}

/// Whether an error of `accept` is that of the connection it would have returned (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
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
