//! One client's connection, from `accept` to close: active while hyper drives it, parked while it is idle.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tower::Service;

use super::body::{AnswerBody, RequestBody};
use crate::server::stream::ClientStream;
use crate::server::{Command, Connection, InFlight, NotCarried, Peer};

/// What all connections of a listener child share.
#[derive(Debug)]
pub(in crate::server) struct Serving {
    pub(in crate::server) http1: http1::Builder,
    pub(in crate::server) router: Router,
    pub(in crate::server) body_limit: u64,
    pub(in crate::server) requests_per_connection: u64,
    /// Every answer from now on is its connection's last.
    pub(in crate::server) last_answers: AtomicBool,
}

/// Serves a connection until it is closed, or leaves for the next process.
pub(in crate::server) async fn serve(mut stream: ClientStream, serving: Arc<Serving>, start: Start) {
    let mut parked = start == Start::Parked;
    loop {
        if parked && !wake(&stream).await {
            return depart(stream).await;
        }
        // Boxed, so that what hyper needs is given back while the connection is parked.
        match Box::pin(drive(stream, &serving)).await {
            Some(idle) => stream = idle,
            None => return,
        }
        if stream.connection().order() > Command::Park {
            return depart(stream).await;
        }
        parked = true;
    }
}

/// How a connection comes to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Start {
    /// Just accepted: its client is about to speak.
    Active,
    /// Taken from an earlier process: it waits for its next byte.
    Parked,
}

/// Lets hyper answer requests. Returns the connection, taken apart, when an order asks for that; `None` when it is
/// closed, or upgraded and in other hands.
async fn drive(stream: ClientStream, serving: &Arc<Serving>) -> Option<ClientStream> {
    let connection = Arc::clone(stream.connection());
    let answer = Answer { connection: Arc::clone(&connection), serving: Arc::clone(serving) };
    let mut driven = serving.http1.serve_connection(TokioIo::new(stream), answer).with_upgrades();

    poll_fn(|cx| {
        connection.driven_by(cx.waker());
        match connection.order() {
            Command::Drop | Command::Cut => return Poll::Ready(None),
            Command::Finish => Pin::new(&mut driven).graceful_shutdown(),
            Command::None | Command::Park | Command::TimeOut | Command::Carry => {}
        }
        if let Poll::Ready(result) = connection.hold(|| Pin::new(&mut driven).poll(cx)) {
            if let Err(error) = result {
                tracing::debug!(peer = %connection.peer(), %error, "the connection failed");
            }
            return Poll::Ready(None);
        }
        // After the poll, so that what it has just finished counts, and what it has just read.
        match connection.order() {
            Command::Park if connection.is_quiet() => Poll::Ready(Some(())),
            Command::TimeOut | Command::Carry if connection.can_be_taken_apart() => Poll::Ready(Some(())),
            Command::Carry if connection.is_out_of_step() => {
                connection.stays(NotCarried::UnreadBody);
                Poll::Pending
            }
            _ => Poll::Pending,
        }
    })
    .await?;

    let parts = driven.into_parts()?;
    let mut stream = parts.io.into_inner();
    stream.unread(parts.read_buf);
    Some(stream)
}

/// Waits for the next byte. Returns whether there is something to drive; if not, an order stands.
async fn wake(stream: &ClientStream) -> bool {
    let connection = stream.connection();
    connection.parked();
    // What was read ahead belongs to a request: nothing to wait for.
    if !stream.has_read_ahead() {
        let readable = stream.readable();
        tokio::pin!(readable);
        let woken = poll_fn(|cx| {
            connection.driven_by(cx.waker());
            match connection.order() {
                Command::None | Command::Park => readable.as_mut().poll(cx).map(|_| true),
                Command::TimeOut | Command::Carry | Command::Finish | Command::Drop | Command::Cut => {
                    Poll::Ready(false)
                }
            }
        })
        .await;
        if !woken {
            return false;
        }
    }
    connection.woken();
    true
}

/// Ends a connection that was taken apart, as its order says.
async fn depart(mut stream: ClientStream) {
    match stream.connection().order() {
        Command::Carry => stream.leave(),
        Command::TimeOut if stream.has_read_ahead() => {
            // The client may be gone: there is nobody else to tell.
            let _ = stream.write_all(TIMED_OUT).await;
            let _ = stream.shutdown().await;
        }
        Command::None | Command::Park | Command::TimeOut | Command::Finish | Command::Drop | Command::Cut => {
        }
    }
}

/// RFC 9110, section 15.5.9.
const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Answers the requests of one connection.
struct Answer {
    connection: Arc<Connection>,
    serving: Arc<Serving>,
}

impl hyper::service::Service<Request<Incoming>> for Answer {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let has_body = !hyper::body::Body::is_end_stream(request.body());
        let answering = self.connection.begin(request.method(), request.uri(), has_body);
        let serving = Arc::clone(&self.serving);
        Box::pin(async move {
            let connection = answering.connection();
            let bodyless = request.method() == Method::HEAD;
            // What comes behind it may be meant for the tunnel that it does not get.
            let is_connect = request.method() == Method::CONNECT;
            if let Some(reason) = refuse(&request) {
                let mut refusal = (StatusCode::BAD_REQUEST, reason).into_response();
                refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                return Ok(AnswerBody::wrap(refusal, answering, bodyless));
            }
            let mut request = match RequestBody::wrap(request, connection, serving.body_limit) {
                Ok(request) => request,
                Err(too_large) => {
                    return Ok(AnswerBody::wrap(too_large.into_response(), answering, bodyless));
                }
            };
            request.extensions_mut().insert(InFlight(Arc::clone(connection)));
            if let Peer::Tcp(peer) = connection.peer() {
                request.extensions_mut().insert(ConnectInfo(peer));
            }

            let mut router = serving.router.clone();
            let mut response = match AssertUnwindSafe(router.call(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                // The panic hook has logged the message and its place.
                Err(_panic) => (StatusCode::INTERNAL_SERVER_ERROR, "the handler failed\n").into_response(),
            };
            let is_late = connection.order() == Command::TimeOut;
            if is_late {
                // Whatever the handler made of a body that did not come.
                response = (StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response();
            }
            let is_last = is_late
                || is_connect
                || serving.last_answers.load(Relaxed)
                || connection.answered() + 1 >= serving.requests_per_connection;
            if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(AnswerBody::wrap(response, answering, bodyless))
        })
    }
}

/// Why a request is not for any handler: who reads it next might see another host in it (RFC 9112, section 3.2).
///
/// Of a request with both a length and chunks hyper goes by the chunks and shows only these, as section 6.1 allows;
/// nobody behind this server sees the length, so there is nothing to refuse.
fn refuse(request: &Request<Incoming>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => Some("the request has no Host\n"),
        (Some(_), Some(_)) => Some("the request has more than one Host\n"),
        (Some(host), None) if !host.as_bytes().iter().copied().all(is_of_host) => {
            Some("the request's Host is not a host\n")
        }
        _ => None,
    }
}

/// What a host and its port are made of (RFC 3986, section 3.2).
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}
