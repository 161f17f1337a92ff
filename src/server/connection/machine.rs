//! The life of a connection.
//!
//! ```text
//!            first byte          head              produced            flushed
//!  Parked ──────────────> Reading ───> Answering ────────────> Flushing ──┬──────────────> Parked
//!    ^                                     ^                              ├─ body unread ─> Discarding ──> Parked
//!    └── accepted, or taken over           │                              ├─ next head ───> Answering
//!                                          └──────────────────────────────┤
//!                                                                         ├─ 101 ─────────> Tunnel
//!                                                                         └─ last answer ─> Closing
//! ```
//!
//! From every state the connection may end: closed by either side, cut, or on its way to the next process. A state knows
//! how long a client may hold it there, and so no client can stay for ever.
//!
//! No socket, no task, no lock and no clock is in here: what happens comes in as an [`Event`] with its time, and a
//! request that has ended comes out as [`Ended`].

use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use tokio::time::Instant;

use super::commands::Command;
use super::pace::{Demand, Pace};
use super::progress::Progress;
use crate::server::clock::Tick;
use crate::server::limits::Limits;
use crate::server::totals::Outcome;

/// How long a client that was answered for the last time may go on sending.
const CLOSING: Duration = Duration::from_secs(2);
/// The same, and how long half a head may still take, once the connection is told to go.
const LEAVING: Duration = Duration::from_millis(500);

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// Whether the connection goes on after the answer is for hyper to know: of HTTP/1.0, and of a body in chunks, which a
    /// length may have stood beside (RFC 9112, section 6.1).
    pub(crate) hyper_decides: bool,
    pub(crate) started: Instant,
    /// None until the head of its answer is decided.
    pub(crate) status: Option<StatusCode>,
    /// The connection is closed after its answer, and the answer says so.
    pub(crate) last: bool,
    /// Of its body something is still to be read.
    pub(crate) body_unread: bool,
    /// Interim answers (1xx) on their way to the client.
    pub(super) interim: Vec<u8>,
    /// Bytes sent on the connection before its answer.
    pub(crate) sent_before: u64,
    /// How fast the client sends, and reads.
    pub(super) sending: Pace,
    pub(super) reading: Pace,
}

impl Exchange {
    /// A request whose head was read just now.
    pub(super) fn new(method: Method, uri: Uri, has_body: bool) -> Self {
        Self {
            method,
            uri,
            hyper_decides: false,
            started: Instant::now(),
            status: None,
            last: false,
            body_unread: has_body,
            interim: Vec::new(),
            sent_before: 0,
            sending: Pace::default(),
            reading: Pace::default(),
        }
    }
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exchange: Exchange,
    pub(crate) outcome: Outcome,
}

/// A connection's state.
#[derive(Debug)]
pub(crate) enum Machine {
    /// Idle, the only state that is: a socket and a few words. hyper is not there.
    Parked { since: Tick },
    /// hyper is there; the head of a request has begun.
    Reading { since: Tick },
    /// A request is being answered.
    Answering { exchange: Box<Exchange> },
    /// The answer is complete; its last bytes are unwritten. The head of the next request may have come meanwhile
    /// (hyper reads it as soon as the body before it has ended); its turn comes afterwards.
    Flushing { exchange: Box<Exchange>, next: Option<Box<Exchange>> },
    /// The answer is out; the rest of the request's body is read and thrown away.
    Discarding { since: Tick, sending: Box<Pace> },
    /// It speaks another protocol, by an upgrade.
    Tunnel { exchange: Box<Exchange> },
    /// The last answer is out, or on its way; what the client still sends is thrown away.
    Closing { since: Tick },
    /// The socket is closed, or another process's.
    Closed,
}

/// The name of a connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Idle: a bare socket.
    Parked,
    /// A request's head is being read.
    Reading,
    /// A request is being answered.
    Answering,
    /// The last bytes of an answer are being written.
    Flushing,
    /// The rest of a body that nobody wanted is being read.
    Discarding,
    /// It speaks another protocol now, by an upgrade.
    Tunnel,
    /// Answered for the last time.
    Closing,
    /// Closed: no open connection is in this state.
    Closed,
}

impl State {
    /// Those of open connections, in the order of their numbers.
    pub const OPEN: [Self; 7] = [
        Self::Parked,
        Self::Reading,
        Self::Answering,
        Self::Flushing,
        Self::Discarding,
        Self::Tunnel,
        Self::Closing,
    ];

    /// Its name in metrics and in `/status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Reading => "reading",
            Self::Answering => "answering",
            Self::Flushing => "flushing",
            Self::Discarding => "discarding",
            Self::Tunnel => "tunnel",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// What happens to a connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// The first byte of a request is there.
    FirstByte,
    /// A request's head was read.
    Head(Box<Exchange>),
    /// A request's body was read to its end.
    BodyRead,
    /// The head of the answer is decided, and whether it is the connection's last.
    Decided { status: StatusCode, last: bool },
    /// The answer is complete.
    Produced,
    /// All that was written has left for the socket.
    Flushed,
    /// No further request is answered.
    Close,
    /// The socket is closed, or leaves for the next process. Of every request in flight, in turn, it says how it ended.
    End(Outcome),
}

impl Machine {
    /// Its name.
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Parked { .. } => State::Parked,
            Self::Reading { .. } => State::Reading,
            Self::Answering { .. } => State::Answering,
            Self::Flushing { .. } => State::Flushing,
            Self::Discarding { .. } => State::Discarding,
            Self::Tunnel { .. } => State::Tunnel,
            Self::Closing { .. } => State::Closing,
            Self::Closed => State::Closed,
        }
    }

    /// The request in flight: of two, the one whose answer comes first.
    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        match self {
            Self::Answering { exchange } | Self::Flushing { exchange, .. } | Self::Tunnel { exchange } => {
                Some(exchange)
            }
            Self::Parked { .. }
            | Self::Reading { .. }
            | Self::Discarding { .. }
            | Self::Closing { .. }
            | Self::Closed => None,
        }
    }

    /// Goes on to the next state. Events that mean nothing in a state change nothing: a body that is dropped after
    /// its connection was closed, a flush with nothing to flush.
    pub(crate) fn on(&mut self, event: Event, now: Tick) -> Option<Ended> {
        let (state, ended) = match (std::mem::replace(self, Self::Closed), event) {
            (Self::Parked { .. }, Event::FirstByte) => (Self::Reading { since: now }, None),
            // Where hyper itself decides what becomes of a connection (HTTP/1.0) it may read on by itself; and the head
            // after a discarded body says that the body has ended.
            (Self::Reading { .. } | Self::Parked { .. } | Self::Discarding { .. }, Event::Head(exchange)) => {
                (Self::Answering { exchange }, None)
            }
            (Self::Flushing { exchange, next: None }, Event::Head(next)) => {
                (Self::Flushing { exchange, next: Some(next) }, None)
            }

            (Self::Answering { mut exchange }, Event::BodyRead) => {
                exchange.body_unread = false;
                (Self::Answering { exchange }, None)
            }
            (Self::Flushing { mut exchange, next }, Event::BodyRead) => {
                exchange.body_unread = false;
                (Self::Flushing { exchange, next }, None)
            }
            (Self::Discarding { .. }, Event::BodyRead) => (Self::Parked { since: now }, None),

            (Self::Answering { mut exchange }, Event::Decided { status, last }) => {
                exchange.status = Some(status);
                exchange.last = last;
                (Self::Answering { exchange }, None)
            }
            (Self::Answering { exchange }, Event::Produced) => {
                (Self::Flushing { exchange, next: None }, None)
            }
            (Self::Flushing { exchange, next: None }, Event::Flushed)
                if exchange.status == Some(StatusCode::SWITCHING_PROTOCOLS) =>
            {
                (Self::Tunnel { exchange }, None)
            }
            (Self::Flushing { exchange, next }, Event::Flushed) => {
                let state = match next {
                    Some(exchange) => Self::Answering { exchange },
                    None if exchange.last => Self::Closing { since: now },
                    None if exchange.body_unread => {
                        Self::Discarding { since: now, sending: Box::new(exchange.sending) }
                    }
                    None => Self::Parked { since: now },
                };
                (state, Some(Ended { exchange: *exchange, outcome: Outcome::Answered }))
            }

            (Self::Parked { .. } | Self::Reading { .. } | Self::Discarding { .. }, Event::Close) => {
                (Self::Closing { since: now }, None)
            }

            (Self::Flushing { exchange, next: Some(next) }, Event::End(outcome)) => {
                (Self::Answering { exchange: next }, Some(Ended { exchange: *exchange, outcome }))
            }
            (
                Self::Answering { exchange } | Self::Flushing { exchange, .. } | Self::Tunnel { exchange },
                Event::End(outcome),
            ) => (Self::Closed, Some(Ended { exchange: *exchange, outcome })),
            (Self::Closed, _) | (_, Event::End(_)) => (Self::Closed, None),

            (state, _) => (state, None),
        };
        *self = state;
        ended
    }

    /// What a connection is told whose client takes too long: a limit for every state in which the client is waited
    /// for. Called by the sweep, again and again.
    pub(crate) fn due(&mut self, look: &Look<'_>) -> Option<Command> {
        let Look { now, command, progress, limits, .. } = *look;
        let leaving = command >= Command::Carry;
        let demand = |silence| Demand { silence, rate: limits.min_rate, grace: limits.min_rate_grace };
        match self {
            Self::Parked { since } => {
                let limit = if look.answered { limits.keepalive_timeout } else { limits.header_timeout };
                (now.since(*since) >= limit).then_some(Command::Finish)
            }
            Self::Reading { since } => {
                let limit = if command >= Command::Finish { LEAVING } else { limits.header_timeout };
                (now.since(*since) >= limit).then_some(Command::TimeOut)
            }
            Self::Answering { exchange } | Self::Flushing { exchange, .. } => {
                let demand =
                    |silence| Demand { silence, rate: limits.min_rate, grace: limits.min_rate_grace };
                let (sends, reads) = (progress.awaits_body(), progress.is_blocked());
                let (received, sent) = (progress.received(), progress.sent());
                let sends_too_slowly =
                    exchange.sending.falls_short(sends, received, look.passed, &demand(limits.read_timeout));
                let reads_too_slowly =
                    exchange.reading.falls_short(reads, sent, look.passed, &demand(limits.write_timeout));
                match (reads_too_slowly, sends_too_slowly) {
                    (true, _) => Some(Command::Drop),
                    // Once an answer has begun there is no way left to say so.
                    (false, true) if exchange.status.is_some() => Some(Command::Drop),
                    (false, true) => Some(Command::TimeOut),
                    (false, false) => None,
                }
            }
            Self::Discarding { since, sending } => {
                let demand = demand(limits.read_timeout);
                let too_slowly = sending.falls_short(true, progress.received(), look.passed, &demand);
                (too_slowly || leaving && now.since(*since) >= LEAVING).then_some(Command::Drop)
            }
            Self::Tunnel { exchange } => {
                let silence = limits.tunnel_idle_timeout?;
                let demand = Demand { silence, rate: 0, grace: Duration::ZERO };
                let moved = progress.received().wrapping_add(progress.sent());
                exchange.sending.falls_short(true, moved, look.passed, &demand).then_some(Command::Drop)
            }
            Self::Closing { since } => {
                let limit = if leaving { LEAVING } else { CLOSING };
                (now.since(*since) >= limit).then_some(Command::Drop)
            }
            Self::Closed => None,
        }
    }
}

/// A look at a connection, by the sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    pub(crate) now: Tick,
    /// How long ago the last look was.
    pub(crate) passed: Duration,
    /// The command that stands.
    pub(crate) command: Command,
    /// Whether a request was answered on the connection before.
    pub(crate) answered: bool,
    pub(crate) progress: &'a Progress,
    pub(crate) limits: &'a Limits,
}
