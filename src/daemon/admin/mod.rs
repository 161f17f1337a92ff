//! The admin child: health, metrics, status and the live page on listeners of their own, and the commands that change
//! anything on a socket that only the daemon's own user may open. It stops last, so that a drain can be watched to its
//! end; in a reload it stops at once, because the successor answers on its listeners.
//!
//! Its loop waits on its listeners, on being told to stop, and looks at the counters every two seconds.

mod page;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

use super::child::{self, BoundChild, BoxError, Child, Run};
use super::phase::Phase;
use super::reload::Outcome;
use super::status::Status;
use crate::event;
use crate::printable::printable;
use crate::rules::Check;
use crate::server::Server;
use crate::server::address::{self, Address, BindError};
use crate::server::limits::{AtLimit, Limits};
use crate::server::listener::{self, Listener};
use crate::server::{Registry, Totals};
use crate::systemd::activation::Inherited;
use crate::systemd::runtime;

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

    /// Everything that it listens on, the control socket included.
    pub(super) fn sockets(&self) -> Vec<Address> {
        self.listen.iter().cloned().chain(control_socket()).collect()
    }
}

/// The time after which a scrape is answered without what predecessors have counted: much less than a scraper's own
/// patience.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time that clients have for their last answers, or the page's last picture, once nothing is accepted any more.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The limits of its listeners. Operators and their tools are few, and their requests small and quick. At the limit the
/// longest idle connection is closed, but none with a request: those who look at the page, whose requests last, have a
/// limit of their own, much lower, so that an operator gets in.
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
    daemon: child::Context,
    /// Cancelled once it accepts from none of its listeners.
    closed: CancellationToken,
}

impl Admin {
    /// Binds every listener of the config.
    pub(super) fn bind(
        config: &Config,
        daemon: &child::Context,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let listeners = listener::bind_all(&config.listen, inherited)?;
        // Registries of their own: the connections that ask for the figures are not counted in them.
        let registry = || Registry::new(Totals::unobserved());
        let closed = CancellationToken::new();
        let context =
            Arc::new(Context { daemon: daemon.clone(), closed: closed.clone(), page: page::Shared::new() });
        let control = match control_socket() {
            Some(address) => Listener::bind_private(&address, inherited)?,
            None => Vec::new(),
        };
        let control = Server::new(control, control_router(Arc::clone(&context)), registry(), limits());
        let server = Server::new(listeners, router(context), registry(), limits());
        Ok(Self { server, control, daemon: daemon.clone(), closed })
    }

    /// Serves until it is told to stop; what it is answering then is finished, if its client reads it.
    async fn serve(self, child: Child) -> Result<(), BoxError> {
        self.warn_of_strangers();
        child.doing("accepting connections");
        let observer = &self.daemon.observer;
        tokio::select! {
            never = observer.history.keep(&observer.registry) => match never {},
            () = self.server.serve() => {}
            () = self.control.serve() => {}
            () = child.stopping() => {}
        }
        child.doing("draining connections");
        let keeps_listeners = self.daemon.handover.keeps_listeners();
        self.server.close(keeps_listeners).await;
        self.control.close(keeps_listeners).await;
        self.closed.cancel();
        let drain = async {
            tokio::join!(self.server.drain(Duration::ZERO), self.control.drain(Duration::ZERO));
        };
        tokio::pin!(drain);
        if tokio::time::timeout(LAST_ANSWERS, &mut drain).await.is_err() {
            self.server.cut();
            self.control.cut();
            drain.await;
        }
        Ok(())
    }

    fn warn_of_strangers(&self) {
        for listener in self.server.listeners() {
            let address = listener.address();
            if !address.is_local() {
                tracing::warn!(
                    message_id = event::ADMIN_EXPOSED,
                    %address,
                    "admin listens on {address}: everybody who reaches it may read status and metrics"
                );
            }
        }
    }
}

/// The control socket's address; none outside of a unit.
fn control_socket() -> Option<Address> {
    runtime::control_socket().map(Address::Unix)
}

impl BoundChild for Admin {
    fn name(&self) -> &str {
        NAME
    }

    fn run(&self, child: Child) -> Run {
        Box::pin(self.clone().serve(child))
    }

    fn servers(&self) -> Vec<&Server> {
        vec![&self.server, &self.control]
    }

    fn closed(&self) -> Option<&CancellationToken> {
        Some(&self.closed)
    }
}

/// Everything that the handlers need.
#[derive(Debug)]
struct Context {
    daemon: child::Context,
    /// Cancelled once the child has stopped accepting: new connections reach the successor.
    closed: CancellationToken,
    /// What all who look at the page share.
    page: page::Shared,
}

/// The only routes that change anything.
fn control_router(context: Arc<Context>) -> Router {
    let changes = Router::new().route("/reload", post(reload)).route("/announce-stop", post(announce_stop));
    #[cfg(feature = "faults")]
    let changes = changes.route("/faults/{child}/{fault}", post(inject));
    router(Arc::clone(&context)).merge(changes.with_state(context))
}

/// Injects a fault into a child; 404 if there is no such child.
#[cfg(feature = "faults")]
async fn inject(
    State(context): State<Arc<Context>>,
    axum::extract::Path((name, fault)): axum::extract::Path<(String, super::faults::Fault)>,
) -> StatusCode {
    match context.daemon.observer.supervisor.children().iter().find(|child| child.name() == name) {
        Some(child) => {
            child.faults.inject(fault);
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    }
}

/// Announces that the coming stop is for good: nothing is carried, and the listeners are closed, as without a store.
async fn announce_stop(State(context): State<Arc<Context>>) -> StatusCode {
    context.daemon.handover.nobody_follows();
    context.daemon.manager.announce_stop();
    StatusCode::NO_CONTENT
}

/// 200 when a successor serves, 500 with the reason why none does, 503 where another reload has brought a successor:
/// that one is to be asked.
async fn reload(State(context): State<Arc<Context>>) -> impl IntoResponse {
    match context.daemon.reloads.ask().await {
        Outcome::Reloaded(pid) => {
            // Whoever comes from now on is answered by the successor, also one who asks for the next reload.
            tokio::select! {
                () = context.daemon.retired.cancelled() => {}
                // A child hangs, and may accept nobody either.
                () = context.daemon.told.cancelled() => {}
            }
            (StatusCode::OK, format!("process {pid} has taken over\n"))
        }
        // The reason may be another program's, such as a broken successor's.
        Outcome::Refused(reason) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", printable(&reason))),
        Outcome::Moved => (StatusCode::SERVICE_UNAVAILABLE, "another process has taken over\n".to_owned()),
    }
}

fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/events", get(page::events))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/status", get(status))
        .with_state(context)
}

/// 200 while new clients should come, 503 from the first moment of a stop.
async fn readyz(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let phase = context.daemon.observer.lifecycle.phase();
    let status = if phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", phase.name()))
}

/// The metrics. What a predecessor has counted is waited for: whoever has scraped that one must not see less here. While it
/// may still come the counters are left out. If it cannot, as from one that has crashed, this worker begins anew; but not
/// before it serves, for a predecessor may answer on the same listener until then.
async fn render_metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let child::Context { metrics, observer, .. } = &context.daemon;
    let was_starting = observer.lifecycle.phase() == Phase::Starting;
    // Looked at before the wait: in that time arrives what one has told that has just ended.
    let was_alone = observer.predecessors().is_empty();
    let mut is_settled = tokio::time::timeout(PATIENCE, metrics.ledger().settled()).await.is_ok();
    if !is_settled && !was_starting && (was_alone || metrics.ledger().is_overdue()) {
        tracing::warn!("no predecessor has told what it has counted: the counters begin anew");
        metrics.ledger().give_up();
        is_settled = true;
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, metrics.render(observer, is_settled))
}

async fn status(State(context): State<Arc<Context>>) -> Json<Status> {
    Json(context.daemon.observer.status())
}
