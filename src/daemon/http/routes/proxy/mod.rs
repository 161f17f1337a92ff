//! `proxy`: another server's answer.
//!
//! A request is passed to the upstream as it came, but for its path, which is the one that the routes have read, and
//! for what concerns one hop only (`headers`). Both bodies are
//! streamed (`body`). An upstream that refuses connections is waited for (`upstream`): nothing has been sent to it
//! yet. What was sent is sent again only where that cannot matter (`RESENDS`). A connection that changes protocol
//! becomes a `tunnel`. Interim answers (102, 103) are passed on as they come (RFC 9110, section 15.2); 100 is hyper's own to
//! give, to whoever waits for it.

mod body;
mod headers;
mod upstream;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio_util::task::TaskTracker;

use self::body::{Download, Turn, Upload};
use self::upstream::{ConnectError, Connector};
use super::text;
use crate::server::{InFlight, tunnel};

/// The time that an idle connection to an upstream is kept: less than the 5 s after which many an application server
/// closes it, for a request that crosses the close on its way is lost if it cannot be repeated.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// The number of times that a request is sent again, on a fresh connection, when one broke before any answer. Only a
/// request without a body and with an idempotent method is (RFC 9110, section 9.2.2).
const RESENDS: usize = 2;

/// The most that is buffered of an upstream's connection in either direction, in bytes; no head may be larger.
const BUFFER: usize = 64 << 10;

/// The most fields that an upstream's answer or its trailers may have. hyper makes room for so many at each head, 64
/// bytes for one; its own limit of 100 is too few for some cookies and policies.
const FIELDS: usize = 1024;

/// The upstream of a route, and how long it is waited for.
///
/// The upstream gets a request with its query, `Host` and end-to-end fields as they came, the path as the routes have
/// read it, and `X-Forwarded-*`, `Forwarded` and `Via`. Fields of one hop stay on it, and so do trailers that could be
/// taken for a field of the head. Interim answers (102, 103) are passed on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The server that answers.
    pub to: Upstream,
    /// The time that a request waits for an upstream that refuses connections; 10 s unless given.
    pub retry_for: Duration,
    /// The time that one attempt to connect may take; 5 s unless given.
    pub connect_timeout: Duration,
    /// The time that the upstream may take until the head of its answer, once it has the request, and be silent within
    /// the answer's body or while it is sent the request's; 60 s unless given.
    pub timeout: Duration,
}

impl Config {
    /// An upstream, all else as it is unless given.
    #[must_use]
    pub fn new(to: Upstream) -> Self {
        Self {
            to,
            retry_for: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
        }
    }
}

/// A server to pass requests to. Query and `Host` are passed on as they came, the path as the routes read it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Upstream {
    /// `http://HOST:PORT`.
    Http(Authority),
    /// `unix:/path`.
    Unix(PathBuf),
}

/// As it is written in the config.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Passes requests to an upstream.
#[derive(Clone, Debug)]
pub(super) struct Proxy(Arc<Passing>);

/// Everything that the requests to an upstream share.
#[derive(Debug)]
struct Passing {
    config: Config,
    /// The authority in the URIs for the clients below; the connector ignores it.
    authority: Authority,
    pooled: Client<Connector, Upload>,
    /// A client without a pool, for requests that are sent again.
    fresh: Client<Connector, Upload>,
    tunnels: TaskTracker,
}

impl Proxy {
    pub(super) fn new(config: &Config, tunnels: &TaskTracker) -> Self {
        let authority = match &config.to {
            Upstream::Http(authority) => authority.clone(),
            Upstream::Unix(_) => Authority::from_static("localhost"),
        };
        let connector = Connector::new(config);
        Self(Arc::new(Passing {
            config: config.clone(),
            authority,
            pooled: Client::builder(TokioExecutor::new())
                .http1_max_buf_size(BUFFER)
                .http1_max_headers(FIELDS)
                .http1_allow_spaces_after_header_name_in_responses(true)
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .build(connector.clone()),
            fresh: Client::builder(TokioExecutor::new())
                .http1_max_buf_size(BUFFER)
                .http1_max_headers(FIELDS)
                .http1_allow_spaces_after_header_name_in_responses(true)
                .pool_max_idle_per_host(0)
                .build(connector),
            tunnels: tunnels.clone(),
        }))
    }

    pub(super) fn answer(
        &self,
        request: Request,
        in_flight: InFlight,
    ) -> impl Future<Output = Response> + use<> {
        let exchange = Exchange {
            passing: Arc::clone(&self.0),
            method: request.method().clone(),
            uri: request.uri().clone(),
            in_flight,
        };
        exchange.answer(request)
    }
}

/// One request, on its way to the upstream and back.
#[derive(Debug)]
struct Exchange {
    passing: Arc<Passing>,
    method: Method,
    uri: Uri,
    in_flight: InFlight,
}

/// A request without its body.
type Head = axum::http::Request<()>;

impl Exchange {
    async fn answer(self, mut request: Request) -> Response {
        if !headers::may_be_forwarded(&self.method, request.headers_mut()) {
            return last_hop(&self.method);
        }
        let upgrade = headers::requested_upgrade(request.version(), request.headers());
        let client = upgrade.clone().map(|asked| (asked, hyper::upgrade::on(&mut request)));
        let passed = match self.to_upstream(request, upgrade) {
            Ok((head, body)) => self.pass(head, body).await,
            Err(failure) => Err(failure),
        };
        match passed.and_then(|response| self.to_client(response, client)) {
            Ok(mut response) => {
                let status = response.status();
                headers::to_client(status, response.headers_mut());
                // hyper lowers it to the client's where that is needed.
                *response.version_mut() = Version::HTTP_11;
                response.map(|body| Body::new(Download::new(body, self)))
            }
            Err(failure) => {
                if failure.is_upstreams() {
                    self.log_failure(&failure);
                } else {
                    tracing::debug!(method = %self.method, uri = %self.uri, error = chain(&failure), "not passed on");
                }
                text(failure.status(), &failure.reason())
            }
        }
    }

    /// The request as the upstream gets it.
    fn to_upstream(&self, request: Request, upgrade: Option<HeaderValue>) -> Result<(Head, Body), Failure> {
        let (parts, body) = request.into_parts();
        if !headers::is_plain_or_chunked(&parts.headers) {
            return Err(Failure::UnknownCoding);
        }
        let mut head = Head::new(());
        *head.method_mut() = parts.method;
        *head.headers_mut() = parts.headers;
        let mut uri = Uri::default().into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.passing.authority.clone());
        uri.path_and_query = Some(match parts.uri.path_and_query() {
            Some(asked) => asked.clone(),
            None => PathAndQuery::from_static("/"),
        });
        *head.uri_mut() = Uri::from_parts(uri).expect("it has all of its parts");

        let chunked = head.headers().contains_key(header::TRANSFER_ENCODING) && !body.is_end_stream();
        headers::to_upstream(head.headers_mut(), parts.version, &parts.uri, &self.in_flight, upgrade);
        if chunked {
            // Set explicitly, or hyper would send a GET without its body.
            head.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if parts.version == Version::HTTP_11 {
            self.pass_interim_answers_on(&mut head);
        }
        Ok((head, body))
    }

    /// Has the interim answers to a request sent to its client. An older client knows none.
    fn pass_interim_answers_on(&self, head: &mut Head) {
        let in_flight = self.in_flight.clone();
        hyper::ext::on_informational(head, move |answer| {
            if answer.status() != StatusCode::CONTINUE {
                in_flight.send_interim(&headers::interim(answer.status(), answer.headers()));
            }
        });
    }

    /// Sends the request, again if need be and if it may be, and waits for the head of the answer.
    async fn pass(&self, head: Head, body: Body) -> Result<Response<Incoming>, Failure> {
        let again = (head.method().is_idempotent() && body.is_end_stream()).then(|| head.clone());
        let mut outcome = self.send(&self.passing.pooled, head, body).await;
        if let Some(head) = again {
            for _ in 0..RESENDS {
                match &outcome {
                    Err(Failure::Upstream(error)) if broke_before_an_answer(error) => {
                        tracing::debug!(upstream = %self.passing.config.to, error = chain(error), "sending again");
                        outcome = self.send(&self.passing.fresh, head.clone(), Body::empty()).await;
                    }
                    _ => break,
                }
            }
        }
        outcome
    }

    async fn send(
        &self,
        client: &Client<Connector, Upload>,
        head: Head,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let turn = Turn::new(self.in_flight.clone());
        let request = head.map(|()| Upload::new(body, &turn));
        let outcome = tokio::select! {
            biased;
            outcome = client.request(request) => outcome.map_err(Failure::of_request),
            () = turn.overdue(self.timeout()) => Err(Failure::TimedOut(self.timeout())),
        };
        turn.over();
        outcome
    }

    /// Checks the answer; where it changes the protocol, to one that the client has asked for, sets up the tunnel.
    fn to_client(
        &self,
        mut response: Response<Incoming>,
        client: Option<(HeaderValue, OnUpgrade)>,
    ) -> Result<Response<Incoming>, Failure> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (asked, client) = client.ok_or(Failure::UnaskedSwitch)?;
            if !headers::switches_to(&asked, response.headers()) {
                return Err(Failure::OtherSwitch);
            }
            let upstream = hyper::upgrade::on(&mut response);
            self.passing.tunnels.spawn(carry(client, upstream));
        } else if !headers::is_plain_or_chunked(response.headers()) {
            return Err(Failure::UnknownAnswerCoding);
        } else if !headers::settle_length(response.headers_mut()) {
            return Err(Failure::NoLength);
        }
        Ok(response)
    }

    fn timeout(&self) -> Duration {
        self.passing.config.timeout
    }

    fn log_failure(&self, error: &(dyn Error + 'static)) {
        let upstream = &self.passing.config.to;
        tracing::warn!(%upstream, method = %self.method, uri = %self.uri, error = chain(error), "proxied request failed");
    }
}

/// The answer to a request whose `Max-Forwards` is used up. `TRACE` is not reflected.
fn last_hop(method: &Method) -> Response {
    match *method {
        Method::TRACE => text(StatusCode::NOT_IMPLEMENTED, "TRACE is not answered by this proxy"),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

/// Begins a tunnel once both ends are upgraded, and carries it to its end.
async fn carry(client: OnUpgrade, upstream: OnUpgrade) {
    match tokio::try_join!(client, upstream) {
        Ok((client, upstream)) => tunnel::begin(client, upstream).await,
        Err(error) => tracing::debug!(error = chain(&error), "a tunnel broke"),
    }
}

/// True if a connection broke, on a request that was sent, before any answer could be read.
fn broke_before_an_answer(error: &legacy::Error) -> bool {
    !error.is_connect() && find::<hyper::Error>(error).is_some_and(|e| !e.is_parse() && !e.is_user())
}

// ---------------------------------------------------------------- failures

/// The reason why a request has no answer of the upstream's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the request body is in a transfer coding other than chunked")]
    UnknownCoding,
    #[error("the request body is too large")]
    BodyTooLarge,
    #[error("the request body broke off")]
    BodyBroken(#[source] legacy::Error),
    #[error("no answer from the upstream")]
    Upstream(#[source] legacy::Error),
    #[error("the upstream did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("the upstream switched protocols without being asked to")]
    UnaskedSwitch,
    #[error("the upstream switched to no protocol that it was asked for")]
    OtherSwitch,
    #[error("the upstream's answer is in a transfer coding other than chunked")]
    UnknownAnswerCoding,
    #[error("the Content-Length of the upstream's answer is no length")]
    NoLength,
}

impl Failure {
    fn of_request(error: legacy::Error) -> Self {
        if find::<LengthLimitError>(&error).is_some() {
            Self::BodyTooLarge
        } else if find::<hyper::Error>(&error).is_some_and(hyper::Error::is_user) {
            Self::BodyBroken(error)
        } else {
            Self::Upstream(error)
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(error) => match find(error) {
                Some(ConnectError::TimedOut(_)) => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            },
            Self::UnaskedSwitch | Self::OtherSwitch | Self::UnknownAnswerCoding | Self::NoLength => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// The text for the client, without the upstream's address.
    fn reason(&self) -> String {
        let Self::Upstream(error) = self else {
            return self.to_string();
        };
        if let Some(error) = find::<ConnectError>(error) {
            return error.to_string();
        }
        match find::<hyper::Error>(error) {
            Some(error) if error.is_parse() => "the upstream's answer is not valid HTTP".into(),
            _ => "the upstream closed the connection without an answer".into(),
        }
    }

    /// True if the failure is the upstream's, not the client's.
    fn is_upstreams(&self) -> bool {
        match self {
            Self::UnknownCoding | Self::BodyTooLarge | Self::BodyBroken(_) => false,
            Self::Upstream(_)
            | Self::TimedOut(_)
            | Self::UnaskedSwitch
            | Self::OtherSwitch
            | Self::UnknownAnswerCoding
            | Self::NoLength => true,
        }
    }
}

/// An error and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// In one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
