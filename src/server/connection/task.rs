//! A connection's own task, from `accept` to close.
//!
//! The connection is parked while it is idle, active while hyper reads a request and sends its answer, and closing once
//! it has had its last answer. One that speaks HTTP/2 is hyper's from then on.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::http::StatusCode;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handshake::Handshaking;
use super::http1::{Http1, Http1s};
use super::http2::{self, Http2};
use super::{Command, Connection, State, Waiter};
use crate::server::stream::ClientStream;
use crate::server::totals::Refused;
use crate::tls::Acceptor;

/// Serves a connection until it is closed, or leaves for the next process.
///
/// It is a future by hand, because the compiler's would have room for each stage and for the steps between them, and an
/// idle connection has little else than its task.
pub(in crate::server) struct Serve {
    stage: Stage,
    http1s: Arc<Http1s>,
}

impl Serve {
    pub(in crate::server) fn new(stream: Box<ClientStream>, http1s: &Arc<Http1s>) -> Self {
        Self { stage: Stage::Parked(Parked(stream)), http1s: Arc::clone(http1s) }
    }

    /// The same for one that is to be closed.
    pub(in crate::server) fn to_close(stream: Box<ClientStream>, http1s: &Arc<Http1s>) -> Self {
        Self { stage: Closing::stage(stream, None), http1s: Arc::clone(http1s) }
    }

    /// The same for one that begins with a handshake of TLS.
    pub(in crate::server) fn after_handshake(
        stream: Box<ClientStream>,
        tls: &Acceptor,
        http1s: &Arc<Http1s>,
    ) -> Self {
        Self { stage: Handshaking::stage(stream, tls), http1s: Arc::clone(http1s) }
    }
}

impl Future for Serve {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let polled = match std::mem::replace(&mut self.stage, Stage::Gone) {
                Stage::Handshaking(handshaking) => handshaking.poll(cx),
                Stage::Parked(parked) => parked.poll(cx, &self.http1s),
                Stage::Greeted(greeted) => greeted.poll(cx, &self.http1s),
                Stage::Active(active) => active.poll(cx, &self.http1s),
                Stage::Http2(http2) => poll_http2(http2, cx),
                Stage::Closing(closing) => closing.poll(cx),
                Stage::Gone => return Poll::Ready(()),
            };
            match polled {
                Polled::Next(stage) => self.stage = stage,
                Polled::Pending(stage) => {
                    self.stage = stage;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// A stage of a connection's life.
pub(super) enum Stage {
    /// In a box, so that a connection has no room for it afterwards.
    Handshaking(Box<Handshaking>),
    Parked(Parked),
    Greeted(Greeted),
    Active(Active),
    Http2(Box<Http2>),
    Closing(Box<Closing>),
    /// It is closed, or belongs to the code that upgraded it, or to the next process.
    Gone,
}

/// A stage that is waited for, or the one after it.
pub(super) enum Polled {
    Pending(Stage),
    Next(Stage),
}

// ---- idle ----------------------------------------------------------------------------------------------------

/// An idle connection: a bare socket.
pub(super) struct Parked(pub(super) Box<ClientStream>);

impl Parked {
    /// Waits for the first byte of a request.
    fn poll(self, cx: &mut Context<'_>, http1s: &Http1s) -> Polled {
        let Self(mut stream) = self;
        let command = stream.connection().commands.poll(Waiter::Task, cx);
        let wake = match command {
            Command::Carry if stream.may_leave() => Wake::Leave,
            // Bytes that were read ahead belong to a request: there is nothing to wait for.
            Command::Finish | Command::Serve | Command::Carry if stream.has_read_ahead() => Wake::Serve,
            // Whoever has asked by now gets an answer. What the kernel has and the runtime has not heard of will be heard of:
            // to go on with it now would find nothing, and begin again.
            Command::Finish => match stream.poll_readable(cx) {
                Poll::Ready(()) => Wake::Serve,
                Poll::Pending if has_begun(&stream) => return Self::pending(stream),
                Poll::Pending => Wake::Close,
            },
            Command::TimeOut | Command::Drop | Command::Cut => Wake::Close,
            Command::Serve | Command::Carry => match stream.poll_readable(cx) {
                Poll::Ready(()) => Wake::Serve,
                Poll::Pending => return Self::pending(stream),
            },
        };
        Polled::Next(match wake {
            Wake::Serve => {
                stream.connection().first_byte();
                let is_new = stream.connection().answered() == 0;
                match stream.session() {
                    Some(session) if session.is_http2() => Stage::http2(stream, http1s),
                    None if is_new && http1s.serving().h2c.load(Relaxed) => Stage::Greeted(Greeted(stream)),
                    _ => Stage::Active(Active::new(stream, http1s)),
                }
            }
            Wake::Leave => {
                stream.leave();
                Stage::Gone
            }
            // Whoever has begun to ask is told that nobody will answer, but for one to whom that is no answer.
            Wake::Close if has_begun(&stream) && !stream.session().is_some_and(|tls| tls.is_http2()) => {
                Closing::stage(stream, Some(last_answer(StatusCode::REQUEST_TIMEOUT)))
            }
            // With TLS the end is said, too.
            Wake::Close if stream.session().is_some() => Closing::stage(stream, None),
            Wake::Close => Stage::Gone,
        })
    }

    /// Waits on: as an idle connection, or with a part of a record for the rest of it, which has the time of a head.
    fn pending(stream: Box<ClientStream>) -> Polled {
        let connection = stream.connection();
        match (connection.state(), stream.has_part_of_record()) {
            (State::Parked, true) => connection.first_byte(),
            (State::Reading, false) => connection.no_byte(),
            _ => {}
        }
        Polled::Pending(Stage::Parked(Self(stream)))
    }
}

/// True if the client has begun to ask, as far as anybody can tell.
fn has_begun(stream: &ClientStream) -> bool {
    stream.has_waiting_byte() || stream.has_part_of_record()
}

/// The reason why a parked connection wakes up.
#[derive(Clone, Copy)]
enum Wake {
    Serve,
    Leave,
    Close,
}

// ---- the first bytes -----------------------------------------------------------------------------------------

/// A new connection, which may be one of HTTP/2: its first bytes say so.
pub(super) struct Greeted(Box<ClientStream>);

impl Greeted {
    fn poll(self, cx: &mut Context<'_>, http1s: &Http1s) -> Polled {
        let Self(mut stream) = self;
        let connection = Arc::clone(stream.connection());
        match connection.commands.poll(Waiter::Task, cx) {
            Command::Drop | Command::Cut => return Polled::Next(Stage::Gone),
            Command::TimeOut => {
                return Polled::Next(Closing::stage(stream, Some(last_answer(StatusCode::REQUEST_TIMEOUT))));
            }
            Command::Carry if stream.may_leave() => {
                stream.leave();
                return Polled::Next(Stage::Gone);
            }
            Command::Serve | Command::Carry | Command::Finish => {}
        }
        match stream.poll_speaks_http2(cx) {
            Poll::Ready(true) => Polled::Next(Stage::http2(stream, http1s)),
            Poll::Ready(false) => Polled::Next(Stage::Active(Active::new(stream, http1s))),
            Poll::Pending => Polled::Pending(Stage::Greeted(Self(stream))),
        }
    }
}

// ---- HTTP/2 --------------------------------------------------------------------------------------------------

impl Stage {
    /// A connection whose client speaks HTTP/2.
    fn http2(stream: Box<ClientStream>, http1s: &Http1s) -> Self {
        Self::Http2(Box::new(Http2::new(stream, http1s)))
    }
}

fn poll_http2(mut http2: Box<Http2>, cx: &mut Context<'_>) -> Polled {
    match http2.poll(cx) {
        Poll::Pending => Polled::Pending(Stage::Http2(http2)),
        Poll::Ready(http2::End::Dropped) => Polled::Next(Stage::Gone),
        // The client may have asked for more before it saw that the connection ends.
        Poll::Ready(http2::End::Closes) => Polled::Next(match http2.into_stream() {
            Some(stream) => Closing::after_more(stream),
            None => Stage::Gone,
        }),
    }
}

// ---- with hyper ----------------------------------------------------------------------------------------------

/// A connection whose request hyper reads and answers: from the first byte of it to the last byte of its answer.
pub(super) struct Active {
    connection: Arc<Connection>,
    /// The bytes that the connection had received before; none if some of those were of this request.
    received_before: Option<u64>,
    http1: Http1,
}

impl Active {
    fn new(stream: Box<ClientStream>, http1s: &Http1s) -> Self {
        let connection = Arc::clone(stream.connection());
        let received_before = (!stream.has_read_ahead()).then(|| connection.progress.received());
        Self { connection, received_before, http1: http1s.begin(stream) }
    }

    fn poll(mut self, cx: &mut Context<'_>, http1s: &Http1s) -> Polled {
        match self.poll_end(cx) {
            Poll::Ready(end) => Polled::Next(self.ended(end, http1s)),
            Poll::Pending => Polled::Pending(Stage::Active(self)),
        }
    }

    /// The stage after the end of hyper's part.
    fn ended(self, end: End, http1s: &Http1s) -> Stage {
        let Self { connection, http1, .. } = self;
        let stream = if let End::Parked = end { http1s.end(http1) } else { http1.into_stream() };
        let Some(stream) = stream else {
            // Upgraded, with the request's body read or given up.
            connection.body_read();
            return Stage::Gone;
        };
        match end {
            End::Parked => Stage::Parked(Parked(stream)),
            End::Leaves => {
                stream.leave();
                Stage::Gone
            }
            End::Closes => {
                let refused = stream.refused();
                if let Some(status) = refused {
                    connection.count_refused(reason(status));
                }
                Closing::stage(stream, refused.map(last_answer))
            }
            End::Http2 => {
                connection.count_refused(Refused::BadRequest);
                Closing::stage(stream, Some(last_answer(StatusCode::BAD_REQUEST)))
            }
            End::TimedOut => Closing::stage(stream, Some(last_answer(StatusCode::REQUEST_TIMEOUT))),
            End::BrokenOff => {
                stream.broken_off();
                Stage::Gone
            }
            End::Dropped => {
                if stream.has_lost_file() {
                    stream.broken_off();
                }
                Stage::Gone
            }
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let connection = &self.connection;
        if connection.commands.poll(Waiter::Task, cx) >= Command::Drop {
            // Half a head can be answered with 408.
            let reads = connection.state() == State::Reading;
            return Poll::Ready(if reads { End::TimedOut } else { End::Dropped });
        }
        let now = connection.registry.watchdog_now();
        if let Poll::Ready(result) = connection.progress.task.timed(now, || self.http1.poll(cx)) {
            let is_http2 = result.as_ref().is_err_and(hyper::Error::is_parse_version_h2);
            // Of the service only a body can fail.
            let is_broken_off = result.as_ref().is_err_and(hyper::Error::is_user);
            if let Err(error) = result {
                tracing::debug!(peer = %connection.peer(), %error, "the connection failed");
            }
            return Poll::Ready(match connection.state() {
                State::Answering | State::Flushing if is_broken_off => End::BrokenOff,
                // The client closed while its request was being answered.
                State::Answering | State::Flushing => End::Dropped,
                _ if is_http2 => End::Http2,
                _ => End::Closes,
            });
        }
        connection.discard_body(cx);
        let received = connection.progress.received();
        if connection.state() == State::Reading && self.received_before == Some(received) {
            connection.no_byte();
        }
        // Read after the poll, which may have changed the state.
        match (connection.state(), connection.commands.strongest()) {
            (State::Parked, _) => Poll::Ready(End::Parked),
            (State::Closing, _) => Poll::Ready(End::Closes),
            (State::Reading, Command::TimeOut) => Poll::Ready(End::TimedOut),
            (State::Reading, Command::Carry) if connection.may_leave() => Poll::Ready(End::Leaves),
            _ => Poll::Pending,
        }
    }
}

/// The end of hyper's part of a connection.
#[derive(Clone, Copy)]
enum End {
    /// Between two requests.
    Parked,
    /// Within a head, to leave for the successor.
    Leaves,
    /// After the last answer, or after bytes that are no request.
    Closes,
    /// After the preface of HTTP/2, the only malformed head that hyper leaves without an answer.
    Http2,
    /// Within a head that took too long.
    TimedOut,
    /// At once: the answer has no end.
    BrokenOff,
    /// At once.
    Dropped,
}

// ---- closing -------------------------------------------------------------------------------------------------

/// A connection that has had its last answer.
///
/// The client may still be sending what nobody will read. To close then would reset the connection and destroy the
/// answer, so what comes is discarded until the client closes, or its time is up (RFC 9112, section 9.6).
pub(super) struct Closing {
    stream: Box<ClientStream>,
    /// An answer of the server's own, or what is left of it.
    unsent: Bytes,
    /// The client may still be sending.
    expects_more: bool,
}

impl Closing {
    pub(super) fn stage(stream: Box<ClientStream>, unsent: Option<Bytes>) -> Stage {
        let expects_more = unsent.is_some()
            || stream.has_read_ahead()
            || stream.has_part_of_record()
            || stream.connection().progress.body_left() > 0;
        Self::of(stream, unsent.unwrap_or_default(), expects_more)
    }

    /// That of a connection of which the client is sure to have sent more.
    pub(super) fn after_more(stream: Box<ClientStream>) -> Stage {
        Self::of(stream, Bytes::new(), true)
    }

    fn of(mut stream: Box<ClientStream>, unsent: Bytes, expects_more: bool) -> Stage {
        stream.forget_read_ahead();
        stream.connection().close();
        Stage::Closing(Box::new(Self { stream, unsent, expects_more }))
    }

    fn poll(mut self: Box<Self>, cx: &mut Context<'_>) -> Polled {
        // Polled before the command is read, so that the answer is sent and what has come is read even if the time is up.
        let ended = self.poll_end(cx).is_ready();
        let command = self.stream.connection().commands.poll(Waiter::Task, cx);
        // Any error means that the client is gone.
        if ended || command >= Command::Drop {
            Polled::Next(Stage::Gone)
        } else {
            Polled::Pending(Stage::Closing(self))
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<Infallible>> {
        let ended = || Err(std::io::ErrorKind::ConnectionAborted.into());
        let mut wire = Pin::new(self.stream.wire());
        while !self.unsent.is_empty() {
            match wire.as_mut().poll_write(cx, &self.unsent) {
                Poll::Ready(Ok(n)) if n > 0 => _ = self.unsent.split_to(n),
                Poll::Ready(Ok(_)) => return Poll::Ready(ended()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        std::task::ready!(wire.as_mut().poll_shutdown(cx))?;
        let mut waste = [0; 4096];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            match wire.as_mut().poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if !waste.filled().is_empty() => self.expects_more = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.expects_more => return Poll::Pending,
                Poll::Ready(Ok(())) | Poll::Pending => return Poll::Ready(ended()),
            }
        }
    }
}

/// The reason for which bytes were no request, by the status that hyper gave them.
fn reason(status: StatusCode) -> Refused {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => Refused::HeadTooLarge,
        _ => Refused::BadRequest,
    }
}

/// An answer of the server's own, to bytes that are no request or an unfinished one.
pub(super) fn last_answer(status: StatusCode) -> Bytes {
    let date = httpdate::HttpDate::from(SystemTime::now());
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n").into()
}
