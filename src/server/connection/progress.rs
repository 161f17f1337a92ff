//! The counters of a connection: written without a lock by the tasks that read and write its socket, read by the sweep.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// The step that a request in flight is waiting for.
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

/// Counters of one connection. Each has one writer at a time, and no reader compares two of them, so `Relaxed` is
/// enough and no read-modify-write is needed.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Bytes read from the socket since it was opened.
    received: AtomicU64,
    /// Bytes written to it.
    sent: AtomicU64,
    /// Bytes of the bodies of answers, as far as they were produced; of an HTTP/2 connection, as far as they were written.
    body: AtomicU64,
    /// Bytes of the request's body that nobody has read yet; `u64::MAX` where their number is not known.
    body_left: AtomicU64,
    /// True if the rest of the request's body cannot be read any more.
    body_lost: AtomicBool,
    /// True if the request's body is asked for and nothing has come since for its reader. Bytes that only frame a chunk
    /// are nothing to it.
    awaits_body: AtomicBool,
    /// True if the socket takes no more of the answer.
    blocked: AtomicBool,
    /// True if the client of a tunnel has finished sending.
    finished: AtomicBool,
    /// There are interim answers to send.
    interim: AtomicBool,
    /// The other thing that a request waits for.
    waiting: AtomicU8,
    /// The polls of the connection's own task.
    pub(crate) task: PollTimer,
    /// The polls of a handler that has a task of its own.
    pub(crate) handler: PollTimer,
}

/// The time on the watchdog's clock at which the current poll of a task began; 0 while it is not polled.
#[derive(Debug, Default)]
pub(crate) struct PollTimer(AtomicU64);

impl PollTimer {
    /// Runs a poll of the task, which the watchdog times.
    pub(crate) fn timed<T>(&self, now: u64, poll: impl FnOnce() -> T) -> T {
        self.0.store(now, Relaxed);
        let polled = poll();
        self.0.store(0, Relaxed);
        polled
    }

    /// The time at which the current poll began; none while there is none.
    pub(crate) fn since(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|since| *since > 0)
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            body: AtomicU64::new(0),
            body_left: AtomicU64::new(0),
            body_lost: AtomicBool::new(false),
            awaits_body: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            interim: AtomicBool::new(false),
            waiting: AtomicU8::new(Waiting::Handler as u8),
            task: PollTimer::default(),
            handler: PollTimer::default(),
        }
    }

    /// Bytes were read from the socket.
    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.store(self.received.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// Bytes were written to the socket.
    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.store(self.sent.load(Relaxed) + bytes as u64, Relaxed);
        set(&self.blocked, false);
    }

    /// Bytes of an answer's body were produced.
    pub(super) fn add_body(&self, bytes: usize) {
        self.body.store(self.body() + bytes as u64, Relaxed);
    }

    /// Bytes of the bodies of answers, as far as they were produced.
    pub(super) fn body(&self) -> u64 {
        self.body.load(Relaxed)
    }

    /// The socket would take no byte.
    pub(crate) fn write_blocked(&self) {
        self.set_blocked(true);
    }

    /// Says whether the client is waited for, to read.
    pub(crate) fn set_blocked(&self, waits: bool) {
        set(&self.blocked, waits);
    }

    /// The client of a tunnel has finished sending.
    pub(crate) fn finish(&self) {
        set(&self.finished, true);
    }

    /// A request begins, with a body of `body` bytes; its client is not waited for yet.
    pub(super) fn begin(&self, body: u64) {
        self.body_left.store(body, Relaxed);
        set(&self.body_lost, false);
        set(&self.interim, false);
        set(&self.awaits_body, false);
        set(&self.blocked, false);
        self.waiting.store(Waiting::Handler as u8, Relaxed);
    }

    /// Says whether there are interim answers to send.
    pub(super) fn set_interim(&self, waits: bool) {
        set(&self.interim, waits);
    }

    /// True if there are interim answers to send.
    pub(super) fn has_interim(&self) -> bool {
        self.interim.load(Relaxed)
    }

    /// Says whether the request's body is waited for.
    pub(super) fn await_body(&self, waits: bool) {
        set(&self.awaits_body, waits);
    }

    /// Some bytes of the request's body were read.
    pub(super) fn read_body(&self, bytes: usize) {
        self.await_body(false);
        let left = self.body_left();
        if left != u64::MAX {
            self.body_left.store(left.saturating_sub(bytes as u64), Relaxed);
        }
    }

    /// The request's body has come to its end.
    pub(super) fn body_ended(&self) {
        self.body_left.store(0, Relaxed);
        self.await_body(false);
    }

    /// The rest of the request's body cannot be read any more.
    pub(super) fn lose_body(&self) {
        set(&self.body_lost, true);
        self.await_body(false);
    }

    /// True if the rest of the request's body cannot be read any more.
    pub(super) fn is_body_lost(&self) -> bool {
        self.body_lost.load(Relaxed)
    }

    /// Bytes of the request's body that nobody has read yet; `u64::MAX` where their number is not known.
    pub(super) fn body_left(&self) -> u64 {
        self.body_left.load(Relaxed)
    }

    pub(super) fn set_waiting(&self, what: Waiting) {
        if what == Waiting::RequestBody {
            self.await_body(true);
        } else {
            self.waiting.store(what as u8, Relaxed);
        }
    }

    /// Bytes read from the socket since it was opened.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes written to the socket since it was opened.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// True if the client is waited for, to send the rest of a body.
    pub(super) fn awaits_body(&self) -> bool {
        self.awaits_body.load(Relaxed)
    }

    /// True if the client of a tunnel has finished sending.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Relaxed)
    }

    /// True if the client is waited for, to read.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    /// The step to show to an operator. A client that is waited for comes before all else.
    pub(super) fn waiting(&self) -> Waiting {
        if self.is_blocked() {
            Waiting::Client
        } else if self.awaits_body() {
            Waiting::RequestBody
        } else {
            Waiting::ALL[usize::from(self.waiting.load(Relaxed))]
        }
    }
}

/// Writes only a change, so that the cache line is not taken from the other readers.
fn set(flag: &AtomicBool, value: bool) {
    if flag.load(Relaxed) != value {
        flag.store(value, Relaxed);
    }
}
