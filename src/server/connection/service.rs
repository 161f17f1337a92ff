//! The answer to a request: from its head to the head of its answer.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use futures_util::future::Either;
use hyper::body::Incoming;

use super::body::{AnswerBody, RequestBody, announced};
use super::http1::Seat;
use super::http2;
use super::{Command, Connection, InFlight};
use crate::event;
use crate::server::handler::{Answering, Handler, failed, panicked};
use crate::server::request_id::{RequestId, X_REQUEST_ID};
use crate::server::route::RouteId;
use crate::server::totals::Refused;

/// Everything that the connections of a server share.
#[derive(Debug)]
pub(in crate::server) struct Serving {
    pub(in crate::server) handler: Box<dyn Handler>,
    pub(in crate::server) body_limit: u64,
    pub(in crate::server) requests_per_connection: u64,
    /// The largest head of a request, for HTTP/2; hyper has that of HTTP/1.
    pub(in crate::server) header_limit: usize,
    /// A client may speak HTTP/2 from its first byte on.
    pub(in crate::server) h2c: AtomicBool,
    /// Every answer from now on is its connection's last.
    pub(in crate::server) last_answers: AtomicBool,
    /// The `Strict-Transport-Security` of each answer over TLS, which hyper's own to bytes that are no request has not.
    pub(in crate::server) hsts: OnceLock<HeaderValue>,
}

/// Answers the requests of the connection that hyper works for.
pub(super) struct Service {
    seat: Seat,
    serving: Arc<Serving>,
}

impl Service {
    pub(super) fn new(seat: Seat, serving: Arc<Serving>) -> Self {
        Self { seat, serving }
    }
}

/// An answer that is there at once, or one that is yet to be made.
pub(super) type Answer = Either<Ready<Answered>, Pin<Box<dyn Future<Output = Answered> + Send>>>;
type Answered = Result<Response<AnswerBody>, Infallible>;

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Some(connection) = self.seat.connection() else {
            unreachable!("a request is read from a stream")
        };
        let id = connection.head(&request, announced(request.body()));
        if connection.has_turn() {
            return self.serving.answer(request, connection, id);
        }
        let serving = Arc::clone(&self.serving);
        Either::Right(Box::pin(async move {
            connection.turn().await;
            serving.answer(request, connection, id).await
        }))
    }
}

impl Serving {
    /// Answers a request. What waits for nothing is no future of its own, which would have to be allocated.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
        id: RequestId,
    ) -> Answer {
        let bodyless = request.method() == Method::HEAD;
        let asks_for_the_end = asks_to_close(&request);
        match self.ask(request, &connection) {
            Either::Left(response) if connection.progress.body_left() == 0 => {
                let response = checked(response.into_inner(), &id, &connection);
                let last = asks_for_the_end || self.is_last(&response, &connection);
                Either::Left(ready(Ok(self.decided(response, &id, last, bodyless, connection))))
            }
            answering => {
                let serving = Arc::clone(self);
                Either::Right(Box::pin(async move {
                    let answer = AssertUnwindSafe(answering).catch_unwind().await;
                    let answer = answer.unwrap_or_else(|_| panicked(&InFlight(Arc::clone(&connection))));
                    let response = checked(answer, &id, &connection);
                    let last = asks_for_the_end
                        || serving.is_last(&response, &connection)
                        || connection.is_ended_by_body(response.status()).await;
                    Ok(serving.decided(response, &id, last, bodyless, connection))
                }))
            }
        }
    }

    /// Asks the handler for the answer, if the request is for it.
    fn ask(&self, request: Request<Incoming>, connection: &Arc<Connection>) -> Answering {
        connection.set_route(RouteId::NONE);
        if let Some(refusal) = self.refusal(&request, connection) {
            RequestBody::refuse(request, connection);
            return Either::Left(ready(refusal));
        }
        let request = RequestBody::wrap(request, connection, self.body_limit);
        let in_flight = InFlight(Arc::clone(connection));
        let answering = catch_unwind(AssertUnwindSafe(|| self.handler.answer(request, in_flight)));
        answering.unwrap_or_else(|_| Either::Left(ready(panicked(&InFlight(Arc::clone(connection))))))
    }

    /// The answer to a request that is not for any handler.
    fn refusal(&self, request: &Request<Incoming>, connection: &Connection) -> Option<Response<Body>> {
        if connection.commands.strongest() == Command::TimeOut {
            // The sweep had given up on the head when it became whole. A 408 tells the client that it may send the
            // request again.
            return Some(too_late());
        }
        if request.version() == Version::HTTP_2
            && let Some(refusal) = http2::refusal(request, connection)
        {
            return Some(refusal);
        }
        if let Some(reason) = invalid_host(request) {
            connection.count_refused(Refused::BadRequest);
            return Some(closing(StatusCode::BAD_REQUEST, reason));
        }
        if request.method() == Method::CONNECT {
            // Any 2xx would say that there is a tunnel (RFC 9110, section 9.3.6). Bytes for it may follow, which must
            // not be read as requests.
            return Some(closing(StatusCode::NOT_IMPLEMENTED, "this server opens no tunnels by CONNECT\n"));
        }
        let limit = self.body_limit;
        http_body::Body::size_hint(request.body()).lower().gt(&limit).then(|| {
            connection.count_refused(Refused::BodyTooLarge);
            (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes\n"))
                .into_response()
        })
    }

    /// The answer as it is sent, on a connection that closes after its last one.
    fn decided(
        &self,
        mut response: Response<Body>,
        id: &RequestId,
        last: bool,
        bodyless: bool,
        connection: Arc<Connection>,
    ) -> Response<AnswerBody> {
        // hyper lowers it to the request's where that is needed.
        *response.version_mut() = Version::HTTP_11;
        let status = response.status();
        // In the place of a handler's, or an upstream's.
        response.headers_mut().insert(X_REQUEST_ID, id.value());
        // RFC 6797, section 7.2: over TLS alone.
        if let Some(hsts) = self.hsts.get()
            && connection.session().is_some()
        {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        // A stream's connection goes on, and HTTP/2 has no such field (RFC 9113, section 8.2.2).
        if last && status != StatusCode::SWITCHING_PROTOCOLS && !connection.is_stream() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        connection.decided(status, last);
        AnswerBody::wrap(response, connection, bodyless)
    }

    /// True if an answer is its connection's last. That of a stream closes nothing.
    fn is_last(&self, response: &Response<Body>, connection: &Connection) -> bool {
        !connection.is_stream()
            && (self.last_answers.load(Relaxed)
                || connection.commands.strongest() >= Command::Finish
                || connection.answered().saturating_add(1) >= self.requests_per_connection
                || closes(response))
    }

    /// True if a stream is the last that its connection may have.
    pub(super) fn is_last_stream(&self, number: u64) -> bool {
        self.last_answers.load(Relaxed) || number >= self.requests_per_connection
    }
}

/// A handler's answer, or what takes its place.
fn checked(response: Response<Body>, id: &RequestId, connection: &Connection) -> Response<Body> {
    if connection.commands.strongest() == Command::TimeOut {
        // It was made without the rest of the body.
        return too_late();
    }
    // HTTP/2 has no upgrades (RFC 9113, section 8.6).
    let may_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS && !connection.is_stream();
    if response.status().is_informational() && !may_switch {
        let status = response.status().as_u16();
        tracing::error!(
            message_id = event::HANDLER_WRONG,
            request_id = %id,
            status,
            "a handler answered with status {}, which is no answer",
            response.status()
        );
        return failed();
    }
    response
}

fn too_late() -> Response<Body> {
    closing(StatusCode::REQUEST_TIMEOUT, "the request did not come in time\n")
}

/// A refusal after which the connection closes: the bytes that follow cannot be read as requests for sure.
fn closing(status: StatusCode, reason: &'static str) -> Response<Body> {
    (status, [(header::CONNECTION, "close")], reason).into_response()
}

/// True if a request asks for its connection to be closed (RFC 9112, section 9.3).
fn asks_to_close(request: &Request<Incoming>) -> bool {
    has_option(request.headers(), "close")
        || (request.version() < Version::HTTP_11 && !has_option(request.headers(), "keep-alive"))
}

/// True if an answer ends its connection: its handler has set `Connection: close`, or only the close can mark the
/// end of its body (RFC 9112, section 6.3).
fn closes(response: &Response<Body>) -> bool {
    let coding = response.headers().get(header::TRANSFER_ENCODING);
    has_option(response.headers(), "close")
        || coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// True if the `Connection` field has an option (RFC 9110, section 7.6.1).
fn has_option(headers: &HeaderMap, option: &str) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|given| given.trim().eq_ignore_ascii_case(option))
}

/// The reason why a request's host is invalid; `None` if it is valid. Another server might read another host in an
/// invalid one (RFC 9112, section 3.2).
///
/// A request with both a length and chunks need not be refused: hyper goes by the chunks and removes the length, as
/// section 6.1 allows, so no upstream sees it.
fn invalid_host(request: &Request<Incoming>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() >= Version::HTTP_11 => Some("the request has no Host\n"),
        (Some(_), Some(_)) => Some("the request has more than one Host\n"),
        (Some(host), None) if !host.to_str().is_ok_and(is_host) => Some("the request's Host is not a host\n"),
        // It takes the place of `Host` (RFC 9112, section 3.2.2).
        _ => {
            let target = request.uri().authority()?.as_str();
            let host = target.rsplit_once('@').map_or(target, |(_, host)| host);
            (!is_host(host)).then_some("the host of the request's target is not a host\n")
        }
    }
}

/// True if a text is a host, perhaps with a port (RFC 9110, section 7.2; RFC 3986, section 3.2). A host in brackets is an
/// IPv6 address: of the later versions that these leave room for there is none.
fn is_host(text: &str) -> bool {
    let (is_valid, port) = if let Some(literal) = text.strip_prefix('[') {
        let Some((address, port)) = literal.split_once(']') else { return false };
        (address.parse::<Ipv6Addr>().is_ok(), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (is_name(name), port)
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    is_valid && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// True if a text is a name, or an IPv4 address, in the characters that these have (RFC 3986, section 3.2.2). It may be
/// empty.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
    while let Some(byte) = bytes.next() {
        if !(OF_NAME[usize::from(byte)] || byte == b'%' && is_hex(bytes.next()) && is_hex(bytes.next())) {
            return false;
        }
    }
    true
}

/// By byte: true for the characters that stand for themselves in a name. It is looked at for each request.
const OF_NAME: [bool; 256] = {
    let others = b"-._~!$&'()*+,;=";
    let mut of_name = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        of_name[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut i = 0;
    while i < others.len() {
        of_name[others[i] as usize] = true;
        i += 1;
    }
    of_name
};
