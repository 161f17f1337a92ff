//! One connection: the handle that the registry, its task, its bodies and the sweep share.
//!
//! `machine` has a connection's states, `commands` what it is told, `progress` the bytes that it has moved; `task`
//! drives it from the `handshake` on, `http1` and `http2` have hyper, `service` answers its requests, `body` follows their
//! bodies, `in_flight` is what others see of them, and `travel` takes it to the next process. With HTTP/2 each of its
//! `streams` is a connection as well, `frames` are what its client sends, and its answer goes in `pieces`. This file joins
//! them: it runs the machine under the connection's one lock, and counts, times and logs the requests that it says have
//! ended.

mod body;
mod commands;
mod file;
mod frames;
mod handshake;
pub(super) mod http1;
mod http2;
mod in_flight;
mod machine;
mod pace;
mod pieces;
mod progress;
mod service;
mod streams;
pub(super) mod task;
#[cfg(test)]
mod tests;
mod travel;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::http::{Request, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

pub(crate) use self::commands::{Command, Waiter};
pub(super) use self::file::is_placeholder;
pub(super) use self::frames::PREFACE;
pub use self::in_flight::InFlight;
pub(crate) use self::in_flight::RequestView;
pub use self::machine::State;
pub(super) use self::machine::{Afterwards, Ended};
pub(crate) use self::machine::{Event, Exchange, Machine};
pub use self::progress::Waiting;
pub(super) use self::service::Serving;

use self::body::Unread;
use self::commands::Commands;
use self::machine::Look;
use self::pace::Pace;
use self::progress::Progress;
use self::streams::Http2;
use super::clock::Tick;
use super::departures::Departures;
use super::limits::Limits;
use super::peer::Peer;
use super::registry::Registry;
use super::request_id::RequestId;
use super::route::RouteId;
use super::totals::{self, Outcome, Refused};
use crate::tls::Session;

/// The most bytes of interim answers that wait for a client; what comes beyond is not sent.
const INTERIM: usize = 64 << 10;

/// A connection, from `accept` until its socket is closed.
///
/// A request takes the machine's lock five times as a rule, uncontended: for its first byte, its head, its answer's head, its
/// answer's end and the flush. A body takes a lock of its own with each piece that is read of it. Each byte counted takes none.
#[derive(Debug)]
pub(crate) struct Connection {
    slot: Slot,
    peer: Peer,
    /// True if the peer is one of `trusted_proxies`: its `X-Forwarded-*` and `Forwarded` are passed on.
    trusted: bool,
    registry: Arc<Registry>,
    /// The way to the successor; none for a server whose connections are never carried.
    departures: Option<Arc<Departures>>,
    commands: Commands,
    progress: Progress,
    machine: Mutex<Machine>,
    /// A copy of the machine's state, to be read without the lock; written under it.
    state: AtomicU8,
    /// Requests answered. Written under the lock, and of an HTTP/2 connection by its streams.
    answered: AtomicU64,
    /// True once it has been counted as not carried.
    refused: AtomicBool,
    /// True if the handler has said that its answer waits for nobody but the client.
    answers_alone: AtomicBool,
    /// The route of the request that is being answered, as its bits.
    route: AtomicU32,
    /// The newest request, and what is left of its body. Locked before the machine, where both are.
    unread: Mutex<Unread>,
    /// Its part in HTTP/2, if it has one. In a box, for an idle connection has none.
    http2: OnceLock<Box<Http2>>,
    /// What its handshake has agreed on; empty without TLS, and before that.
    session: OnceLock<Arc<Session>>,
}

/// A connection's place in the registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Its number, which no other has.
    pub(super) id: u64,
    /// The I/O thread that it lives on.
    pub(super) thread: usize,
}

// ---- who it is -------------------------------------------------------------------------------------------------

impl Connection {
    fn new(
        slot: Slot,
        peer: Peer,
        trusted: bool,
        registry: Arc<Registry>,
        departures: Option<Arc<Departures>>,
        machine: Machine,
        answered: u64,
    ) -> Self {
        Self {
            slot,
            peer,
            trusted,
            registry,
            departures,
            commands: Commands::new(),
            progress: Progress::new(),
            state: AtomicU8::new(machine.state() as u8),
            machine: Mutex::new(machine),
            answered: AtomicU64::new(answered),
            refused: AtomicBool::new(false),
            answers_alone: AtomicBool::new(false),
            route: AtomicU32::new(RouteId::NONE.bits()),
            unread: Mutex::default(),
            http2: OnceLock::new(),
            session: OnceLock::new(),
        }
    }

    /// A connection that was accepted just now.
    pub(super) fn accepted(
        slot: Slot,
        peer: Peer,
        trusted: bool,
        registry: Arc<Registry>,
        departures: Option<Arc<Departures>>,
    ) -> Self {
        let machine = Machine::Parked { since: registry.clock().now() };
        Self::new(slot, peer, trusted, registry, departures, machine, 0)
    }

    /// It begins with a handshake.
    pub(super) fn handshake_begins(&self) {
        self.on(Event::Handshake);
    }

    /// Its TLS is agreed on.
    pub(super) fn secured(&self, session: &Arc<Session>) {
        // A connection has one handshake.
        let _ = self.session.set(Arc::clone(session));
        self.on(Event::Secured);
    }

    /// What its handshake has agreed on; none without TLS, and before that.
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        self.session.get()
    }

    /// Its place in the registry.
    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    /// The other end.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// The commands to it.
    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Its counters.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Bytes received, and sent.
    pub(super) fn moved(&self) -> [u64; 2] {
        [self.progress.received(), self.progress.sent()]
    }

    /// Its state.
    pub(crate) fn state(&self) -> State {
        State::OPEN.get(usize::from(self.state.load(Relaxed))).copied().unwrap_or(State::Closed)
    }

    /// Requests answered on it.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// The route of the request that is being answered.
    fn route(&self) -> RouteId {
        RouteId::from_bits(self.route.load(Relaxed))
    }

    fn set_route(&self, route: RouteId) {
        self.route.store(route.bits(), Relaxed);
    }

    /// The moment at which the head of the request in flight was read, if there is one.
    pub(super) fn request_since(&self) -> Option<tokio::time::Instant> {
        Some(self.machine().exchange()?.started)
    }

    /// A copy of what is known of the request in flight.
    pub(super) fn view(&self) -> Option<RequestView> {
        self.look_who_waits();
        let machine = self.machine();
        let exchange = machine.exchange()?;
        Some(RequestView {
            id: exchange.id.to_string(),
            method: exchange.method.clone(),
            uri: exchange.uri.clone(),
            route: self.registry.totals().routes().name(self.route()).to_owned(),
            peer: self.peer,
            age: exchange.started.elapsed(),
            sent: self.progress.sent().saturating_sub(exchange.sent_before),
            waiting: match machine.state() {
                State::Flushing => Waiting::Client,
                State::Tunnel if exchange.body_unread => Waiting::RequestBody,
                _ => self.progress.waiting(),
            },
            upgraded: machine.state() == State::Tunnel && !exchange.body_unread,
        })
    }

    /// The moment since which it has had no request; None while it has one, and once it was told to close.
    pub(super) fn without_request_since(&self) -> Option<Tick> {
        let machine = self.machine();
        match *machine {
            _ if self.commands.strongest() >= Command::Drop => None,
            Machine::Handshaking { since }
            | Machine::Parked { since }
            | Machine::Reading { idle: since, .. }
            | Machine::Discarding { since, .. }
            | Machine::Closing { since } => Some(since),
            Machine::Http2 { idle, .. } => idle,
            Machine::Answering { .. }
            | Machine::Flushing { .. }
            | Machine::Tunnel { .. }
            | Machine::Closed => None,
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ---- what happens to it ----------------------------------------------------------------------------------------

impl Connection {
    /// Runs the machine, and accounts for a request that has ended.
    fn on(&self, event: Event) -> Option<Afterwards> {
        let mut machine = self.machine();
        // Not every event needs the time, and to read it costs.
        let ended = machine.on(event, || self.registry.clock().now());
        self.state.store(machine.state() as u8, Relaxed);
        let ended = ended?;
        self.answered.store(self.answered().saturating_add(1), Relaxed);
        drop(machine);
        if self.is_stream() {
            self.transport().answered.fetch_add(1, Relaxed);
        }
        let afterwards = ended.exchange.afterwards;
        let sent = self.progress.sent().saturating_sub(ended.exchange.sent_before);
        let body = match ended.exchange.status {
            // All that follows the head is what it has become.
            Some(StatusCode::SWITCHING_PROTOCOLS) => sent,
            // Some of what was produced may not have been sent.
            _ => self.progress.body().saturating_sub(ended.exchange.body_before).min(sent),
        };
        // The next request has none before it is its turn.
        let request = totals::Ended { request: ended, route: self.route(), peer: self.peer, sent, body };
        self.registry.totals().ended(self.slot.thread, request);
        Some(afterwards)
    }

    /// The first byte of a request is there, or may be.
    fn first_byte(&self) {
        self.on(Event::FirstByte);
    }

    /// The socket only seemed to have a byte: a read that fills its buffer leaves the runtime in doubt. Or it was TLS's own.
    fn no_byte(&self) {
        self.on(Event::NoByte);
    }

    /// A request's head was read. `body` is the length of its body in bytes; `u64::MAX` if that is not known. Returns its
    /// id.
    fn head<B>(&self, request: &Request<B>, body: u64) -> RequestId {
        self.registry.totals().begun(self.slot.thread);
        self.begin_body(body);
        self.answers_alone.store(false, Relaxed);
        let mut exchange = Exchange::new(request.method().clone(), request.uri().clone(), body > 0);
        exchange.afterwards = if request.version() < Version::HTTP_11 || body == u64::MAX {
            Afterwards::Decides
        } else if body > 0 || request.extensions().get::<OnUpgrade>().is_some() {
            // Whoever holds the promise of an upgrade would get another connection.
            Afterwards::Apart
        } else {
            Afterwards::Rests
        };
        exchange.version = request.version();
        exchange.client_says = self.registry.totals().access().client_says(request.headers());
        let [received, sent] = self.moved();
        exchange.sending = Pace::after(received);
        exchange.begin_answer(sent);
        exchange.body_before = self.progress.body();
        if self.trusted
            && let Some(given) = RequestId::given(request.headers())
        {
            exchange.id = given;
        }
        let id = exchange.id.clone();
        self.on(Event::Head(Box::new(exchange)));
        id
    }

    /// True if no answer before this one is still to be written.
    fn has_turn(&self) -> bool {
        self.state() != State::Flushing
    }

    /// Returns when the answer before this one is written.
    async fn turn(&self) {
        // This runs in the connection's task, which the flush at the end of the other answer wakes.
        poll_fn(|_| if self.has_turn() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The request's body was read to its end.
    fn body_read(&self) {
        self.progress.body_ended();
        self.on(Event::BodyRead);
    }

    /// Sends an interim answer to the client (RFC 9110, section 15.2), if its answer has not begun and it reads on. On a
    /// stream hyper has no way to.
    fn send_interim(&self, head: &[u8]) {
        if !self.is_stream()
            && let Machine::Answering { exchange } = &mut *self.machine()
            && exchange.status.is_none()
            && exchange.interim.len() + head.len() <= INTERIM
        {
            exchange.interim.extend_from_slice(head);
            self.progress.set_interim(true);
        }
        self.commands.wake(Waiter::Task);
    }

    /// Takes the interim answers that are to be sent now.
    pub(super) fn take_interim(&self) -> Vec<u8> {
        if !self.progress.has_interim() {
            return Vec::new();
        }
        self.progress.set_interim(false);
        match &mut *self.machine() {
            Machine::Answering { exchange } | Machine::Flushing { exchange, .. } => {
                std::mem::take(&mut exchange.interim)
            }
            _ => Vec::new(),
        }
    }

    /// Takes back the rest of them, for which the socket has no room.
    pub(super) fn return_interim(&self, mut rest: Vec<u8>) {
        if let Machine::Answering { exchange } | Machine::Flushing { exchange, .. } = &mut *self.machine() {
            rest.append(&mut exchange.interim);
            exchange.interim = rest;
            self.progress.set_interim(true);
        }
    }

    /// The head of the answer is decided.
    fn decided(&self, status: StatusCode, last: bool) {
        self.on(Event::Decided { status, last });
        self.progress.set_waiting(Waiting::ResponseBody);
    }

    /// The answer is complete; the next flush ends the request.
    fn produced(&self) {
        self.on(Event::Produced);
    }

    /// All that hyper has buffered was written to the socket. If that ends hyper's work, it says what becomes of it.
    pub(super) fn flushed(&self) -> Option<Afterwards> {
        if self.state() != State::Flushing {
            return None;
        }
        let afterwards = self.on(Event::Flushed)?;
        match self.state() {
            State::Parked => Some(afterwards),
            State::Closing => Some(afterwards.max(Afterwards::Apart)),
            State::Answering => {
                if let Machine::Answering { exchange } = &mut *self.machine() {
                    // What was sent since its head came is of the answer before.
                    exchange.begin_answer(self.progress.sent());
                }
                // The next request waits for this, in `turn`.
                self.commands.wake(Waiter::Task);
                None
            }
            _ => None,
        }
    }

    /// True if the request in flight waits for nobody but the client: its answer is there, or is read from a file.
    pub(super) fn waits_for_nobody(&self) -> bool {
        // Written by the task that reads it, or by one that it has waited for: `Relaxed` is enough.
        self.state() == State::Flushing || self.answers_alone.load(Relaxed)
    }

    /// No further request is answered.
    fn close(&self) {
        self.on(Event::Close);
    }

    /// The socket is closed, or the stream has ended.
    pub(crate) fn closed(&self) {
        self.gone();
        if self.is_stream() {
            self.transport().remove_stream(self);
        } else {
            self.registry.remove(self);
        }
    }

    /// Nothing that is left of an answer reaches the client.
    fn gone(&self) {
        let outcome = match (self.command(), self.state()) {
            (Command::Cut, _) => Outcome::Cut,
            (Command::Drop, _) => Outcome::Stalled,
            (_, State::Tunnel) => Outcome::Answered,
            // A body that panics takes the connection's task along.
            _ if std::thread::panicking() => Outcome::BrokenOff,
            _ => Outcome::ClientGone,
        };
        if self.end(outcome) && outcome == Outcome::ClientGone {
            self.lost_client();
        }
    }

    /// The rest of the answer will not come: its handler, or the upstream, broke it off, unless it was to be made of a
    /// body that the client did not send whole.
    pub(super) fn broken_off(&self, client_ended: bool) {
        let by_client = client_ended && self.progress.is_body_lost();
        self.end(if by_client { Outcome::ClientGone } else { Outcome::BrokenOff });
    }

    /// Ends what is in flight. False if that is nothing.
    fn end(&self, outcome: Outcome) -> bool {
        let mut has_ended = false;
        while self.on(Event::End(outcome)).is_some() {
            self.set_route(RouteId::NONE);
            has_ended = true;
        }
        has_ended
    }

    /// Says what the request in flight waits for.
    fn waiting_for(&self, what: Waiting) {
        self.progress.set_waiting(what);
    }

    /// Gives the command that is due if its client takes too long.
    pub(super) fn look(&self, now: Tick, passed: Duration, limits: &Limits) {
        self.look_who_waits();
        let mut machine = self.machine();
        let look = Look {
            now,
            passed,
            command: self.command(),
            answered: self.answered() > 0,
            progress: &self.progress,
            limits,
        };
        let due = machine.due(&look);
        // Before it is told, for its task goes on at once: a client that has its 408 has been counted.
        if let Some(reason) = due.and_then(|command| self.refused(command)) {
            self.count_refused(reason);
        }
        drop(machine);
        if let Some(command) = due {
            self.commands.give(command);
        }
    }

    /// The reason for a command to a client that takes too long; none where that is the usual end of a connection, or it
    /// was told so before.
    fn refused(&self, command: Command) -> Option<Refused> {
        match (self.state(), command) {
            _ if self.commands.strongest() >= Command::TimeOut => None,
            (State::Reading | State::Http2, Command::TimeOut) => Some(Refused::HeaderTimeout),
            (State::Http2, Command::Drop) if self.progress.is_blocked() => Some(Refused::SlowReader),
            (State::Answering | State::Flushing, _) if self.progress.is_blocked() => {
                Some(Refused::SlowReader)
            }
            (State::Answering | State::Flushing, _) => Some(Refused::SlowBody),
            (State::Tunnel, _) if self.progress.is_finished() => Some(Refused::SlowReader),
            (State::Tunnel, _) => Some(Refused::SilentTunnel),
            // Whose body is discarded has had its answer; and a handshake that failed is counted as that.
            (
                State::Handshaking
                | State::Parked
                | State::Reading
                | State::Discarding
                | State::Http2
                | State::Closing
                | State::Closed,
                _,
            ) => None,
        }
    }

    /// Counts a client that is not served, or not to the end.
    fn count_refused(&self, reason: Refused) {
        self.registry.totals().refused.add(reason);
    }
}
