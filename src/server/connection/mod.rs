//! One connection, and the request it is answering.

pub(super) mod body;
pub(super) mod task;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::handover::parcel::{ConnectionNote, Flow, Parcel, TunnelNote};
use crate::server::access;
use crate::server::peer::Peer;
use crate::server::registry::{Registry, millis};
use crate::server::state::{Command, State, Waiting};
use crate::server::totals::{NotCarried, Outcome};

/// A connection, from `accept` until its socket is closed.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    peer: Peer,
    /// The peer's word on where a request comes from is passed on.
    trusted: bool,
    registry: Arc<Registry>,
    state: AtomicU8,
    /// Milliseconds of the registry's clock at the last change of `state` that a timeout counts from.
    since: AtomicU64,
    /// Requests answered on it.
    answered: AtomicU64,
    /// Bytes were read since the last answer: the head of the next request has begun.
    heard: AtomicBool,
    /// The body of the last request was not read to its end: where the next head begins is hyper's secret.
    unread_body: AtomicBool,
    /// The answer was produced whole; only its last bytes may still wait to be written.
    produced: AtomicBool,
    /// Bytes sent of the current answer.
    sent: AtomicU64,
    /// Bytes received since the connection was opened.
    received: AtomicU64,
    /// When its task began to be polled, on the watchdog's clock; 0 while it is not polled.
    held: AtomicU64,
    /// What the sweep last saw move, and when that was; nobody else touches them.
    moved: AtomicU64,
    moved_at: AtomicU64,
    waiting: AtomicU8,
    order: AtomicU8,
    /// The connection's task.
    task: AtomicWaker,
    /// After an upgrade: the tasks that read and write the socket.
    reader: AtomicWaker,
    writer: AtomicWaker,
    request: Mutex<Option<Request>>,
}

#[derive(Debug)]
struct Request {
    method: Method,
    uri: Uri,
    started: Instant,
    status: Option<StatusCode>,
}

/// A copy of what is known of a request in flight.
#[derive(Clone, Debug)]
pub struct RequestView {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub uri: Uri,
    /// The client.
    pub peer: Peer,
    /// How long ago its head was read.
    pub age: Duration,
    /// How many bytes of the answer were written to the socket.
    pub sent: u64,
    /// What it waits for.
    pub waiting: Waiting,
    /// Whether it became another protocol.
    pub upgraded: bool,
}

impl RequestView {
    /// What it waits for, in words.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        if self.upgraded { "either side of the upgraded connection".into() } else { self.waiting.to_string() }
    }
}

/// In the words of `STATUS=`.
impl fmt::Display for RequestView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} s", self.method, self.uri.path(), self.age.as_secs())
    }
}

impl Connection {
    pub(in crate::server) fn new(
        id: u64,
        peer: Peer,
        trusted: bool,
        registry: Arc<Registry>,
        answered: u64,
        idle: Duration,
    ) -> Self {
        let since = registry.now().saturating_sub(millis(idle));
        Self {
            id,
            peer,
            trusted,
            registry,
            state: AtomicU8::new(State::Idle as u8),
            since: AtomicU64::new(since),
            answered: AtomicU64::new(answered),
            heard: AtomicBool::new(false),
            unread_body: AtomicBool::new(false),
            produced: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            held: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            moved_at: AtomicU64::new(0),
            waiting: AtomicU8::new(Waiting::Handler as u8),
            order: AtomicU8::new(Command::None as u8),
            task: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            request: Mutex::default(),
        }
    }

    /// Its number in the registry.
    pub(in crate::server) fn id(&self) -> u64 {
        self.id
    }

    /// A tunnel goes on that another process began.
    pub(in crate::server) fn go_on(&self, method: Method, uri: Uri, age: Duration) {
        let now = Instant::now();
        let started = now.checked_sub(age).unwrap_or(now);
        let status = Some(StatusCode::SWITCHING_PROTOCOLS);
        *self.request() = Some(Request { method, uri, started, status });
        self.registry.in_flight.fetch_add(1, Relaxed);
        self.state.store(State::Upgraded as u8, Relaxed);
    }

    /// When its task began to be polled, if it is being polled now.
    pub(in crate::server) fn held_since(&self) -> Option<u64> {
        Some(self.held.load(Relaxed)).filter(|since| *since > 0)
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// The gravest order that stands.
    #[must_use]
    pub fn order(&self) -> Command {
        Command::ALL[usize::from(self.order.load(Relaxed))]
    }

    /// Leaves an order and wakes whoever drives the connection.
    pub fn give(&self, order: Command) {
        if self.order.fetch_max(order as u8, Relaxed) < order as u8 {
            self.task.wake();
            self.reader.wake();
            self.writer.wake();
        }
    }

    /// Whether it is between two requests, with no byte of the next one read.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.state() == State::Idle && !self.has_unread()
    }

    /// Whether it is between two requests, so that its socket and what was read ahead are all there is to it.
    pub(in crate::server) fn can_be_taken_apart(&self) -> bool {
        self.state() == State::Idle && !self.unread_body.load(Relaxed)
    }

    /// Whether it is between two requests, but only hyper knows where the next one begins.
    pub(in crate::server) fn is_out_of_step(&self) -> bool {
        self.state() == State::Idle && self.unread_body.load(Relaxed)
    }

    /// Whether bytes were read since the last answer.
    pub(in crate::server) fn has_heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    /// Whether the client has sent, or may be sending, what was not read as a request.
    pub(in crate::server) fn has_unread(&self) -> bool {
        self.has_heard() || self.unread_body.load(Relaxed)
    }

    /// The request's body was read to its end.
    pub(in crate::server) fn body_read(&self) {
        self.unread_body.store(false, Relaxed);
        let (body, handler) = (Waiting::RequestBody as u8, Waiting::Handler as u8);
        let _ = self.waiting.compare_exchange(body, handler, Relaxed, Relaxed);
    }

    /// It waits for the client to close.
    pub(in crate::server) fn closing(&self) {
        self.since.store(self.registry.now(), Relaxed);
        self.state.store(State::Closing as u8, Relaxed);
    }

    /// How long the current state has lasted, as far as timeouts are concerned.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        Duration::from_millis(self.registry.now().saturating_sub(self.since.load(Relaxed)))
    }

    /// Whether a request was answered on it before.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered.load(Relaxed) > 0
    }

    /// Says what the request in flight waits for.
    pub fn waiting_for(&self, what: Waiting) {
        self.waiting.store(what as u8, Relaxed);
    }

    /// Runs a poll of the connection's task, which the watchdog times.
    pub(in crate::server) fn hold<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.held.store(self.registry.ticks.load(Relaxed), Relaxed);
        let polled = poll();
        self.held.store(0, Relaxed);
        polled
    }

    /// The connection's task will be woken for an order.
    pub(in crate::server) fn driven_by(&self, task: &Waker) {
        self.task.register(task);
    }

    /// After an upgrade nobody drives the connection but those who read and write it.
    pub(in crate::server) fn read_by(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    pub(in crate::server) fn written_by(&self, writer: &Waker) {
        self.writer.register(writer);
    }

    /// It was taken apart; its idle time goes on counting.
    pub(in crate::server) fn parked(&self) {
        self.state.store(State::Parked as u8, Relaxed);
        self.unpark();
    }

    /// An order to park is done with, or came too late; a graver one stands.
    fn unpark(&self) {
        if self.order() == Command::Park {
            let _ = self.order.compare_exchange(Command::Park as u8, Command::None as u8, Relaxed, Relaxed);
        }
    }

    /// Its first byte has come: a head is due.
    pub(in crate::server) fn woken(&self) {
        self.since.store(self.registry.now(), Relaxed);
        self.state.store(State::Idle as u8, Relaxed);
    }

    /// What the request in flight waits for.
    pub(in crate::server) fn waits_for(&self) -> Waiting {
        if self.produced.load(Relaxed) {
            return Waiting::Client;
        }
        Waiting::ALL[usize::from(self.waiting.load(Relaxed))]
    }

    /// How long the sweep has seen no byte move in either direction.
    pub(in crate::server) fn stalled_for(&self) -> Duration {
        let now = self.registry.now();
        let answered = self.answered.load(Relaxed);
        // Not a sum of bytes alone: the bytes sent count from zero for each answer.
        let moved =
            self.received.load(Relaxed).wrapping_add(self.sent.load(Relaxed)).wrapping_add(answered << 32);
        if self.moved.swap(moved, Relaxed) != moved {
            self.moved_at.store(now, Relaxed);
        }
        Duration::from_millis(now.saturating_sub(self.moved_at.load(Relaxed)))
    }

    /// Requests answered on it.
    pub(in crate::server) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Bytes were read from the socket.
    pub(in crate::server) fn heard(&self, bytes: usize) {
        // Only the connection's own task reads: no read-modify-write is needed.
        self.received.store(self.received.load(Relaxed) + bytes as u64, Relaxed);
        if !self.heard.load(Relaxed) {
            self.heard.store(true, Relaxed);
        }
    }

    /// Bytes were written to the socket.
    pub(in crate::server) fn sent(&self, bytes: usize) {
        // Only the connection's own task writes: no read-modify-write is needed.
        self.sent.store(self.sent.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// All that was written has left for the socket: an answer that was produced whole is finished.
    pub(in crate::server) fn flushed(&self) {
        if self.produced.load(Relaxed) {
            self.produced.store(false, Relaxed);
            let upgrading =
                self.request().as_ref().is_some_and(|r| r.status == Some(StatusCode::SWITCHING_PROTOCOLS));
            if upgrading {
                self.state.store(State::Upgraded as u8, Relaxed);
            } else {
                self.finish(Outcome::Answered);
            }
        }
    }

    /// A request's head was read.
    pub(crate) fn begin(self: &Arc<Self>, method: &Method, uri: &Uri, has_body: bool) -> Answering {
        let started = Instant::now();
        *self.request() = Some(Request { method: method.clone(), uri: uri.clone(), started, status: None });
        self.sent.store(0, Relaxed);
        self.unread_body.store(has_body, Relaxed);
        self.produced.store(false, Relaxed);
        self.waiting_for(Waiting::Handler);
        self.unpark();
        self.state.store(State::Busy as u8, Relaxed);
        self.registry.in_flight.fetch_add(1, Relaxed);
        Answering { connection: Arc::clone(self) }
    }

    /// What is known of the request in flight.
    #[must_use]
    pub fn view(&self) -> Option<RequestView> {
        let request = self.request();
        let request = request.as_ref()?;
        Some(RequestView {
            method: request.method.clone(),
            uri: request.uri.clone(),
            peer: self.peer,
            age: request.started.elapsed(),
            sent: self.sent.load(Relaxed),
            waiting: self.waits_for(),
            upgraded: self.state() == State::Upgraded,
        })
    }

    fn request(&self) -> MutexGuard<'_, Option<Request>> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Outcome) {
        let Some(request) = self.request().take() else {
            return;
        };
        let registry = &*self.registry;
        let took = request.started.elapsed();
        self.answered.fetch_add(1, Relaxed);
        self.heard.store(false, Relaxed);
        self.since.store(registry.now(), Relaxed);
        self.state.store(State::Idle as u8, Relaxed);
        registry.in_flight.fetch_sub(1, Relaxed);
        registry.totals.count(outcome, request.status);
        registry.durations.record(took.as_secs_f64());
        registry.access.log(&access::Record {
            method: request.method,
            uri: request.uri,
            peer: self.peer,
            status: request.status,
            outcome,
            took,
            sent: self.sent.load(Relaxed),
        });
    }

    /// Its socket is closed, or is another process's now.
    pub(in crate::server) fn closed(&self) {
        let outcome = match (self.order(), self.state()) {
            (Command::Cut, _) => Outcome::Cut,
            (Command::Drop, _) => Outcome::Stalled,
            (_, State::Upgraded) => Outcome::Answered,
            _ => Outcome::ClientGone,
        };
        self.finish(outcome);
        self.registry.remove(self);
    }

    /// Leaves for the next process, in which a tunnel's request goes on.
    pub(in crate::server) fn leave(&self, parcel: Parcel) {
        if self.request().take().is_some() {
            self.registry.in_flight.fetch_sub(1, Relaxed);
        }
        // The registry holds the other end.
        let _ = self.registry.outbox.send(parcel);
    }

    /// It cannot leave as it was ordered to.
    pub(in crate::server) fn stays(&self, reason: NotCarried) {
        self.registry.totals.stayed.add(reason, 1);
        self.give(Command::Finish);
    }

    /// What the next process must know of it between two requests.
    pub(in crate::server) fn note(&self, read_ahead: Bytes) -> ConnectionNote {
        ConnectionNote {
            peer: self.peer.address(),
            answered: self.answered.load(Relaxed),
            idle_ms: millis(self.idle_for()),
            read_ahead,
        }
    }

    /// What the next process must know of it as a tunnel.
    pub(in crate::server) fn tunnel_note(&self, up: Flow, down: Flow) -> Option<TunnelNote> {
        let request = self.request();
        let request = request.as_ref()?;
        Some(TunnelNote {
            peer: self.peer.address(),
            method: request.method.to_string(),
            uri: request.uri.to_string(),
            age_ms: millis(request.started.elapsed()),
            up,
            down,
        })
    }
}

/// Held while a request is being answered: by its handler, then by the body of its answer.
#[derive(Debug)]
pub(crate) struct Answering {
    connection: Arc<Connection>,
}

impl Answering {
    pub(in crate::server) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The head of the answer is known.
    pub(in crate::server) fn answered_with(&self, status: StatusCode) {
        if let Some(request) = &mut *self.connection.request() {
            request.status = Some(status);
        }
        self.connection.waiting_for(Waiting::ResponseBody);
    }

    /// The answer was produced whole; the next flush ends the request.
    pub(in crate::server) fn produced(self) {
        self.connection.produced.store(true, Relaxed);
    }
}

/// The request being answered, as its handler finds it in the request's extensions.
#[derive(Clone, Debug)]
pub struct InFlight(pub(crate) Arc<Connection>);

impl InFlight {
    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer()
    }

    /// Whether the client's word on where the request comes from is to be believed (`trusted_proxies`).
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.0.trusted
    }

    /// Says what the request waits for, for the log of a cut and for `/status`.
    pub fn waiting_for(&self, what: Waiting) {
        self.0.waiting_for(what);
    }
}
