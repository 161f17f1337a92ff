//! `proxy`: another server's answer.
//!
//! A request is passed to the upstream as it came, but for its path, which is the one that the routes have read, and
//! for what concerns one hop only (`headers`). Both bodies are streamed (`body`). The connection to the upstream is driven
//! by whoever waits for the answer (`connection`), and is used again on its thread (`pool`). An upstream with a name is
//! looked up (`lookup`), and one that refuses connections is waited for (`upstream`): nothing has been sent to it yet. What
//! was sent is sent again only where that cannot matter (`RESENDS`). A connection that changes protocol becomes a `tunnel`.
//! Interim answers (102, 103) are passed on as they come (RFC 9110, section 15.2); 100 is hyper's own to give, to whoever
//! waits for it.

mod account;
mod body;
mod connection;
pub(crate) mod headers;
mod lookup;
mod pool;
mod upstream;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use tokio_util::task::TaskTracker;

pub(crate) use self::account::Happened;

use self::account::Account;
use self::body::Download;
use self::connection::{Connection, Outcome};
use self::pool::Pool;
use self::upstream::{ConnectError, Connector};
use super::text;
use crate::event;
use crate::server::request_id::RequestId;
use crate::server::{InFlight, Waiting, tunnel};

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
    /// The time that one attempt to connect may take, the lookup of a name included; 5 s unless given.
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
    /// `http://HOST:PORT`. A name is looked up for each attempt to connect.
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
    /// The `Host` of a request that has none, which only HTTP/1.0 allows.
    host: HeaderValue,
    connector: Connector,
    account: Account,
    http1: http1::Builder,
    pool: Pool,
    /// Where the tunnels run, and what goes on after an answer has ended.
    tasks: TaskTracker,
}

impl Proxy {
    pub(super) fn new(config: &Config, tasks: &TaskTracker) -> Self {
        let host = match &config.to {
            Upstream::Http(to) => {
                let to = to.as_str();
                // Without the port that goes without saying (RFC 9110, section 4.2.1).
                headers::host_and_port(to.strip_suffix(":80").unwrap_or(to))
            }
            Upstream::Unix(_) => None,
        };
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(BUFFER).max_headers(FIELDS).allow_spaces_after_header_name_in_responses(true);
        let account = Account::default();
        Self(Arc::new(Passing {
            config: config.clone(),
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            connector: Connector::new(config, account.clone()),
            account,
            http1,
            pool: Pool::new(tasks),
            tasks: tasks.clone(),
        }))
    }

    pub(super) fn answer(
        &self,
        mut request: Request,
        in_flight: InFlight,
    ) -> impl Future<Output = Response> + use<> {
        let upgrade = headers::requested_upgrade(request.version(), request.headers())
            .map(|asked| (asked, hyper::upgrade::on(&mut request)));
        let (head, body) = request.into_parts();
        let exchange = Exchange {
            passing: Arc::clone(&self.0),
            id: in_flight.id(),
            method: head.method,
            uri: head.uri,
            version: head.version,
            upgrade,
            in_flight,
            _counted: self.0.account.begin(),
        };
        exchange.answer(head.headers, body)
    }

    /// What has happened between this server and its upstream.
    pub(super) fn figures(&self) -> UpstreamFigures {
        let Passing { config, account, pool, .. } = &*self.0;
        UpstreamFigures {
            to: config.to.to_string(),
            happened: Happened::ALL.map(|what| (what, account.number(what))),
            in_flight: account.in_flight(),
            idle: pool.len(),
        }
    }
}

/// What has happened between this server and an upstream.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamFigures {
    /// The upstream, as the config has it.
    pub(crate) to: String,
    /// How often something has happened.
    pub(crate) happened: [(Happened, u64); Happened::ALL.len()],
    /// The number of requests that it has yet to answer, to the end.
    pub(crate) in_flight: u64,
    /// The number of open connections that wait for a request.
    pub(crate) idle: usize,
}

/// One request, on its way to the upstream and back.
#[derive(Debug)]
struct Exchange {
    passing: Arc<Passing>,
    id: RequestId,
    method: Method,
    uri: Uri,
    version: Version,
    /// The protocols that the client asks to change to, and its end of the tunnel that would follow.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    in_flight: InFlight,
    _counted: account::InFlight,
}

impl Exchange {
    async fn answer(mut self, mut headers: HeaderMap, body: Body) -> Response {
        if !headers::may_be_forwarded(&self.method, &mut headers) {
            return last_hop(&self.method);
        }
        match self.ask(headers, body).await {
            Ok((mut response, connection)) => {
                let status = response.status();
                headers::to_client(status, response.headers_mut());
                // hyper lowers it to the client's where that is needed.
                *response.version_mut() = Version::HTTP_11;
                response.map(|body| Body::new(Download::new(body, connection, self)))
            }
            Err(failure) => {
                if failure.is_upstreams() {
                    self.failed(&failure);
                } else {
                    tracing::debug!(method = %self.method, uri = %self.uri, error = chain(&failure), "not passed on");
                }
                text(failure.status(), &failure.reason())
            }
        }
    }

    /// The upstream's answer, and the connection that the rest of it comes from; none if that has become a tunnel.
    async fn ask(
        &mut self,
        headers: HeaderMap,
        body: Body,
    ) -> Result<(Response<Incoming>, Option<Box<Connection>>), Failure> {
        let (mut response, connection) = self.pass(headers, body).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (asked, client) = self.upgrade.take().ok_or(Failure::UnaskedSwitch)?;
            if !headers::switches_to(&asked, response.headers()) {
                return Err(Failure::OtherSwitch);
            }
            self.passing.tasks.spawn(carry(client, connection, self.timeout()));
            return Ok((response, None));
        }
        let is_chunked = headers::is_chunked(response.headers()).ok_or(Failure::UnknownAnswerCoding)?;
        if !headers::settle_length(response.headers_mut(), is_chunked) {
            return Err(Failure::NoLength);
        }
        Ok((response, Some(connection)))
    }

    /// The request as the upstream gets it.
    fn to_upstream(&self, mut headers: HeaderMap, body: Body) -> Result<Request, Failure> {
        let is_chunked = headers::is_chunked(&headers).ok_or(Failure::UnknownCoding)?;
        let upgrade = self.upgrade.as_ref().map(|(asked, _)| asked.clone());
        headers::to_upstream(&mut headers, self.version, &self.uri, &self.in_flight, &self.id, upgrade);
        if is_chunked && !body.is_end_stream() {
            // Set explicitly, or hyper would send a GET without its body.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, self.passing.host.clone());
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = if self.uri.authority().is_some() {
            // In origin form (RFC 9112, section 3.2.1).
            self.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
        } else {
            self.uri.clone()
        };
        *request.headers_mut() = headers;
        if self.version == Version::HTTP_11 {
            // An older client knows no interim answers.
            self.pass_interim_answers_on(&mut request);
        }
        Ok(request)
    }

    /// Has the request answered, on another connection if need be, and waits for the head of the answer.
    ///
    /// A request is moved into its connection. So there are two ways alone to send it twice: the connection gives it
    /// back, as nothing of it was sent; or its fields were copied before, which is done for those alone that may be
    /// repeated.
    async fn pass(
        &self,
        headers: HeaderMap,
        body: Body,
    ) -> Result<(Response<Incoming>, Box<Connection>), Failure> {
        let may_be_repeated = self.method.is_idempotent() && body.is_end_stream();
        // As they came, in a list: a map costs twice as much to copy.
        let again: Option<Vec<(HeaderName, HeaderValue)>> = may_be_repeated
            .then(|| headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect());
        let mut request = self.to_upstream(headers, body)?;
        let mut pooled = self.passing.pool.take();
        let mut resends = 0;
        loop {
            let is_fresh = pooled.is_none();
            let mut connection = match pooled.take() {
                Some(connection) => connection,
                None => Box::pin(self.connect()).await?,
            };
            let error = match connection.ask(request, &self.in_flight, self.timeout()).await {
                Outcome::Answered(response) => return Ok((response, connection)),
                // It had ended while it was idle.
                Outcome::Unsent(unsent, _) if !is_fresh => {
                    request = unsent;
                    pooled = self.passing.pool.take();
                    continue;
                }
                Outcome::Unsent(_, error) | Outcome::Failed(error) => error,
                Outcome::Overdue => return Err(Failure::TimedOut(self.timeout())),
            };
            let broke = !error.is_parse() && !error.is_user();
            match &again {
                Some(headers) if broke && resends < RESENDS => {
                    tracing::debug!(upstream = %self.passing.config.to, error = chain(&error), "sending again");
                    resends += 1;
                    self.passing.account.count(Happened::Retry);
                    let headers = headers.iter().cloned().collect();
                    request = self.to_upstream(headers, Body::empty())?;
                }
                _ => return Err(Failure::of_request(error)),
            }
        }
    }

    async fn connect(&self) -> Result<Box<Connection>, Failure> {
        self.in_flight.waiting_for(Waiting::UpstreamConnect);
        let socket = self.passing.connector.connect().await.map_err(Failure::NoConnection)?;
        self.passing.account.count(Happened::Connect);
        Connection::new(socket, &self.passing.http1).await.map_err(Failure::Upstream)
    }

    /// Has the interim answers to a request sent to its client.
    fn pass_interim_answers_on(&self, request: &mut Request) {
        let in_flight = self.in_flight.clone();
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() != StatusCode::CONTINUE {
                in_flight.send_interim(&headers::interim(answer.status(), answer.headers()));
            }
        });
    }

    /// Takes back the connection of an answer that has come to its end.
    fn release(&self, mut connection: Box<Connection>) {
        if connection.is_idle() {
            self.passing.pool.put(connection);
        } else if !connection.has_ended() {
            // The upstream has answered before it had the whole request. It may want the rest all the same.
            let passing = Arc::clone(&self.passing);
            self.passing.tasks.spawn(async move {
                connection.finish(passing.config.timeout).await;
                if connection.is_idle() {
                    passing.pool.put(connection);
                }
            });
        }
    }

    fn timeout(&self) -> Duration {
        self.passing.config.timeout
    }

    /// Counts and logs a request that has no answer of the upstream's, or not all of it.
    fn failed(&self, error: &(dyn Error + 'static)) {
        self.passing.account.count(Happened::Failure);
        let upstream = &self.passing.config.to;
        tracing::warn!(
            message_id = event::UPSTREAM_FAILED,
            request_id = %self.id,
            %upstream,
            method = %self.method,
            path = self.uri.path(),
            query = self.uri.query(),
            error = chain(error),
            "proxied request failed"
        );
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
async fn carry(client: OnUpgrade, upstream: Box<Connection>, timeout: Duration) {
    match tokio::join!(client, upstream.into_upgraded(timeout)) {
        (Ok(client), Some((upstream, said))) => tunnel::begin(client, upstream, said).await,
        (Err(error), _) => tracing::debug!(error = chain(&error), "a tunnel broke"),
        (_, None) => {}
    }
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
    BodyBroken(#[source] hyper::Error),
    #[error("no connection to the upstream")]
    NoConnection(#[source] ConnectError),
    #[error("no answer from the upstream")]
    Upstream(#[source] hyper::Error),
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
    fn of_request(error: hyper::Error) -> Self {
        if !error.is_user() {
            Self::Upstream(error)
        } else if causes(&error).any(<dyn Error>::is::<LengthLimitError>) {
            Self::BodyTooLarge
        } else {
            Self::BodyBroken(error)
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::TimedOut(_) | Self::NoConnection(ConnectError::TimedOut(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::NoConnection(_)
            | Self::Upstream(_)
            | Self::UnaskedSwitch
            | Self::OtherSwitch
            | Self::UnknownAnswerCoding
            | Self::NoLength => StatusCode::BAD_GATEWAY,
        }
    }

    /// The text for the client, without the upstream's address.
    fn reason(&self) -> String {
        match self {
            Self::NoConnection(error) => error.to_string(),
            Self::Upstream(error) if error.is_parse() => "the upstream's answer is not valid HTTP".into(),
            Self::Upstream(_) => "the upstream closed the connection without an answer".into(),
            _ => self.to_string(),
        }
    }

    /// True if the failure is the upstream's, not the client's.
    fn is_upstreams(&self) -> bool {
        match self {
            Self::UnknownCoding | Self::BodyTooLarge | Self::BodyBroken(_) => false,
            Self::NoConnection(_)
            | Self::Upstream(_)
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

/// In one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
