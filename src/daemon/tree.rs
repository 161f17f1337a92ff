//! The tree on one screen: its children are started, one waits for a reason to stop, and they are stopped in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Duration;
use tokio_graceful_shutdown::{SubsystemHandle, Toplevel};

use super::admin::{self, Admin};
use super::child::Child;
use super::http::{self, Http};
use super::phase::{Cause, Lifecycle, Phase};
use super::reload::{self, Reload};
use super::shutdown::{self, Stop, Stoppable};
use super::signals::{self, Signals};
use super::supervisor::Supervisor;
use super::systemd::watchdog::Watchdog;
use super::systemd::{self, Systemd};
use super::{Running, UserChild};
use crate::Exit;
use crate::handover::predecessor::Predecessor;
use crate::handover::successor::Transfer;
use crate::server::Registry;
use crate::server::listener::RemovedListener;

/// How long each of the last children may take to stop.
const LAST_CHILDREN: Duration = Duration::from_secs(2);

/// Every child, bound and not yet running.
pub(super) struct Tree {
    pub(super) shutdown: shutdown::Config,
    pub(super) lifecycle: Lifecycle,
    pub(super) supervisor: Supervisor,
    pub(super) registry: Arc<Registry>,
    pub(super) signals: Signals,
    pub(super) http: Http,
    pub(super) admin: Admin,
    pub(super) systemd: Systemd,
    pub(super) own: Vec<UserChild>,
    pub(super) reload: Reload,
    pub(super) requests: mpsc::Receiver<reload::Request>,
    pub(super) stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Tree {
    /// From now on this is the unit's main process: it leaves with the manager what the next one is to find.
    pub(super) fn become_main(&self, departed: &[RemovedListener]) {
        let manager = &self.reload.manager;
        manager.speak();
        for listener in departed {
            manager.unstore(&listener.name);
            listener.unlink();
        }
        self.reload.handover.store(manager);
        let [admin, control] = self.admin.servers();
        for (child, server) in
            [(http::NAME, self.http.server()), (admin::NAME, admin), (admin::NAME, control)]
        {
            for listener in server.listeners() {
                let inherited = listener.is_inherited();
                let address = listener.address();
                if child == admin::NAME && !address.is_local() {
                    tracing::warn!(
                        "admin listens on {address}: everybody who reaches it may read status and metrics"
                    );
                }
                tracing::info!(child, %address, inherited, "listening on {address} for {child}");
                match listener.configured().stored_as() {
                    Some(name) if inherited => manager.stored(&name),
                    Some(name) => {
                        // A socket whose path was removed behind its back may be there under the same name.
                        manager.unstore(&name);
                        manager.store(&name, &*listener);
                        if manager.stores() {
                            listener.leave();
                        }
                    }
                    None => {}
                }
            }
        }
        manager.check_room();
    }

    pub(super) async fn run(self, predecessor: Option<Predecessor>) -> Exit {
        let (tell, told) = tokio::sync::oneshot::channel();
        let toplevel = Toplevel::new(async move |root: &mut SubsystemHandle| {
            // Nobody waits for the exit if the tree was abandoned.
            let _ = tell.send(self.run_children(root, predecessor).await);
        });
        // The stop keeps its own deadlines; the tree's only limit must lie beyond them all.
        let tree = toplevel.handle_shutdown_requests(Duration::MAX);
        tokio::pin!(tree, told);
        let ended = tokio::select! {
            ended = &mut tree => ended,
            exit = &mut told => {
                // Every child has been stopped. One that blocks its thread cannot be, and is not waited for.
                let _ = tokio::time::timeout(LAST_CHILDREN, tree).await;
                return exit.unwrap_or(Exit::Failed);
            }
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the tree failed");
            return Exit::Failed;
        }
        told.await.unwrap_or(Exit::Failed)
    }

    /// Starts the children, waits for a reason to stop, and stops them: those with work first, admin last but for the
    /// two that must see it end.
    async fn run_children(self, root: &SubsystemHandle, predecessor: Option<Predecessor>) -> Exit {
        let Self { shutdown, lifecycle, supervisor, registry, .. } = self;
        let start = |name: &str, run: Box<dyn Fn(Child) -> Running + Send + Sync>| Stoppable {
            name: name.into(),
            subsystem: supervisor.start(root, name, run),
        };
        self.http.take_over();
        let connections = self.http.clone();
        let (signals, http, admin, systemd) = (self.signals, self.http, self.admin, self.systemd);
        let signals = start(signals::NAME, Box::new(move |child| Box::pin(signals.clone().run(child))));
        let http = start(http::NAME, Box::new(move |child| Box::pin(http.clone().run(child))));
        let admin = start(admin::NAME, Box::new(move |child| Box::pin(admin.clone().run(child))));
        let systemd = start(systemd::NAME, Box::new(move |child| Box::pin(systemd.clone().run(child))));
        let start_own = |own: UserChild| start(&own.name, Box::new(move |child| (own.run)(child)));
        let own: Vec<_> = self.own.into_iter().map(start_own).collect();

        let Reload { observer, manager, .. } = &self.reload;
        let _watchdog = Watchdog::start(observer.clone(), manager.clone())
            .inspect_err(|error| tracing::error!(%error, "there is no watchdog"));
        lifecycle.enter(Phase::Serving);
        tracing::info!("serving; took over {}", registry.totals().taken_over);
        let mut transfer = tokio::select! {
            transfer = reason_to_stop(&lifecycle, &self.reload, self.requests, self.stop_when) => transfer,
            never = connections.keep_taking_over(predecessor.as_ref()) => match never {},
        };
        if transfer.is_some() {
            // The successor's own admin child answers on these listeners now.
            admin.subsystem.initiate_shutdown();
        }
        if self.reload.handover.refuses(false).is_some() {
            // Also within `delay` an answer tells its client to connect elsewhere next time.
            connections.server().announce_close();
        }
        let stop = Stop {
            config: &shutdown,
            lifecycle: &lifecycle,
            registry: &registry,
            supervisor: &supervisor,
            http: &http,
            connections: &connections,
            own: &own,
            predecessor: predecessor.as_ref(),
        };
        let cut_asked = async {
            match &mut transfer {
                Some(transfer) => transfer.cut_asked().await,
                None => std::future::pending().await,
            }
            lifecycle.cut();
            std::future::pending().await
        };
        let report = tokio::select! {
            report = stop.run() => report,
            never = cut_asked => match never {},
        };

        lifecycle.enter(Phase::Stopped);
        for child in [&admin, &systemd, &signals] {
            child.stop_within(LAST_CHILDREN).await;
        }
        match (lifecycle.cause(), report.cut) {
            (Some(Cause::ChildFailed(_)), _) => Exit::Failed,
            (_, 0) => Exit::Clean,
            (_, _) => Exit::Cut,
        }
    }
}

/// Serves until something asks for a stop. Reloads meanwhile, if asked to; one that succeeds is a reason to stop, and
/// returns the transfer that the successor was given.
async fn reason_to_stop(
    lifecycle: &Lifecycle,
    reload: &Reload,
    mut requests: mpsc::Receiver<reload::Request>,
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Option<Transfer> {
    let reload_on_request = async {
        while let Some(request) = requests.recv().await {
            let outcome = reload.run().await;
            // Whoever asked may be gone.
            let _ = request.send(outcome.as_ref().map(Transfer::pid).map_err(ToString::to_string));
            if let Ok(transfer) = outcome {
                return transfer;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = lifecycle.stopping().cancelled() => None,
        () = stop_when => {
            lifecycle.stop(Cause::Caller);
            None
        }
        transfer = reload_on_request => {
            lifecycle.stop(Cause::Reload);
            Some(transfer)
        }
    }
}
