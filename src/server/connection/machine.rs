//! The life of a connection.
//!
//! ```text
//!            first byte          head              produced            flushed
//!  Parked ──────────────> Reading ───> Answering ────────────> Flushing ──┬──────────────> Parked
//!    ^                                     ^                              ├─ body unread ─> Discarding ──> Parked
//!    ├── accepted, or taken over           │                              ├─ next head ───> Answering
//!    └── Handshaking <── accepted for TLS  └──────────────────────────────┤
//!                                                                         ├─ 101 ─────────> Tunnel
//!                                                                         └─ last answer ─> Closing
//! ```
//!
//! A connection that speaks HTTP/2 leaves this for `Http2`, and has a life of its own for each stream: that one begins
//! with the head of its request, and has ended once its answer is written and its request read, or discarded.
//!
//! From every state the connection may end: closed by either side, cut, or carried to the successor. Every state has a
//! limit on the time that the client may keep it there, so no client can hold a connection for ever.
//!
//! There is no socket, no task, no lock and no clock in here: each [`Event`] is passed in with its time, and a
//! request that has ended is returned as [`Ended`].

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::commands::Command;
use super::file::SentFile;
use super::pace::{Demand, Pace};
use super::progress::Progress;
use crate::server::access::ClientSays;
use crate::server::clock::Tick;
use crate::server::limits::Limits;
use crate::server::request_id::RequestId;
use crate::server::totals::Outcome;

/// The time that a client may go on sending after its last answer.
const CLOSING: Duration = Duration::from_secs(2);
/// The same, and the time for the rest of a head, once the connection is told to leave or to finish.
const LEAVING: Duration = Duration::from_millis(500);
/// The time for the requests that an HTTP/2 client had sent before it saw that the connection is to end: until it answers
/// the PING that says so (RFC 9113, section 6.8), if it does.
const GOING_AWAY: Duration = Duration::from_secs(2);
/// The time after which what it asks for on that connection is refused. It is long enough for a machine that is short of time:
/// some clients count a refusal as a failure, though it says that they may ask again elsewhere.
const ASKING_ON: Duration = Duration::from_secs(10);

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) id: RequestId,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    /// Kept for the access log, if that wants it.
    pub(crate) client_says: Option<Box<ClientSays>>,
    pub(crate) afterwards: Afterwards,
    pub(crate) started: Instant,
    /// None until the head of its answer is decided.
    pub(crate) status: Option<StatusCode>,
    /// True if the connection is closed after its answer, which says so.
    pub(crate) last: bool,
    /// True if a part of its body is unread.
    pub(crate) body_unread: bool,
    /// Interim answers (1xx) on their way to the client.
    pub(super) interim: Vec<u8>,
    /// The file that its answer is made of, if the kernel sends it.
    pub(super) file: Option<Arc<SentFile>>,
    /// Bytes sent on the connection before its answer.
    pub(crate) sent_before: u64,
    /// The same of the bodies of answers.
    pub(crate) body_before: u64,
    /// The client's pace in sending, and in reading.
    pub(super) sending: Pace,
    pub(super) reading: Pace,
}

impl Exchange {
    /// A request whose head was read just now.
    pub(crate) fn new(method: Method, uri: Uri, has_body: bool) -> Self {
        Self {
            id: RequestId::fresh(),
            method,
            uri,
            version: Version::HTTP_11,
            client_says: None,
            afterwards: Afterwards::Apart,
            started: Instant::now(),
            status: None,
            last: false,
            body_unread: has_body,
            interim: Vec::new(),
            file: None,
            sent_before: 0,
            body_before: 0,
            sending: Pace::default(),
            reading: Pace::default(),
        }
    }

    /// Its answer is the next to be sent, after so many bytes on the connection.
    pub(super) fn begin_answer(&mut self, sent: u64) {
        self.sent_before = sent;
        self.reading = Pace::after(sent);
    }
}

/// What becomes of hyper's part once the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Afterwards {
    /// Nothing of the request, or of its answer, is left in it: it rests until another request comes.
    Rests,
    /// It is taken apart, for there may be something left: bytes of a body, or of the next request.
    Apart,
    /// Only hyper knows that the connection goes on: with HTTP/1.0, and with a body in chunks, beside which a
    /// `Content-Length` may have stood (RFC 9112, section 6.1).
    Decides,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) outcome: Outcome,
}

/// A connection's state.
#[derive(Debug)]
pub(crate) enum Machine {
    /// The handshake of TLS, before the first request.
    Handshaking { since: Tick },
    /// Idle, the only state that is: a bare socket, without hyper.
    Parked { since: Tick },
    /// The first byte of a request has come, and hyper reads its head; or a part of a record of TLS, in which there may be one.
    /// `idle` since it was parked before that, and before others which came to nothing.
    Reading { since: Tick, idle: Tick },
    /// A request is being answered.
    Answering { exchange: Box<Exchange> },
    /// The answer is complete; its last bytes are unwritten. The head of the next request may be here already
    /// (hyper reads it as soon as the body before it has ended); it is answered afterwards.
    Flushing { exchange: Box<Exchange>, next: Option<Box<Exchange>> },
    /// The answer is written; the rest of the request's body is read and discarded.
    Discarding { since: Tick, sending: Box<Pace> },
    /// It speaks another protocol, by an upgrade; or will, once the rest of the request's body is read.
    Tunnel { exchange: Box<Exchange> },
    /// It speaks HTTP/2: each of its requests is a stream, which has a machine of its own. `idle` since there is none; none
    /// while there is. `frame` since a frame is on its way, other than one of a body. `going_away` since the client was told
    /// that the connection is to end.
    Http2 { idle: Option<Tick>, frame: Option<Tick>, going_away: Option<Tick>, reading: Box<Pace> },
    /// The last answer is written, or being written; what the client still sends is discarded.
    Closing { since: Tick },
    /// The socket is closed, or the successor's.
    Closed,
}

/// The name of a connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// TLS is being agreed on.
    Handshaking,
    /// Idle: a bare socket.
    Parked,
    /// A request's head is being read.
    Reading,
    /// A request is being answered.
    Answering,
    /// The last bytes of an answer are being written.
    Flushing,
    /// The rest of an unread body is being discarded.
    Discarding,
    /// It speaks another protocol now, by an upgrade.
    Tunnel,
    /// It speaks HTTP/2, with or without requests.
    Http2,
    /// Answered for the last time.
    Closing,
    /// Closed: no open connection is in this state.
    Closed,
}

impl State {
    /// The states of open connections, in the order of their discriminants.
    pub const OPEN: [Self; 9] = [
        Self::Handshaking,
        Self::Parked,
        Self::Reading,
        Self::Answering,
        Self::Flushing,
        Self::Discarding,
        Self::Tunnel,
        Self::Http2,
        Self::Closing,
    ];

    /// Its name in metrics and in `/status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshaking => "handshaking",
            Self::Parked => "parked",
            Self::Reading => "reading",
            Self::Answering => "answering",
            Self::Flushing => "flushing",
            Self::Discarding => "discarding",
            Self::Tunnel => "tunnel",
            Self::Http2 => "http2",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// Something that happens to a connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// A handshake of TLS is to come first.
    Handshake,
    /// It has succeeded.
    Secured,
    /// The first byte of a request is there, or may be.
    FirstByte,
    /// It was not: the socket only seemed to have one, or it was TLS's own.
    NoByte,
    /// A request's head was read.
    Head(Box<Exchange>),
    /// A request's body was read to its end.
    BodyRead,
    /// The head of the answer is decided; `last` if the connection closes after it.
    Decided { status: StatusCode, last: bool },
    /// The answer is complete.
    Produced,
    /// All that hyper has buffered was written to the socket.
    Flushed,
    /// It speaks HTTP/2 from here on.
    Http2,
    /// An HTTP/2 connection has streams, or has none any more.
    Streams(bool),
    /// An HTTP/2 client has begun a frame and not ended it, or has ended it.
    Frame(bool),
    /// An HTTP/2 client was told that the connection is to end.
    GoAway,
    /// No further request is answered.
    Close,
    /// The socket is closed, or leaves for the successor: ends one request in flight, the oldest. Given again until
    /// there is none, it also ends the connection.
    End(Outcome),
}

impl Machine {
    /// The state's name.
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Handshaking { .. } => State::Handshaking,
            Self::Parked { .. } => State::Parked,
            Self::Reading { .. } => State::Reading,
            Self::Answering { .. } => State::Answering,
            Self::Flushing { .. } => State::Flushing,
            Self::Discarding { .. } => State::Discarding,
            Self::Tunnel { .. } => State::Tunnel,
            Self::Http2 { .. } => State::Http2,
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
            Self::Handshaking { .. }
            | Self::Parked { .. }
            | Self::Reading { .. }
            | Self::Discarding { .. }
            | Self::Http2 { .. }
            | Self::Closing { .. }
            | Self::Closed => None,
        }
    }

    /// True of an HTTP/2 connection whose client has had time enough to see that it is to end. h2 takes further streams
    /// until the client has answered the PING, which it may never do.
    pub(crate) fn refuses_streams(&self, now: impl Fn() -> Tick) -> bool {
        matches!(self, Self::Http2 { going_away: Some(since), .. } if now().since(*since) >= ASKING_ON)
    }

    /// Goes on to the next state. An event that has no meaning in a state changes nothing: a body that is dropped
    /// after its connection was closed, a flush with nothing to flush.
    pub(crate) fn on(&mut self, event: Event, now: impl Fn() -> Tick) -> Option<Ended> {
        let (state, ended) = match (std::mem::replace(self, Self::Closed), event) {
            (Self::Parked { .. }, Event::Handshake) => (Self::Handshaking { since: now() }, None),
            // Two ends after which a request may come: the handshake's, and that of a body which nobody wanted.
            (Self::Handshaking { .. }, Event::Secured) | (Self::Discarding { .. }, Event::BodyRead) => {
                (Self::Parked { since: now() }, None)
            }
            (Self::Parked { since: idle }, Event::FirstByte) => (Self::Reading { since: now(), idle }, None),
            // No idleness ends by what comes to nothing.
            (Self::Reading { idle, .. }, Event::NoByte) => (Self::Parked { since: idle }, None),
            // Beside `Reading`: where hyper decides if the connection goes on (HTTP/1.0), it may read the next head
            // before the connection is parked; and a head after a discarded body says that the body has ended.
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
            (Self::Tunnel { mut exchange }, Event::BodyRead) => {
                exchange.body_unread = false;
                (Self::Tunnel { exchange }, None)
            }

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
                    None if exchange.last => Self::Closing { since: now() },
                    None if exchange.body_unread => {
                        Self::Discarding { since: now(), sending: Box::new(exchange.sending) }
                    }
                    None => Self::Parked { since: now() },
                };
                (state, Some(Ended { exchange, outcome: Outcome::Answered }))
            }

            (Self::Parked { .. } | Self::Reading { .. }, Event::Http2) => {
                let idle = Some(now());
                (Self::Http2 { idle, frame: None, going_away: None, reading: Box::default() }, None)
            }
            (Self::Http2 { frame, going_away, reading, .. }, Event::Streams(open)) => {
                (Self::Http2 { idle: (!open).then(now), frame, going_away, reading }, None)
            }
            (Self::Http2 { idle, going_away, reading, .. }, Event::Frame(begun)) => {
                (Self::Http2 { idle, frame: begun.then(now), going_away, reading }, None)
            }
            (Self::Http2 { idle, frame, reading, .. }, Event::GoAway) => {
                let now = now();
                (Self::Http2 { idle: idle.map(|_| now), frame, going_away: Some(now), reading }, None)
            }

            (
                Self::Handshaking { .. }
                | Self::Parked { .. }
                | Self::Reading { .. }
                | Self::Discarding { .. }
                | Self::Http2 { .. },
                Event::Close,
            ) => (Self::Closing { since: now() }, None),

            (Self::Flushing { exchange, next: Some(next) }, Event::End(outcome)) => {
                (Self::Answering { exchange: next }, Some(Ended { exchange, outcome }))
            }
            (
                Self::Answering { exchange } | Self::Flushing { exchange, .. } | Self::Tunnel { exchange },
                Event::End(outcome),
            ) => (Self::Closed, Some(Ended { exchange, outcome })),
            (Self::Closed, _) | (_, Event::End(_)) => (Self::Closed, None),

            (state, _) => (state, None),
        };
        *self = state;
        ended
    }

    /// The command to a connection whose client takes too long, by the limit of its state. Called at every look of
    /// the sweep.
    pub(crate) fn due(&mut self, look: &Look<'_>) -> Option<Command> {
        let Look { now, command, progress, limits, .. } = *look;
        let leaving = command >= Command::Carry;
        let idleness = if look.answered { limits.keepalive_timeout } else { limits.header_timeout };
        let head = if command >= Command::Finish { LEAVING } else { limits.header_timeout };
        let demand = |silence| Demand { silence, rate: limits.min_rate, grace: limits.min_rate_grace };
        match self {
            Self::Parked { since } => (now.since(*since) >= idleness).then_some(Command::Finish),
            Self::Handshaking { since } => (now.since(*since) >= head).then_some(Command::TimeOut),
            Self::Reading { since, idle } => {
                // Parts of records that come to nothing may follow each other so closely that it is never seen to be idle.
                // Whoever begins to ask before the end of its idleness has the time of a head beyond it.
                let is_over = now.since(*idle) >= idleness.saturating_add(limits.header_timeout);
                (is_over || now.since(*since) >= head).then_some(Command::TimeOut)
            }
            Self::Answering { exchange } | Self::Flushing { exchange, .. } => {
                let (sends, reads) = (progress.awaits_body(), progress.is_blocked());
                let (received, sent) = (progress.received(), progress.sent());
                let sends_too_slowly =
                    exchange.sending.falls_short(sends, received, look.passed, &demand(limits.read_timeout));
                let reads_too_slowly =
                    exchange.reading.falls_short(reads, sent, look.passed, &demand(limits.write_timeout));
                match (reads_too_slowly, sends_too_slowly) {
                    (true, _) => Some(Command::Drop),
                    // Once an answer has begun there can be no 408.
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
            // hyper lets go of the socket when it has read the body.
            Self::Tunnel { exchange } if exchange.body_unread => {
                let demand = demand(limits.read_timeout);
                let received = progress.received();
                let sends_too_slowly = exchange.sending.falls_short(true, received, look.passed, &demand);
                sends_too_slowly.then_some(Command::Drop)
            }
            Self::Tunnel { exchange } => {
                // To a client that has finished sending, what is left is an answer as any other.
                let reads = progress.is_finished() && progress.is_blocked();
                let reads_too_slowly = exchange.reading.falls_short(
                    reads,
                    progress.sent(),
                    look.passed,
                    &demand(limits.write_timeout),
                );
                let is_silent = limits.tunnel_idle_timeout.is_some_and(|silence| {
                    let demand = Demand { silence, rate: 0, grace: Duration::ZERO };
                    let moved = progress.received().wrapping_add(progress.sent());
                    exchange.sending.falls_short(true, moved, look.passed, &demand)
                });
                (reads_too_slowly || is_silent).then_some(Command::Drop)
            }
            Self::Http2 { idle, frame, going_away, reading } => {
                let reads = progress.is_blocked();
                let demand = demand(limits.write_timeout);
                if reading.falls_short(reads, progress.sent(), look.passed, &demand) {
                    return Some(Command::Drop);
                }
                // While it does not read, it may not be read from either.
                if reads && frame.is_some() {
                    *frame = Some(now);
                }
                if frame.is_some_and(|since| now.since(since) >= limits.header_timeout) {
                    return Some(Command::TimeOut);
                }
                // Streams that are refused end no idleness: a client that asks on has no more time than one that is silent.
                let (limit, due) = match going_away {
                    Some(_) => (GOING_AWAY, Command::Drop),
                    None => (idleness, Command::Finish),
                };
                idle.is_some_and(|since| now.since(since) >= limit).then_some(due)
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
    /// The time since the last look.
    pub(crate) passed: Duration,
    /// The strongest command so far.
    pub(crate) command: Command,
    /// True if a request was answered on the connection before.
    pub(crate) answered: bool,
    pub(crate) progress: &'a Progress,
    pub(crate) limits: &'a Limits,
}
