//! The access log: which requests are logged when they end.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderValue, header};
use tracing::Level;

use super::connection::Exchange;
use super::peer::Peer;
use super::totals::Outcome;
use crate::logging::access::{self, Excerpt, OpenError, Record};
use crate::logging::{self, Access, AccessFormat};

/// A request that ended, as its account has it.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub(super) exchange: Box<Exchange>,
    pub(super) route: &'a str,
    pub(super) peer: Peer,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    /// The bytes of its answer, and those of the answer's body alone.
    pub(super) sent: u64,
    pub(super) body: u64,
}

/// Which requests are logged, and the way to where they are.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    policy: Access,
    slow: Duration,
    /// True if what a client says of itself is logged as well.
    wants_client: bool,
    /// None if no request is ever logged.
    log: Option<access::AccessLog>,
}

/// What a client says of itself.
#[derive(Clone, Debug)]
pub(crate) struct ClientSays {
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

impl AccessLog {
    /// Opens the log that a config asks for.
    pub(crate) fn open(config: &logging::Config) -> Result<Self, OpenError> {
        // An event of an access is one of level info.
        let is_event = config.access_format == AccessFormat::Event;
        if is_event && config.level.is_none_or(|level| level < Level::INFO) {
            return Ok(Self::off());
        }
        let log = Some(access::AccessLog::start(config)?);
        Ok(Self { policy: config.access, slow: config.slow, wants_client: !is_event, log })
    }

    /// Logs nothing.
    pub(crate) fn off() -> Self {
        Self { policy: Access::Off, slow: Duration::MAX, wants_client: false, log: None }
    }

    /// What is kept of a request's fields until it ends.
    pub(super) fn client_says(&self, headers: &HeaderMap) -> Option<Box<ClientSays>> {
        self.wants_client.then(|| {
            let [referer, user_agent] =
                [header::REFERER, header::USER_AGENT].map(|name| headers.get(name).cloned());
            Box::new(ClientSays { referer, user_agent })
        })
    }

    pub(super) fn log(&self, ended: Ended<'_>) {
        let failed = matches!(ended.outcome, Outcome::Cut | Outcome::BrokenOff)
            || ended.exchange.status.is_some_and(|status| status.is_server_error());
        let wanted = match self.policy {
            Access::All => true,
            Access::Errors => failed,
            Access::Off => false,
        };
        if let Some(log) = &self.log
            && (wanted || ended.took >= self.slow)
        {
            log.put(ended.into());
        }
    }

    /// Returns when what was logged so far is written, or cannot be for want of time.
    pub(crate) fn flush(&self) {
        if let Some(log) = &self.log {
            logging::flush_access(log);
        }
    }
}

impl From<Ended<'_>> for Record {
    fn from(ended: Ended<'_>) -> Self {
        let Ended { exchange, route, peer, outcome, took, sent, body } = ended;
        let ClientSays { referer, user_agent } =
            exchange.client_says.map_or(ClientSays { referer: None, user_agent: None }, |says| *says);
        Self {
            ended: SystemTime::now(),
            id: exchange.id.to_string().into(),
            method: Excerpt::of(exchange.method.as_str()),
            path: Excerpt::of(exchange.uri.path()),
            query: exchange.uri.query().map(Excerpt::of),
            version: exchange.version,
            route: route.into(),
            peer: peer.address(),
            status: exchange.status.map(|status| status.as_u16()),
            outcome: outcome.name(),
            duration: took,
            sent,
            body,
            referer: referer.as_ref().map(Self::field),
            user_agent: user_agent.as_ref().map(Self::field),
        }
    }
}
