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
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tower::Service;

use super::body::{AnswerBody, RequestBody};
use super::stream::ClientStream;
use crate::daemon::registry::{Connection, InFlight, Order, Peer, State};

/// What all connections of a listener child share.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) http1: http1::Builder,
    pub(super) router: Router,
    pub(super) body_limit: u64,
    /// Every answer from now on is its connection's last.
    pub(super) last_answers: AtomicBool,
}

/// Serves a connection until it is closed.
pub(super) async fn serve(mut stream: ClientStream, serving: Arc<Serving>) {
    loop {
        // Boxed, so that what hyper needs is given back while the connection is parked.
        match Box::pin(drive(stream, &serving)).await {
            Some(idle) => stream = idle,
            None => return,
        }
        if !park(&stream).await {
            return;
        }
    }
}

/// Lets hyper answer requests. Returns the connection, taken apart, when it was asked to park; `None` when it is
/// closed, or upgraded and in other hands.
async fn drive(stream: ClientStream, serving: &Arc<Serving>) -> Option<ClientStream> {
    let connection = Arc::clone(stream.connection());
    let answer = Answer {
        connection: Arc::clone(&connection),
        serving: Arc::clone(serving),
    };
    let mut driven = serving
        .http1
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();

    let order = poll_fn(|cx| {
        connection.driven_by(cx.waker());
        match connection.order() {
            Order::Park if connection.is_quiet() => return Poll::Ready(Some(Order::Park)),
            Order::TimeOut if connection.state() == State::Idle => return Poll::Ready(Some(Order::TimeOut)),
            Order::Cut => return Poll::Ready(Some(Order::Cut)),
            Order::Finish => Pin::new(&mut driven).graceful_shutdown(),
            Order::None | Order::Park | Order::TimeOut => {}
        }
        match Pin::new(&mut driven).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(None),
            Poll::Ready(Err(error)) => {
                tracing::debug!(peer = %connection.peer(), %error, "the connection failed");
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;

    let parts = driven.into_parts()?;
    let mut stream = parts.io.into_inner();
    match order {
        Order::TimeOut if connection.has_unread() => {
            let _ = stream.write_all(TIMED_OUT).await;
            let _ = stream.shutdown().await;
            None
        }
        Order::Park => {
            stream.unread(parts.read_buf);
            Some(stream)
        }
        _ => None,
    }
}

/// RFC 9110, section 15.5.9.
const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Waits for the next byte. Returns whether there is something to drive.
async fn park(stream: &ClientStream) -> bool {
    let connection = stream.connection();
    connection.parked();
    // What was read ahead belongs to a request: nothing to wait for.
    if !stream.has_read_ahead() {
        let readable = stream.readable();
        tokio::pin!(readable);
        let go_on = poll_fn(|cx| {
            connection.driven_by(cx.waker());
            match connection.order() {
                Order::None | Order::Park => readable.as_mut().poll(cx).map(|r| r.is_ok()),
                Order::TimeOut | Order::Finish | Order::Cut => Poll::Ready(false),
            }
        })
        .await;
        if !go_on {
            return false;
        }
    }
    connection.woken();
    true
}

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
            let bodyless = request.method() == axum::http::Method::HEAD;
            let mut request = match RequestBody::wrap(request, connection, serving.body_limit) {
                Ok(request) => request,
                Err(too_large) => return Ok(AnswerBody::wrap(too_large, answering, bodyless)),
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
            if serving.last_answers.load(Relaxed) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(AnswerBody::wrap(response, answering, bodyless))
        })
    }
}
