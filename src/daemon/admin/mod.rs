//! The admin child: health, metrics and status on listeners of their own, and what changes anything on a socket that
//! only the daemon's own user may open. It stops last, so that a drain can be watched to its end; in a reload it makes
//! way at once, for its listeners are the successor's.
//!
//! Its loop waits on its listeners, on the upkeep of the metrics, and on the word to stop.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

pub(super) use self::metrics::Metrics;
use super::access::AccessLog;
use super::http::bind_all;
use super::http::limits::Limits;
use super::http::listener::{Address, BindError, Listener};
use super::http::server::Server;
use super::registry::Registry;
use super::reload::ReloadDesk;
use super::status::{Observer, Status};
use super::supervisor::{BoxError, Child};
use super::systemd::activation::Inherited;
use super::systemd::manager::Manager;
use crate::handover::Handover;

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
        Self { listen: vec![Address::Tcp(([127, 0, 0, 1], 9090).into())] }
    }
}

/// The control socket's file name.
pub const CONTROL: &str = "control.sock";

/// How often the metrics are tidied up where nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Operators and their tools are few, and their requests small.
fn limits() -> Limits {
    Limits { max_connections: 256, body_limit: 64 << 10, ..Limits::default() }
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
        reloads: ReloadDesk,
        manager: Manager,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let listeners = bind_all(&config.listen, inherited)?;
        // Their own connections do not count among those they report.
        let registry = || Registry::new(::metrics::Histogram::noop(), AccessLog::off());
        let closed = CancellationToken::new();
        let desk = Arc::new(Desk {
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
        let control = Server::new(control, control_router(Arc::clone(&desk)), registry(), limits());
        let server = Server::new(listeners, router(desk), registry(), limits());
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

/// What the handlers answer from.
#[derive(Debug)]
struct Desk {
    observer: Observer,
    metrics: Metrics,
    reloads: ReloadDesk,
    manager: Manager,
    handover: Arc<Handover>,
    /// The child has stopped accepting: who connects now reaches the next process.
    closed: CancellationToken,
}

/// Where the control socket is: in the unit's `RuntimeDirectory=`, of which systemd tells; nowhere outside of it.
pub(super) fn control_socket() -> Option<Address> {
    let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
    let folder = std::env::split_paths(&folders).next()?;
    Some(Address::Unix(folder.join(CONTROL)))
}

/// What changes anything is here alone.
fn control_router(desk: Arc<Desk>) -> Router {
    let changes = Router::new().route("/reload", post(reload)).route("/farewell", post(farewell));
    #[cfg(feature = "faults")]
    let changes = changes.route("/faults/{child}/{fault}", post(inject));
    router(Arc::clone(&desk)).merge(changes.with_state(desk))
}

/// Makes a child have a fault; 404 if there is no such child.
#[cfg(feature = "faults")]
async fn inject(
    State(desk): State<Arc<Desk>>,
    axum::extract::Path((name, fault)): axum::extract::Path<(String, super::faults::Fault)>,
) -> StatusCode {
    match desk.observer.supervisor.children().iter().find(|child| child.name() == name) {
        Some(child) => {
            child.faults.inject(fault);
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    }
}

/// The stop that is about to come is for good: clients are to be told, and new ones refused, as without a store.
async fn farewell(State(desk): State<Arc<Desk>>) -> StatusCode {
    tracing::info!("the service is being stopped: nothing is left for a next process");
    desk.handover.nobody_follows();
    desk.manager.unstore_all();
    StatusCode::NO_CONTENT
}

/// 200 when a successor serves, 500 with the reason why none does.
async fn reload(State(desk): State<Arc<Desk>>) -> impl IntoResponse {
    match desk.reloads.ask().await {
        Ok(pid) => {
            // Whoever is told so may ask for the next reload at once, and has to reach that process.
            tokio::select! {
                () = desk.closed.cancelled() => {}
                // A child that is at fault closes nothing, and accepts nothing either.
                () = desk.observer.supervisor.until_still(NAME) => {}
            }
            (StatusCode::OK, format!("process {pid} has taken over\n"))
        }
        Err(reason) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n")),
    }
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
    let status = if phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", phase.name()))
}

async fn render_metrics(State(desk): State<Arc<Desk>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, desk.metrics.render(&desk.observer))
}

async fn status(State(desk): State<Arc<Desk>>) -> Json<Status> {
    Json(desk.observer.status())
}
