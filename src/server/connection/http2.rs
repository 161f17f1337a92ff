//! hyper's part of a connection that speaks HTTP/2 (RFC 9113): it reads frames and makes requests of them, and of answers
//! frames. Each stream is a connection of its own to the rest of the server (`streams`), and its answer goes in `pieces`.
//!
//! All of a connection's streams are answered within its own task, so that they are gone when it is.

use std::error::Error as _;
use std::future::{Future, Ready, ready};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use futures_util::future::Either;
use futures_util::stream::{FuturesUnordered, Stream};
use h2::Reason;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::{Builder, Connection as Hyper};
use hyper_util::rt::TokioIo;

use super::body::announced;
use super::frames::{Flood, Frames, RESETS};
use super::http1::{Http1s, Seat};
use super::machine::{Event, State};
use super::pieces::{Pieces, StreamAnswer};
use super::service::Serving;
use super::streams::OpenStream;
use super::{Command, Connection, Waiter};
use crate::handover::NotCarried;
use crate::server::stream::ClientStream;
use crate::server::totals::Refused;

/// The most streams that a client may have open at once.
const STREAMS: u32 = 128;
/// The most bytes of request bodies that a client may send before they are read: of one stream, and of all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// The least bytes of a stream's answer that wait to be written before its body is asked for more.
const UNWRITTEN: usize = 32 << 10;
/// The most streams that a client may have reset by its own mistakes before the connection is closed: as many as it may have
/// requests, within these bounds. As many as the lower one it may begin before it has heard of `STREAMS`; the upper one is
/// hyper's own.
const MISTAKES: RangeInclusive<usize> = 128..=1024;
/// The most fields of a request's head, as with HTTP/1.
const FIELDS: usize = 100;

// ---- the connection ------------------------------------------------------------------------------------------

/// hyper's part, with what it works with.
type Served = Hyper<TokioIo<Frames<Seat>>, Service, Begun>;

/// A connection that speaks HTTP/2, with the streams that are being answered.
pub(super) struct Http2 {
    connection: Arc<Connection>,
    // The streams come before what has the socket: they have ended, and are counted, when the connection is gone.
    answering: FuturesUnordered<Answering>,
    /// Those whose answers hyper has whole, and has not written, or whose requests are not read to their ends.
    unwritten: Vec<OpenStream>,
    begun: Begun,
    hyper: Pin<Box<Served>>,
    seat: Seat,
    going_away: bool,
    /// As its connection knows it: it has streams, and the number of the frame that is on its way.
    has_streams: bool,
    frame: u64,
    flood: Flood,
}

/// The end of hyper's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides know that nothing more comes.
    Closes,
    /// At once.
    Dropped,
}

impl Http2 {
    pub(super) fn new(stream: Box<ClientStream>, http1s: &Http1s) -> Self {
        let connection = Arc::clone(stream.connection());
        connection.speak_http2();
        let seat = Seat::default();
        *seat.stream() = Some(stream);
        let (frames, flood) = Frames::new(seat.clone(), connection.registry.clock().now());
        let serving = http1s.serving();
        let begun = Begun::default();
        let service = Service {
            connection: Arc::clone(&connection),
            serving: Arc::clone(serving),
            begun: begun.clone(),
        };
        // A request that cannot be one is a request, too: others of the connection may be of other users.
        let mistakes = usize::try_from(serving.requests_per_connection).unwrap_or(usize::MAX);
        let mistakes = mistakes.clamp(*MISTAKES.start(), *MISTAKES.end());
        let mut builder = Builder::new(begun.clone());
        builder
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(serving.header_limit).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(UNWRITTEN)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(mistakes);
        let hyper = Box::pin(builder.serve_connection(TokioIo::new(frames), service));
        Self {
            connection,
            answering: FuturesUnordered::new(),
            unwritten: Vec::new(),
            begun,
            hyper,
            seat,
            going_away: false,
            has_streams: false,
            frame: 0,
            flood,
        }
    }

    /// Takes the connection's stream back.
    pub(super) fn into_stream(self) -> Option<Box<ClientStream>> {
        self.seat.into_stream()
    }

    /// Ready when hyper will do no more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let command = self.connection.commands.poll(Waiter::Task, cx);
        if command >= Command::TimeOut {
            return Poll::Ready(End::Dropped);
        }
        if !self.going_away && self.is_to_go_away(command) {
            self.going_away = true;
            self.connection.on(Event::GoAway);
            self.hyper.as_mut().graceful_shutdown();
        }
        let now = self.connection.registry.watchdog_now();
        let polled = self.connection.progress.task.timed(now, || self.hyper.as_mut().poll(cx));
        self.answering.extend(self.begun.take());
        // h2 has nothing left that it could write, unless the socket takes no more.
        let is_flushed = match &polled {
            Poll::Ready(result) => result.is_ok(),
            Poll::Pending => !self.connection.progress.is_blocked(),
        };
        self.end_written(cx, is_flushed);
        if let Poll::Ready(result) = polled {
            if let Err(error) = result {
                tracing::debug!(peer = %self.connection.peer(), %error, "the connection failed");
                if let Some(reason) = reason(&error) {
                    self.connection.count_refused(reason);
                }
            }
            return Poll::Ready(End::Closes);
        }
        let is_stuck = self.poll_streams(cx);
        if self.is_flood() {
            self.connection.count_refused(Refused::Flood);
            return Poll::Ready(End::Dropped);
        }
        if is_stuck {
            return Poll::Ready(End::Dropped);
        }
        self.tell();
        Poll::Pending
    }

    /// Tells the connection what is new.
    fn tell(&mut self) {
        let has_streams = !self.answering.is_empty() || !self.unwritten.is_empty();
        if std::mem::replace(&mut self.has_streams, has_streams) != has_streams {
            self.connection.on(Event::Streams(has_streams));
        }
        let frame = self.flood.under_way();
        if std::mem::replace(&mut self.frame, frame) != frame {
            self.connection.on(Event::Frame(frame > 0));
        }
    }

    /// True if a command tells the connection to end once its streams have. With a successor it ends at once; where the
    /// others cannot be carried either, it may go on until they are told to finish.
    fn is_to_go_away(&self, command: Command) -> bool {
        match command {
            Command::Carry if self.connection.may_leave() => {
                self.connection.stays(NotCarried::Http2);
                true
            }
            Command::Serve | Command::Carry => false,
            Command::Finish | Command::TimeOut | Command::Drop | Command::Cut => true,
        }
    }

    /// Ends the streams whose answers are written, or lost, once what their clients still sent is read, or discarded.
    fn end_written(&mut self, cx: &mut Context<'_>, is_flushed: bool) {
        self.unwritten.retain(|OpenStream(stream)| {
            if is_flushed && stream.unwritten() == 0 {
                stream.answer_written();
            }
            match stream.state() {
                State::Flushing => true,
                State::Discarding => {
                    let command = stream.commands.poll(Waiter::Task, cx);
                    stream.discard_body(cx);
                    stream.has_unread_body() && command < Command::Drop
                }
                _ => false,
            }
        });
    }

    /// Goes on with the streams. True if the client makes no room for an answer that only the connection's end can end.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(Some(ended)) = Pin::new(&mut self.answering).poll_next(cx) {
            self.unwritten.extend(ended);
        }
        self.unwritten.iter().any(|OpenStream(stream)| {
            let command = stream.commands.poll(Waiter::Task, cx);
            command >= Command::Drop && stream.state() == State::Flushing
        })
    }

    fn is_flood(&mut self) -> bool {
        self.flood.taken_back(self.connection.taken_back());
        let written = self.connection.progress.body();
        self.flood.is_too_much(written, || self.connection.registry.clock().now())
    }
}

/// The reason for which a client is not served to the end: that of the GOAWAY by which h2 has told it that its frames are
/// wrong, or too many. None of one that went away, or has given up by a GOAWAY of its own.
fn reason(error: &hyper::Error) -> Option<Refused> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    (error.is_go_away() && error.is_library()).then(|| match error.reason() {
        Some(Reason::ENHANCE_YOUR_CALM) => Refused::Flood,
        _ => Refused::BadRequest,
    })
}

// ---- its streams ---------------------------------------------------------------------------------------------

/// The streams that hyper has just begun to answer. hyper gives the future of each to its executor, which this is, right
/// after it has called the service for its request.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Beginning>>);

#[derive(Default)]
struct Beginning {
    /// The one that the service was called for; none if that has refused it.
    stream: Option<OpenStream>,
    answering: Vec<Answering>,
}

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Beginning> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Answering> {
        std::mem::take(&mut self.lock().answering)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, answer: F) {
        let mut begun = self.lock();
        let stream = begun.stream.take();
        begun.answering.push(Answering { answer: Box::pin(answer), stream });
    }
}

/// A stream whose request is being answered.
struct Answering {
    /// hyper's. To drop it resets the stream, unless the answer is whole.
    answer: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// None if it is refused: then its answer is a reset, which is there at once.
    stream: Option<OpenStream>,
}

impl Future for Answering {
    /// The stream, if hyper has all of its answer: else it has ended.
    type Output = Option<OpenStream>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { answer, stream } = &mut *self;
        let Some(OpenStream(connection)) = &*stream else {
            return answer.poll_unpin(cx).map(|()| None);
        };
        if connection.commands.poll(Waiter::Task, cx) >= Command::Drop {
            return Poll::Ready(None);
        }
        let now = connection.registry.watchdog_now();
        let polled =
            connection.progress.task.timed(now, || catch_unwind(AssertUnwindSafe(|| answer.poll_unpin(cx))));
        connection.discard_body(cx);
        match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            // The panic hook has logged it. The other streams go on.
            Err(_) => connection.broken_off(false),
        }
        Poll::Ready(stream.take_if(|OpenStream(stream)| stream.state() == State::Flushing))
    }
}

// ---- their requests ------------------------------------------------------------------------------------------

/// Answers the requests of a connection, each on a stream.
struct Service {
    connection: Arc<Connection>,
    serving: Arc<Serving>,
    begun: Begun,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Pieces>;
    type Error = h2::Error;
    type Future = Either<StreamAnswer, Ready<Result<Self::Response, Self::Error>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if self.connection.refuses_streams() {
            // Nothing was done: the client may ask again elsewhere (RFC 9113, section 8.7).
            return Either::Right(ready(Err(Reason::REFUSED_STREAM.into())));
        }
        let (open, number) = self.connection.open_stream();
        let stream = Arc::clone(&open.0);
        self.begun.lock().stream = Some(open);
        if self.serving.is_last_stream(number) {
            self.connection.commands.give(Command::Finish);
        }
        as_of_http1(&mut request);
        let id = stream.head(&request, announced(request.body()));
        let is_head = request.method() == Method::HEAD;
        let now = stream.registry.watchdog_now();
        let answer =
            stream.progress.task.timed(now, || self.serving.answer(request, Arc::clone(&stream), id));
        Either::Left(StreamAnswer::new(answer, stream, is_head))
    }
}

/// Gives a request the form that it has in HTTP/1.1 (RFC 9113, section 8.3.1), so that whatever looks at it has one form
/// to look at: the path alone as its target, the host as `Host`, and all cookies in one field (section 8.2.3).
fn as_of_http1(request: &mut Request<Incoming>) {
    let host = request.uri().authority().map(Authority::as_str);
    let mut fields = request.headers().get_all(header::HOST).iter();
    // A host beside another stays for the server to refuse; and that of `CONNECT` is all there is.
    if let Some(host) = host
        && fields.all(|field| field.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
        && let Ok(host) = HeaderValue::from_str(host)
    {
        request.headers_mut().insert(header::HOST, host);
        if let Some(path) = request.uri().path_and_query().filter(|_| request.method() != Method::CONNECT) {
            *request.uri_mut() = Uri::from(path.clone());
        }
    }
    let mut cookies = request.headers().get_all(header::COOKIE).iter();
    if cookies.next().is_some() && cookies.next().is_some() {
        let cookies: Vec<_> =
            request.headers().get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookies) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            request.headers_mut().insert(header::COOKIE, cookies);
        }
    }
}

/// The answer to a request that HTTP/1 has not: with more fields than any may have, or with two hosts.
pub(super) fn refusal(request: &Request<Incoming>, connection: &Connection) -> Option<Response<Body>> {
    if request.headers().len() > FIELDS {
        connection.count_refused(Refused::HeadTooLarge);
        let reason = format!("the request has more than {FIELDS} fields\n");
        return Some((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason).into_response());
    }
    let has_two_hosts = request.uri().authority().is_some() && request.method() != Method::CONNECT;
    has_two_hosts.then(|| {
        connection.count_refused(Refused::BadRequest);
        (StatusCode::BAD_REQUEST, "the request's Host is not its :authority\n").into_response()
    })
}
