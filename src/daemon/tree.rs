//! The tree on one screen: its children are started, one waits for a reason to stop, and they are stopped in order.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Duration;
use tokio_graceful_shutdown::{SubsystemHandle, Toplevel};

use super::child::{BoundChild, UserChild};
use super::http::Http;
use super::phase::{Cause, Lifecycle, Phase};
use super::reload::{self, Reload};
use super::shutdown::{self, Stop};
use super::supervisor::Supervisor;
use crate::Exit;
use crate::handover::predecessor::Predecessor;
use crate::handover::successor::Transfer;
use crate::server::listener::RemovedListener;
use crate::server::{Registry, Server};

/// The time that each of the last children may take to stop, and the tree to end after them.
const LAST_CHILDREN: Duration = Duration::from_secs(2);

/// Every child, bound and not yet running.
pub(super) struct Tree {
    pub(super) shutdown: shutdown::Config,
    pub(super) lifecycle: Lifecycle,
    pub(super) supervisor: Supervisor,
    pub(super) registry: Arc<Registry>,
    pub(super) http: Http,
    /// The children beside `http`, in the order in which they start; they stop the other way round.
    pub(super) others: Vec<Arc<dyn BoundChild>>,
    pub(super) own: Vec<UserChild>,
    pub(super) reload: Reload,
    pub(super) requests: mpsc::Receiver<reload::Request>,
    pub(super) stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The process whose place this one is to take, in a reload.
    pub(super) predecessor: Option<Predecessor>,
    /// Inherited listeners that the config does not name any more.
    pub(super) removed: Vec<RemovedListener>,
}

impl Tree {
    /// Whatever listens, with the child that it belongs to.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&str, &Server)> {
        let http: &dyn BoundChild = &self.http;
        let children = std::iter::once(http).chain(self.others.iter().map(|child| &**child));
        children.flat_map(|child| child.servers().into_iter().map(|server| (child.name(), server)))
    }

    /// Runs until all of it has stopped. The lifecycle's token is the tree's own, so a stop that is asked for and
    /// a child that fails for good have the same effect.
    pub(super) async fn run(self) -> Exit {
        for child in &self.others {
            if let Err(error) = child.install() {
                tracing::error!("cannot start {}: {error}", child.name());
                return Exit::Failed;
            }
        }
        let stop = self.lifecycle.stopping().clone();
        let (tell, told) = oneshot::channel();
        let root = async move |root: &mut SubsystemHandle| {
            // The receiver is gone if the tree was abandoned.
            let _ = tell.send(self.run_children(root).await);
            root.request_shutdown();
        };
        let tree = Toplevel::new_with_shutdown_token(root, stop);
        // The stop has deadlines of its own. A child that is left after it blocks its thread, and is not waited for.
        let exit = told.await;
        let ended = tree.handle_shutdown_requests(LAST_CHILDREN).await;
        let failures = ended.as_ref().err().map_or(&[][..], |error| error.get_subsystem_errors());
        exit.ok().filter(|_| failures.is_empty()).unwrap_or(Exit::Failed)
    }

    /// Starts the children, waits for a reason to stop, and stops them: those with work first.
    async fn run_children(mut self, root: &SubsystemHandle) -> Exit {
        let supervisor = self.supervisor.clone();
        let start = |child: &Arc<dyn BoundChild>| supervisor.start(root, Arc::clone(child));
        let mut others: Vec<_> = self.others.iter().filter(|child| child.starts_first()).map(start).collect();
        let own: Vec<_> = self.own.drain(..).map(|own| supervisor.start_own(root, own)).collect();
        if let Err(reason) = self.relieve_predecessor(root).await {
            tracing::error!("cannot take over from the running daemon: {reason}");
            for child in own.iter().chain(others.iter().rev()) {
                child.stop_within(LAST_CHILDREN).await;
            }
            return Exit::Failed;
        }
        self.become_main();
        let http = supervisor.start(root, Arc::new(self.http.clone()));
        others.extend(self.others.iter().filter(|child| !child.starts_first()).map(start));

        let mut transfer = self.serve(root).await;
        if transfer.is_some() {
            let listening: Vec<_> = self.servers().map(|(child, _)| child).collect();
            for child in others.iter().filter(|child| listening.contains(&&*child.name)) {
                child.subsystem.initiate_shutdown();
            }
        }
        let Self { shutdown, lifecycle, supervisor, registry, http: connections, predecessor, .. } = &self;
        if self.reload.handover.refuses(false).is_some() {
            // Also within `delay` an answer tells its client to connect elsewhere next time.
            connections.server().announce_close();
        }
        let stop = Stop {
            config: shutdown,
            lifecycle,
            registry,
            supervisor,
            http: &http,
            connections,
            own: &own,
            predecessor: predecessor.as_ref(),
        };
        let report = tokio::select! {
            report = stop.run() => report,
            never = cut_on_request(transfer.as_mut(), lifecycle) => match never {},
        };

        lifecycle.enter(Phase::Stopped);
        for child in others.iter().rev() {
            child.stop_within(LAST_CHILDREN).await;
        }
        if report.cut == 0 { Exit::Clean } else { Exit::Cut }
    }

    /// Takes the place of the process that started this one, if one did, once every child that holds READY back is
    /// ready.
    async fn relieve_predecessor(&mut self, root: &SubsystemHandle) -> Result<(), String> {
        let Self { lifecycle, supervisor, stop_when, predecessor, .. } = self;
        let Some(predecessor) = predecessor else { return Ok(()) };
        tokio::select! {
            () = supervisor.ready() => return predecessor.relieve().await.map_err(|error| error.to_string()),
            () = root.on_shutdown_requested() => {}
            () = stop_when => lifecycle.stop(Cause::Caller),
        }
        let cause = lifecycle.cause().map(ToString::to_string).unwrap_or_default();
        let reason = format!("stopped by {cause} before it was ready");
        predecessor.decline(&reason).await;
        Err(reason)
    }

    /// Acts as the unit's main process from now on: leaves with the manager the descriptors that the successor is to
    /// find.
    fn become_main(&self) {
        let manager = &self.reload.manager;
        manager.speak();
        for listener in &self.removed {
            manager.unstore(&listener.name);
            listener.unlink();
        }
        self.reload.handover.store(manager);
        for (child, server) in self.servers() {
            for listener in server.listeners() {
                let inherited = listener.is_inherited();
                let address = listener.address();
                tracing::info!(child, %address, inherited, "listening on {address} for {child}");
                match listener.configured().stored_as() {
                    Some(name) if inherited => manager.stored(&name),
                    Some(name) => {
                        // The store may still hold a socket of the same name whose path is gone: it would be passed on
                        // beside this one.
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

    /// Serves, once every child is ready, until something asks for a stop. A reload that succeeds does so too: then
    /// this returns the transfer that the successor was given.
    async fn serve(&mut self, root: &SubsystemHandle) -> Option<Transfer> {
        let Self { lifecycle, supervisor, registry, http, reload, requests, stop_when, predecessor, .. } =
            self;
        let reloaded = async {
            supervisor.ready().await;
            http.take_over();
            lifecycle.enter(Phase::Serving);
            tracing::info!("serving; took over {}", registry.totals().taken_over);
            tokio::select! {
                transfer = reload_on_request(reload, requests) => transfer,
                never = http.keep_taking_over(predecessor.as_ref()) => match never {},
            }
        };
        let transfer = tokio::select! {
            () = root.on_shutdown_requested() => None,
            () = stop_when => {
                lifecycle.stop(Cause::Caller);
                None
            }
            transfer = reloaded => {
                lifecycle.stop(Cause::Reload);
                Some(transfer)
            }
        };
        // Whoever asks for a reload from now on is refused, and so are those who wait for one.
        requests.close();
        while requests.try_recv().is_ok() {}
        transfer
    }
}

/// Reloads whenever it is asked to, until that succeeds.
async fn reload_on_request(reload: &Reload, requests: &mut mpsc::Receiver<reload::Request>) -> Transfer {
    while let Some(request) = requests.recv().await {
        let outcome = reload.run().await;
        // The asking end may be gone.
        let _ = request.send(outcome.as_ref().map(Transfer::pid).map_err(ToString::to_string));
        if let Ok(transfer) = outcome {
            return transfer;
        }
    }
    std::future::pending().await
}

/// Cuts what is in flight when the successor asks for it.
async fn cut_on_request(transfer: Option<&mut Transfer>, lifecycle: &Lifecycle) -> Infallible {
    if let Some(transfer) = transfer {
        transfer.cut_asked().await;
        lifecycle.cut();
    }
    std::future::pending().await
}
