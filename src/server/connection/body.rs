//! The bodies of a request and of its answer, as the connection follows them.
//!
//! A request's body that its handler leaves unread is discarded while the answer is sent, if it is small enough: then
//! the connection is kept. If it is not, the answer says that the connection closes (RFC 9112, section 9.3).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{LengthLimitError, Limited};
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::{Command, Connection, Refused, Waiter, Waiting};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const TOO_LATE: &str = "the client took too long to send the body";

/// The most bytes of an unread body that are discarded to keep the connection.
const DISCARD: u64 = 256 << 10;

/// The number of chunks of such a body that are read before the answer has to say if the connection closes.
const CHUNKS: u32 = 4;

// ---- the request's -------------------------------------------------------------------------------------------

/// A request's body, at most `body_limit` bytes of it.
pub(super) struct RequestBody {
    /// None once it has failed.
    inner: Option<Limited<Incoming>>,
    connection: Arc<Connection>,
    /// The number of its request on the connection.
    request: u64,
    /// The connection's own, which hyper wakes when something has come for the reader.
    waker: Waker,
    /// The client waits for `100 Continue`, which hyper sends when the body is first asked for.
    unasked: bool,
}

/// The number of bytes of a request's body; `u64::MAX` where its head does not say.
pub(super) fn announced(body: &Incoming) -> u64 {
    if body.is_end_stream() {
        return 0;
    }
    body.size_hint().exact().unwrap_or(u64::MAX)
}

impl RequestBody {
    /// Gives a request the body that its handler reads.
    pub(super) fn wrap(
        request: Request<Incoming>,
        connection: &Arc<Connection>,
        limit: u64,
    ) -> Request<Body> {
        if announced(request.body()) == 0 {
            return request.map(|_| Body::empty());
        }
        let unasked = expects_continue(request.headers());
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        request.map(|body| {
            let inner = Some(Limited::new(body, limit));
            let mut unread = connection.unread();
            unread.is_read = true;
            let request = unread.request;
            drop(unread);
            let waker = Waker::from(Arc::clone(connection));
            Body::new(Self { inner, connection: Arc::clone(connection), request, waker, unasked })
        })
    }

    /// Leaves unread the body of a request that is refused before a handler sees it.
    pub(super) fn refuse(request: Request<Incoming>, connection: &Arc<Connection>) {
        drop(Self::wrap(request, connection, u64::MAX));
    }

    fn fail(&mut self, error: BoxError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if error.is::<LengthLimitError>() {
            self.connection.count_refused(Refused::BodyTooLarge);
        }
        self.inner = None;
        self.report(|connection, unread| {
            connection.progress.lose_body();
            connection.reader_is_done(unread);
        });
        Poll::Ready(Some(Err(error)))
    }

    /// Reports to the connection, unless its next request has begun, or the stream has ended: hyper reads the next head
    /// before the reader of this body, which may be another task, has seen the end.
    fn report<T>(&self, report: impl FnOnce(&Connection, &mut Unread) -> T) -> Option<T> {
        let mut unread = self.connection.unread();
        (unread.request == self.request).then(|| report(&self.connection, &mut unread))
    }
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        this.unasked = false;
        if this.inner.is_none() {
            return Poll::Ready(None);
        }
        // The reader may be another task than the connection's. It is woken by commands, and for what has come; what
        // comes from here on ends the wait, even if the reader does not look again.
        let command = this.report(|connection, _| {
            connection.waiting_for(Waiting::RequestBody);
            connection.commands.poll(Waiter::Reader, cx)
        });
        let is_stream = this.connection.is_stream();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let waker = if command.is_some() { &this.waker } else { cx.waker() };
        let frame = match Pin::new(&mut *inner).poll_frame(&mut Context::from_waker(waker)) {
            Poll::Ready(Some(Err(error))) => return this.fail(error),
            Poll::Ready(frame) => frame,
            Poll::Pending if command == Some(Command::TimeOut) => return this.fail(TOO_LATE.into()),
            // Of a stream that is dropped, or has ended, nothing else tells its reader: the socket stays open.
            Poll::Pending if is_stream && command.is_none_or(|command| command >= Command::Drop) => {
                return this.fail(TOO_LATE.into());
            }
            Poll::Pending => return Poll::Pending,
        };
        match &frame {
            Some(Ok(frame)) if !inner.is_end_stream() => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.report(|connection, _| connection.body_came(bytes));
            }
            _ => {
                this.inner = None;
                this.report(|connection, unread| {
                    connection.body_read();
                    connection.reader_is_done(unread);
                });
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Limited::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Limited::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let unasked = self.unasked;
        self.report(|connection, unread| {
            unread.is_read = false;
            if unasked {
                // The client waits for `100 Continue` in vain: it may or may not send the body all the same (RFC 9110,
                // section 10.1.1).
                connection.progress.lose_body();
            } else if connection.is_stream() && connection.progress.body_left() > DISCARD {
                // Once the client has the answer, h2 tells it that nobody wants the rest (RFC 9113, section 8.1).
                connection.progress.await_body(false);
            } else {
                connection.progress.await_body(false);
                unread.leftover = Some(Leftover(Box::new(inner)));
            }
        });
        // The connection's task discards it; this may be another task.
        self.connection.commands.wake(Waiter::Task);
    }
}

/// Woken by hyper when something of a request's body, or its end, is there for its reader.
impl Wake for Connection {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.progress.await_body(false);
        self.commands.wake(Waiter::Reader);
    }
}

/// The rest of a body that its handler did not read.
#[derive(Debug)]
struct Leftover(Box<Limited<Incoming>>);

/// The newest request of a connection, and what is left of its body. It is locked while that body reports, and while the
/// next request takes its place.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// The request's number.
    request: u64,
    /// True while its reader, which may be another task, has the body.
    is_read: bool,
    leftover: Option<Leftover>,
}

impl Connection {
    /// A request begins, with a body of so many bytes.
    pub(super) fn begin_body(&self, bytes: u64) {
        let mut unread = self.unread();
        *unread = Unread { request: unread.request + 1, ..Unread::default() };
        self.progress.begin(bytes);
    }

    /// Some bytes of a body were read.
    fn body_came(&self, bytes: usize) {
        self.progress.read_body(bytes);
        if self.is_stream() {
            // Of a connection, its socket tells.
            self.progress.add_received(bytes);
        }
    }

    /// Discards what has come of an unread body.
    pub(super) fn discard_body(&self, cx: &mut Context<'_>) {
        if self.progress.body_left() == 0 {
            return;
        }
        let leftover = &mut self.unread().leftover;
        while let Some(Leftover(body)) = leftover {
            let Poll::Ready(frame) = Pin::new(&mut **body).poll_frame(cx) else { return };
            let ended = frame.is_none() || body.is_end_stream();
            match frame {
                _ if ended => {
                    *leftover = None;
                    self.body_read();
                }
                Some(Ok(frame)) => self.body_came(frame.data_ref().map_or(0, Bytes::len)),
                // hyper has seen the same error, and closes the connection.
                Some(Err(_)) | None => {
                    *leftover = None;
                    self.progress.lose_body();
                }
            }
        }
    }

    /// True if something is left of a body, and is being read, or to be discarded.
    pub(super) fn has_unread_body(&self) -> bool {
        let unread = self.unread();
        self.progress.body_left() > 0 && (unread.is_read || unread.leftover.is_some())
    }

    /// The reader of a body will read no more of it. A stream may end with that.
    fn reader_is_done(&self, unread: &mut Unread) {
        unread.is_read = false;
        if self.is_stream() {
            self.commands.wake(Waiter::Task);
        }
    }

    /// Gives up a request's body for good: what its reader, which may be another task, still reports is not heard, and
    /// what it leaves unread is not taken.
    pub(super) fn forget_body(&self) {
        let mut unread = self.unread();
        *unread = Unread { request: unread.request + 1, ..Unread::default() };
    }

    /// True if the connection has to close after an answer because of the request's body: too much of it is left, or
    /// an unknown number of bytes, or it cannot be read any more. That of a stream ends the stream alone.
    pub(super) async fn is_ended_by_body(&self, answer: StatusCode) -> bool {
        if self.is_stream() {
            return false;
        }
        let left = self.progress.body_left();
        // hyper gives one chunk for each poll, also of those that it has read already.
        for _ in 0..CHUNKS {
            if self.progress.body_left() == 0 {
                return false;
            }
            poll_fn(|cx| {
                self.discard_body(cx);
                Poll::Ready(())
            })
            .await;
            if left == u64::MAX && self.unread().leftover.is_some() {
                tokio::task::yield_now().await;
            }
        }
        match self.progress.body_left() {
            0 => false,
            _ if self.progress.is_body_lost() => true,
            // Of unknown length, and its handler still holds it. An error ends the connection; any other answer may be
            // made of what is read.
            u64::MAX if self.unread().leftover.is_none() => {
                answer.is_client_error() || answer.is_server_error()
            }
            _ => left > DISCARD,
        }
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ---- the answer's --------------------------------------------------------------------------------------------

pin_project! {
    /// The body of an answer. The request is in flight until it was produced whole.
    pub(super) struct AnswerBody {
        #[pin]
        inner: Body,
        // None once it was produced whole, or has failed.
        connection: Option<Arc<Connection>>,
        // The rest of the announced length, where the body itself does not know.
        announced: Option<u64>,
    }

    impl PinnedDrop for AnswerBody {
        // hyper drops a body once it has had the announced length, without polling it for its end.
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.announced.is_none_or(|left| left == 0) && let Some(connection) = this.connection.take() {
                connection.produced();
            }
        }
    }
}

impl AnswerBody {
    /// Gives an answer the body that hyper reads. `bodyless`: its body will not be sent (an answer to `HEAD`).
    pub(super) fn wrap(
        response: Response<Body>,
        connection: Arc<Connection>,
        bodyless: bool,
    ) -> Response<Self> {
        let announced = match response.body().size_hint().exact() {
            Some(_) => None,
            None => {
                response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
            }
        };
        let bodyless = bodyless
            || matches!(
                response.status(),
                StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            )
            || response.body().is_end_stream()
            || announced == Some(0);
        let connection = if bodyless {
            connection.produced();
            None
        } else {
            Some(connection)
        };
        response.map(|inner| Self { inner, connection, announced })
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut this = self.project();
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            if let Some(connection) = this.connection {
                connection.waiting_for(Waiting::ResponseBody);
            }
            return Poll::Pending;
        };
        let whole = match &frame {
            None => true,
            Some(Err(_)) => {
                *this.connection = None;
                false
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if let Some(connection) = this.connection {
                        connection.progress.add_body(data.len());
                    }
                    if let Some(left) = this.announced {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                }
                // hyper drops a body that says it has ended without polling it again.
                this.inner.is_end_stream() || *this.announced == Some(0)
            }
        };
        if whole && let Some(connection) = this.connection.take() {
            connection.produced();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
