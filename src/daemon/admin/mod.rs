//! The admin child: health, metrics and status on listeners of their own, and what changes anything on a socket that
//! only the daemon's own user may open. It stops last, so that a drain can be watched to its end; in a reload it makes
//! way at once, for its listeners are the successor's.
//!
//! Its loop waits on its listeners, on the upkeep of the metrics, and on the word to stop.

mod metrics;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

pub(super) use self::metrics::Metrics;
use super::child::{BoxError, Child};
use super::reload::Reloads;
use super::status::{Observer, Status};
use crate::handover::Handover;
use crate::printable::printable;
use crate::rules::Check;
use crate::server::Server;
use crate::server::address::{self, Address, BindError};
use crate::server::limits::{AtLimit, Limits};
use crate::server::listener::{self, Listener};
use crate::server::{Registry, Totals};
use crate::systemd::activation::Inherited;
use crate::systemd::manager::Manager;

/// Its name in the tree.
pub(crate) const NAME: &str = "admin";

/// `[admin]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The addresses to listen on; `127.0.0.1:9090` by default, none turns it off.
    pub listen: Vec<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: vec![Address::Tcp(([127, 0, 0, 1], 9090).into())] }
    }
}

impl Config {
    pub(super) fn check(&self, check: &mut Check) {
        address::check_each(&self.listen, check);
    }
}

/// The control socket's file name.
const CONTROL: &str = "control.sock";

/// The `RuntimeDirectory=` of the unit as it is shipped.
const RUNTIME_DIRECTORY: &str = "/run/steadfast";

/// The time between two clean-ups of the metrics where nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(5);

/// The limits of its listeners. Operators and their tools are few, and their requests small and quick. Whatever clients
/// hold its connections, one more gets in.
fn limits() -> Limits {
    Limits {
        max_connections: 256,
        header_timeout: Duration::from_secs(5),
        body_limit: 64 << 10,
        at_limit: AtLimit::Evict,
        ..Limits::default()
    }
}

/// The child, bound.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    server: Server,
    control: Server,
    metrics: Metrics,
    handover: Arc<Handover>,
    /// None of its listeners is accepted from any more.
    closed: CancellationToken,
}

impl Admin {
    /// Binds every listener of the config.
    pub(super) fn bind(
        config: &Config,
        observer: Observer,
        metrics: Metrics,
        handover: Arc<Handover>,
        reloads: Reloads,
        manager: Manager,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let listeners = listener::bind_all(&config.listen, inherited)?;
        // Their own connections do not count among those they report.
        let registry = || Registry::new(Totals::unobserved());
        let closed = CancellationToken::new();
        let context = Arc::new(Context {
            observer,
            metrics: metrics.clone(),
            reloads,
            manager,
            handover: Arc::clone(&handover),
            closed: closed.clone(),
        });
        let control = match control_socket() {
            Some(address) => Listener::bind_private(&address, inherited)?,
            None => Vec::new(),
        };
        let control = Server::new(control, control_router(Arc::clone(&context)), registry(), limits());
        let server = Server::new(listeners, router(context), registry(), limits());
        Ok(Self { server, control, metrics, handover, closed })
    }

    /// Its accept loops and connections: the public ones and the control socket's.
    pub(super) fn servers(&self) -> [&Server; 2] {
        [&self.server, &self.control]
    }

    /// Serves until it is told to stop; what it is answering then is finished.
    pub(super) async fn run(self, child: Child) -> Result<(), BoxError> {
        child.doing("accepting connections");
        tokio::select! {
            () = self.server.serve() => {}
            () = self.control.serve() => {}
            () = self.upkeep() => {}
            () = child.stopping() => {}
        }
        child.doing("draining connections");
        self.server.close(self.handover.keeps_listeners()).await;
        self.control.close(self.handover.keeps_listeners()).await;
        self.closed.cancel();
        tokio::join!(self.server.drain(Duration::ZERO), self.control.drain(Duration::ZERO));
        Ok(())
    }

    async fn upkeep(&self) {
        loop {
            // First, so that a child that is restarted again and again gets to it.
            self.metrics.upkeep();
            tokio::time::sleep(UPKEEP).await;
        }
    }
}

/// Everything that the handlers answer from.
#[derive(Debug)]
struct Context {
    observer: Observer,
    metrics: Metrics,
    reloads: Reloads,
    manager: Manager,
    handover: Arc<Handover>,
    /// The child has stopped accepting: who connects now reaches the next process.
    closed: CancellationToken,
}

/// The control socket's address: in the unit's `RuntimeDirectory=`, of which systemd tells (systemd.exec(5)); none
/// outside of a unit. Of several, which systemd gives in an order of its own, in the one that the unit is shipped with.
pub(super) fn control_socket() -> Option<Address> {
    let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
    let mut folders = std::env::split_paths(&folders);
    let first = folders.next()?;
    let shipped = folders.find(|folder| folder == Path::new(RUNTIME_DIRECTORY));
    Some(Address::Unix(shipped.unwrap_or(first).join(CONTROL)))
}

/// The running daemon's control socket, for the commands that ask it: where the daemon has it, if the command is one of
/// the unit's own, and else where the unit as shipped has it.
#[must_use]
pub fn control_path() -> PathBuf {
    match control_socket() {
        Some(Address::Unix(path)) => path,
        _ => Path::new(RUNTIME_DIRECTORY).join(CONTROL),
    }
}

/// The only routes that change anything.
fn control_router(context: Arc<Context>) -> Router {
    let changes = Router::new().route("/reload", post(reload)).route("/announce-stop", post(announce_stop));
    #[cfg(feature = "faults")]
    let changes = changes.route("/faults/{child}/{fault}", post(inject));
    router(Arc::clone(&context)).merge(changes.with_state(context))
}

/// Makes a child have a fault; 404 if there is no such child.
#[cfg(feature = "faults")]
async fn inject(
    State(context): State<Arc<Context>>,
    axum::extract::Path((name, fault)): axum::extract::Path<(String, super::faults::Fault)>,
) -> StatusCode {
    match context.observer.supervisor.children().iter().find(|child| child.name() == name) {
        Some(child) => {
            child.faults.inject(fault);
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    }
}

/// The stop that is about to come is for good: clients are to be told, and new ones refused, as without a store.
async fn announce_stop(State(context): State<Arc<Context>>) -> StatusCode {
    tracing::info!("the service is being stopped: nothing is left for a next process");
    context.handover.nobody_follows();
    context.manager.unstore_all();
    StatusCode::NO_CONTENT
}

/// 200 when a successor serves, 500 with the reason why none does.
async fn reload(State(context): State<Arc<Context>>) -> impl IntoResponse {
    match context.reloads.ask().await {
        Ok(pid) => {
            // Whoever is told so may ask for the next reload at once, and has to reach that process.
            tokio::select! {
                () = context.closed.cancelled() => {}
                // A child that is at fault closes nothing, and accepts nothing either.
                () = context.observer.supervisor.until_inactive(NAME) => {}
            }
            (StatusCode::OK, format!("process {pid} has taken over\n"))
        }
        // Another program may have said it.
        Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", printable(&reason))),
    }
}

fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/status", get(status))
        .with_state(context)
}

/// 200 while new clients should come, 503 from the first moment of a stop.
async fn readyz(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let phase = context.observer.lifecycle.phase();
    let status = if phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", phase.name()))
}

async fn render_metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, context.metrics.render(&context.observer))
}

async fn status(State(context): State<Arc<Context>>) -> Json<Status> {
    Json(context.observer.status())
}
