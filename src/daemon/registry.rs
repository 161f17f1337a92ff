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
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::access::{self, AccessLog};
use super::http::limits;
use crate::handover::parcel::{ConnectionNote, Flow, Parcel, TunnelNote};

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A client on a unix socket.
    Unix,
}

impl Peer {
    /// Its address; none for a client on a unix socket.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix => None,
        }
    }
}

impl From<Option<SocketAddr>> for Peer {
    fn from(address: Option<SocketAddr>) -> Self {
        address.map_or(Self::Unix, Self::Tcp)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Between requests, or reading the head of the next one.
    Idle,
    /// Idle for a while: taken apart, a socket waiting for its next byte.
    Parked,
    /// A request is being answered.
    Busy,
    /// It speaks another protocol now, by an upgrade.
    Upgraded,
    /// Answered for the last time; what the client still sends is thrown away.
    Closing,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Idle, Self::Parked, Self::Busy, Self::Upgraded, Self::Closing];

    /// Its name in metrics and in `/status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Parked => "parked",
            Self::Busy => "busy",
            Self::Upgraded => "upgraded",
            Self::Closing => "closing",
        }
    }
}

/// What a request in flight is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Waiting {
    /// The handler has yet to answer.
    Handler,
    /// The client has yet to send the rest of the request's body.
    RequestBody,
    /// The upstream has yet to accept a connection.
    UpstreamConnect,
    /// The upstream has yet to send the head of its answer.
    UpstreamResponse,
    /// The handler, or the upstream, has yet to produce the rest of the answer.
    ResponseBody,
    /// The client has yet to read the rest of the answer.
    Client,
}

impl Waiting {
    const ALL: [Self; 6] = [
        Self::Handler,
        Self::RequestBody,
        Self::UpstreamConnect,
        Self::UpstreamResponse,
        Self::ResponseBody,
        Self::Client,
    ];
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handler => "the handler",
            Self::RequestBody => "the client to send the body",
            Self::UpstreamConnect => "the upstream to accept",
            Self::UpstreamResponse => "the upstream to answer",
            Self::ResponseBody => "the rest of the answer",
            Self::Client => "the client to read the answer",
        })
    }
}

/// What a connection's task is to do next; a later one replaces an earlier one, but never a graver one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Nothing in particular.
    None,
    /// If idle: let go of the HTTP machinery and wait as a bare socket.
    Park,
    /// A request's head or body took too long: say so and close.
    TimeOut,
    /// Leave for the next process: now if idle or a tunnel, after the current answer if busy.
    Carry,
    /// Close now if idle, after the current answer if busy.
    Finish,
    /// Close now: the client has stalled.
    Drop,
    /// Close now, whatever is in flight: the daemon stops.
    Cut,
}

impl Order {
    const ALL: [Self; 7] =
        [Self::None, Self::Park, Self::TimeOut, Self::Carry, Self::Finish, Self::Drop, Self::Cut];
}

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
    pub fn order(&self) -> Order {
        Order::ALL[usize::from(self.order.load(Relaxed))]
    }

    /// Leaves an order and wakes whoever drives the connection.
    pub fn give(&self, order: Order) {
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
    pub(super) fn can_be_taken_apart(&self) -> bool {
        self.state() == State::Idle && !self.unread_body.load(Relaxed)
    }

    /// Whether it is between two requests, but only hyper knows where the next one begins.
    pub(super) fn is_out_of_step(&self) -> bool {
        self.state() == State::Idle && self.unread_body.load(Relaxed)
    }

    /// Whether bytes were read since the last answer.
    pub(super) fn has_heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    /// Whether the client has sent, or may be sending, what was not read as a request.
    pub(super) fn has_unread(&self) -> bool {
        self.has_heard() || self.unread_body.load(Relaxed)
    }

    /// The request's body was read to its end.
    pub(super) fn body_read(&self) {
        self.unread_body.store(false, Relaxed);
        let (body, handler) = (Waiting::RequestBody as u8, Waiting::Handler as u8);
        let _ = self.waiting.compare_exchange(body, handler, Relaxed, Relaxed);
    }

    /// It waits for the client to close.
    pub(super) fn closing(&self) {
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
    pub(super) fn hold<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.held.store(self.registry.ticks.load(Relaxed), Relaxed);
        let polled = poll();
        self.held.store(0, Relaxed);
        polled
    }

    /// The connection's task will be woken for an order.
    pub(super) fn driven_by(&self, task: &Waker) {
        self.task.register(task);
    }

    /// After an upgrade nobody drives the connection but those who read and write it.
    pub(super) fn read_by(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    pub(super) fn written_by(&self, writer: &Waker) {
        self.writer.register(writer);
    }

    /// It was taken apart; its idle time goes on counting.
    pub(super) fn parked(&self) {
        self.state.store(State::Parked as u8, Relaxed);
        self.unpark();
    }

    /// An order to park is done with, or came too late; a graver one stands.
    fn unpark(&self) {
        if self.order() == Order::Park {
            let _ = self.order.compare_exchange(Order::Park as u8, Order::None as u8, Relaxed, Relaxed);
        }
    }

    /// Its first byte has come: a head is due.
    pub(super) fn woken(&self) {
        self.since.store(self.registry.now(), Relaxed);
        self.state.store(State::Idle as u8, Relaxed);
    }

    /// What the request in flight waits for.
    pub(super) fn waits_for(&self) -> Waiting {
        if self.produced.load(Relaxed) {
            return Waiting::Client;
        }
        Waiting::ALL[usize::from(self.waiting.load(Relaxed))]
    }

    /// How long the sweep has seen no byte move in either direction.
    pub(super) fn stalled_for(&self) -> Duration {
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
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Bytes were read from the socket.
    pub(super) fn heard(&self, bytes: usize) {
        // Only the connection's own task reads: no read-modify-write is needed.
        self.received.store(self.received.load(Relaxed) + bytes as u64, Relaxed);
        if !self.heard.load(Relaxed) {
            self.heard.store(true, Relaxed);
        }
    }

    /// Bytes were written to the socket.
    pub(super) fn sent(&self, bytes: usize) {
        // Only the connection's own task writes: no read-modify-write is needed.
        self.sent.store(self.sent.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// All that was written has left for the socket: an answer that was produced whole is finished.
    pub(super) fn flushed(&self) {
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
    pub(super) fn begin(self: &Arc<Self>, method: &Method, uri: &Uri, has_body: bool) -> Answering {
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
    pub(super) fn closed(&self) {
        let outcome = match (self.order(), self.state()) {
            (Order::Cut, _) => Outcome::Cut,
            (Order::Drop, _) => Outcome::Stalled,
            (_, State::Upgraded) => Outcome::Answered,
            _ => Outcome::ClientGone,
        };
        self.finish(outcome);
        self.registry.remove(self);
    }

    /// Leaves for the next process, in which a tunnel's request goes on.
    pub(super) fn leave(&self, parcel: Parcel) {
        if self.request().take().is_some() {
            self.registry.in_flight.fetch_sub(1, Relaxed);
        }
        // The registry holds the other end.
        let _ = self.registry.outbox.send(parcel);
    }

    /// It cannot leave as it was ordered to.
    pub(super) fn stays(&self, reason: Stays) {
        self.registry.totals.stayed.add(reason, 1);
        self.give(Order::Finish);
    }

    /// What the next process must know of it between two requests.
    pub(super) fn note(&self, read_ahead: Bytes) -> ConnectionNote {
        ConnectionNote {
            peer: self.peer.address(),
            answered: self.answered.load(Relaxed),
            idle_ms: millis(self.idle_for()),
            read_ahead,
        }
    }

    /// What the next process must know of it as a tunnel.
    pub(super) fn tunnel_note(&self, up: Flow, down: Flow) -> Option<TunnelNote> {
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

/// Held while a request is being answered: by its handler, then by the body of its answer.
#[derive(Debug)]
pub(super) struct Answering {
    connection: Arc<Connection>,
}

impl Answering {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The head of the answer is known.
    pub(super) fn answered_with(&self, status: StatusCode) {
        if let Some(request) = &mut *self.connection.request() {
            request.status = Some(status);
        }
        self.connection.waiting_for(Waiting::ResponseBody);
    }

    /// The answer was produced whole; the next flush ends the request.
    pub(super) fn produced(self) {
        self.connection.produced.store(true, Relaxed);
    }
}

/// The request being answered, as its handler finds it in the request's extensions.
#[derive(Clone, Debug)]
pub struct InFlight(pub(super) Arc<Connection>);

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
    pub stayed: Stayed,
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
    pub(super) fn counter(&self, parcel: &Parcel) -> &AtomicU64 {
        match parcel {
            Parcel::Connection(..) => &self.connections,
            Parcel::Tunnel { .. } => &self.tunnels,
        }
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [connections, tunnels] = self.counts();
        write!(f, "{connections} connections, {tunnels} tunnels")
    }
}

/// Why a connection is not carried to the next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stays {
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

impl Stays {
    const ALL: [Self; 5] =
        [Self::NoStore, Self::NoNext, Self::SwitchedOff, Self::UnreadBody, Self::MailboxFull];
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStore => "without a store",
            Self::NoNext => "without a next process",
            Self::SwitchedOff => "switched off in [handover]",
            Self::UnreadBody => "with an unread request body",
            Self::MailboxFull => "refused by the mailbox",
        })
    }
}

/// Connections that are not carried, by the reason.
#[derive(Debug, Default)]
pub struct Stayed([AtomicU64; Stays::ALL.len()]);

impl Stayed {
    /// Counts some.
    pub(super) fn add(&self, reason: Stays, connections: usize) {
        self.0[reason as usize].fetch_add(connections as u64, Relaxed);
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

/// The number, and what it is made of.
impl fmt::Display for Stayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total())?;
        let reasons = Stays::ALL.iter().zip(&self.0).filter(|(_, n)| n.load(Relaxed) > 0);
        let reasons: Vec<_> = reasons.map(|(reason, n)| format!("{} {reason}", n.load(Relaxed))).collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

impl Totals {
    fn count(&self, outcome: Outcome, status: Option<StatusCode>) {
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
    ticks: AtomicU64,
    next_id: AtomicU64,
    open: Mutex<Open>,
    in_flight: AtomicUsize,
    totals: Totals,
    durations: metrics::Histogram,
    access: AccessLog,
    /// Connections that leave, on their way to the mailbox.
    outbox: mpsc::UnboundedSender<Parcel>,
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
    pub(super) fn open(self: &Arc<Self>, peer: Peer, trusted: bool) -> Arc<Connection> {
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
        let now = Instant::now();
        let started = now.checked_sub(Duration::from_millis(note.age_ms)).unwrap_or(now);
        let connection = self.insert(note.peer.into(), false, 0, Duration::ZERO);
        let status = Some(StatusCode::SWITCHING_PROTOCOLS);
        *connection.request() = Some(Request { method, uri, started, status });
        self.in_flight.fetch_add(1, Relaxed);
        connection.state.store(State::Upgraded as u8, Relaxed);
        Ok(connection)
    }

    fn insert(self: &Arc<Self>, peer: Peer, trusted: bool, answered: u64, idle: Duration) -> Arc<Connection> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection {
            id,
            peer,
            trusted,
            registry: Arc::clone(self),
            state: AtomicU8::new(State::Idle as u8),
            since: AtomicU64::new(self.now().saturating_sub(millis(idle))),
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
            order: AtomicU8::new(Order::None as u8),
            task: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            request: Mutex::default(),
        });
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

    fn remove(&self, connection: &Connection) {
        let mut open = self.lock();
        open.connections.remove(&connection.id);
        if let Some(client) = limits::client(connection.peer)
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
            connection.give(Order::Cut);
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
    pub(super) fn tick(&self) {
        self.ticks.store(self.now(), Relaxed);
    }

    /// The requests whose handler has held its thread for `limit` or longer, with a number for the occasion.
    pub(super) fn held_for(&self, limit: Duration) -> Vec<((u64, u64), RequestView, Duration)> {
        let now = self.ticks.load(Relaxed);
        let held_for = |connection: &Arc<Connection>| {
            let since = Some(connection.held.load(Relaxed)).filter(|since| *since > 0)?;
            let held = Duration::from_millis(now.saturating_sub(since));
            Some(((connection.id, since), connection.view()?, held)).filter(|_| held >= limit)
        };
        self.connections().iter().filter_map(held_for).collect()
    }

    /// Milliseconds of the registry's clock.
    fn now(&self) -> u64 {
        // The offset leaves room for connections that have been idle since before the registry was made.
        const OFFSET: u64 = 1 << 40;
        OFFSET + millis(self.epoch.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
