//! The admin child: health, metrics and status on listeners of their own. It stops last, so that a drain can be
//! watched to its end.
//!
//! Its loop waits on its listeners, on the upkeep of the metrics, and on the word to stop.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};

pub(super) use self::metrics::Metrics;
use super::access::AccessLog;
use super::http::bind_all;
use super::http::listener::{Address, BindError};
use super::http::server::{Limits, Server};
use super::registry::Registry;
use super::status::{Observer, Status};
use super::supervisor::{BoxError, Child};
use super::systemd::activation::Inherited;

/// Its name in the tree.
pub const NAME: &str = "admin";

/// `[admin]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen; `127.0.0.1:9090` by default, none turns it off.
    pub listen: Vec<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Address::Tcp(([127, 0, 0, 1], 9090).into())],
        }
    }
}

/// How often the metrics are tidied up where nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Operators and their tools are few, and their requests small.
const LIMITS: Limits = Limits {
    max_connections: 256,
    header_timeout: Duration::from_secs(10),
    keepalive_timeout: Duration::from_secs(75),
    body_limit: 64 << 10,
};

/// The child, bound.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    server: Server,
    metrics: Metrics,
}

impl Admin {
    /// Binds every listener of the config.
    pub(super) fn bind(
        config: &Config,
        observer: Observer,
        metrics: Metrics,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let listeners = bind_all(&config.listen, inherited)?;
        // Its own connections do not count among those it reports.
        let registry = Registry::new(::metrics::Histogram::noop(), AccessLog::off());
        let router = router(Arc::new(Desk {
            observer,
            metrics: metrics.clone(),
        }));
        Ok(Self {
            server: Server::new(listeners, router, registry, LIMITS),
            metrics,
        })
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> &[Address] {
        self.server.addresses()
    }

    /// Serves until it is told to stop; what it is answering then is finished.
    pub(super) async fn run(self, child: Child) -> Result<(), BoxError> {
        tokio::select! {
            () = self.server.serve() => {}
            () = self.upkeep() => {}
            () = child.stopping() => {}
        }
        self.server.close().await;
        self.server.drain(Duration::ZERO).await;
        Ok(())
    }

    async fn upkeep(&self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.metrics.upkeep();
        }
    }
}

/// What the handlers answer from.
#[derive(Debug)]
struct Desk {
    observer: Observer,
    metrics: Metrics,
}

fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/status", get(status))
        .with_state(desk)
}

/// 200 while new clients should come, 503 from the first moment of a stop.
async fn readyz(State(desk): State<Arc<Desk>>) -> impl IntoResponse {
    let phase = desk.observer.lifecycle.phase();
    let status = if phase.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, format!("{}\n", phase.name()))
}

async fn render_metrics(State(desk): State<Arc<Desk>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, desk.metrics.render(&desk.observer))
}

async fn status(State(desk): State<Arc<Desk>>) -> Json<Status> {
    Json(desk.observer.status())
}
