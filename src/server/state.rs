//! What a connection is doing, what it waits for, and what it can be asked to do.

use std::fmt;

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
    pub(in crate::server) const ALL: [Self; 6] = [
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
pub enum Command {
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

impl Command {
    pub(in crate::server) const ALL: [Self; 7] =
        [Self::None, Self::Park, Self::TimeOut, Self::Carry, Self::Finish, Self::Drop, Self::Cut];
}
