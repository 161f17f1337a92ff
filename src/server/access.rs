//! The access log: which requests are logged when they end.

use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};

use super::peer::Peer;
use super::totals::Outcome;
use crate::logging::{self, Access};
use crate::printable::excerpt;

/// A request that ended.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) route: &'a str,
    pub(super) peer: Peer,
    pub(super) status: Option<StatusCode>,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    pub(super) sent: u64,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessLog {
    policy: Access,
    slow: Duration,
}

impl AccessLog {
    pub(crate) fn new(config: &logging::Config) -> Self {
        Self { policy: config.access, slow: config.slow }
    }

    /// Logs nothing.
    pub(crate) fn off() -> Self {
        Self { policy: Access::Off, slow: Duration::MAX }
    }

    pub(super) fn log(self, record: &Record<'_>) {
        let failed = matches!(record.outcome, Outcome::Cut | Outcome::BrokenOff)
            || record.status.is_some_and(|s| s.is_server_error());
        let wanted = match self.policy {
            Access::All => true,
            Access::Errors => failed,
            Access::Off => false,
        };
        if wanted || record.took >= self.slow {
            emit(record);
        }
    }
}

fn emit(r: &Record<'_>) {
    let (method, path) = (excerpt(r.method.as_str()), excerpt(r.uri.path()));
    tracing::info!(
        target: "steadfast::access",
        method = &*method,
        path = &*path,
        query = r.uri.query().map(excerpt).as_deref(),
        route = r.route,
        peer = %r.peer,
        status = r.status.map(|s| s.as_u16()),
        outcome = r.outcome.name(),
        took_ms = u64::try_from(r.took.as_millis()).unwrap_or(u64::MAX),
        sent = r.sent,
        "{} {} {} {} in {} ms",
        method,
        path,
        r.status.map_or("-".into(), |s| s.as_u16().to_string()),
        r.outcome.name(),
        r.took.as_millis(),
    );
}
