//! The tree on one screen: its children are started, one waits for a reason to stop, and they are stopped in order.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio::time::Duration;
use tokio_graceful_shutdown::{SubsystemHandle, Toplevel};
use tokio_util::sync::CancellationToken;

use super::child::{BoundChild, Context, Kind, UserChild};
use super::http::Http;
use super::link::Link;
use super::phase::{Cause, Phase};
use super::shutdown::{Stop, Stoppable};
use crate::Exit;
use crate::event;
use crate::main_process::Settings;
use crate::server::Server;
use crate::server::listener::RemovedListener;
use crate::systemd::activation::LAST_GOOD;
use crate::systemd::memfd::sealed;

/// The time that each of the last children may take to stop, and the tree to end after them.
const LAST_CHILDREN: Duration = Duration::from_secs(2);

/// The time after which those that still accept clients are not waited for before the successor is told what was counted:
/// less than `admin` has for its last answers, of which one says that a reload is over.
const RETIREMENT: Duration = Duration::from_millis(500);

/// The longest that it may take to tell the successor what was counted: connections follow, or the end of the process.
const TELL_FIRST: Duration = Duration::from_secs(2);
const TELL_LAST: Duration = Duration::from_secs(1);

/// What becomes of the last good config, which is served should the next process find a broken one.
pub(super) enum LastGood {
    /// It is this text now.
    Store(Arc<str>),
    /// It is what is served.
    Keep,
    /// There is none.
    Drop,
}

/// Every child, bound and not yet running.
pub(super) struct Tree {
    pub(super) daemon: Context,
    /// The part of the config that concerns the main process.
    pub(super) settings: Settings,
    pub(super) last_good: LastGood,
    pub(super) http: Http,
    /// The children beside `http`, in the order in which they start; they stop the other way round.
    pub(super) others: Vec<Arc<dyn BoundChild>>,
    pub(super) user_children: Vec<UserChild>,
    pub(super) stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Inherited listeners that the config does not name any more.
    pub(super) removed: Vec<RemovedListener>,
}

impl Tree {
    /// Whatever listens, with the child that it belongs to.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&str, &Server)> {
        self.children().flat_map(|child| child.servers().into_iter().map(|server| (child.name(), server)))
    }

    /// The daemon's own children.
    fn children(&self) -> impl Iterator<Item = &dyn BoundChild> {
        let http: &dyn BoundChild = &self.http;
        std::iter::once(http).chain(self.others.iter().map(|child| &**child))
    }

    /// Runs until all of it has stopped. The lifecycle's token is the tree's own, so a stop that is asked for and
    /// a child that fails for good have the same effect.
    pub(super) async fn run(self) -> Exit {
        for child in &self.others {
            if let Err(error) = child.install() {
                tracing::error!(
                    message_id = event::START_FAILED,
                    child = child.name(),
                    %error,
                    "cannot start {}: {error}",
                    child.name()
                );
                return Exit::Failed;
            }
        }
        let stop = self.daemon.observer.lifecycle.stopping().clone();
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
        let supervisor = self.daemon.observer.supervisor.clone();
        let start = |child: &Arc<dyn BoundChild>| supervisor.start(root, Arc::clone(child));
        let mut others: Vec<_> = self.others.iter().filter(|child| child.starts_first()).map(start).collect();
        let (singletons, user_children): (Vec<_>, Vec<_>) =
            self.user_children.drain(..).partition(|child| child.kind == Kind::Singleton);
        let mut user_children: Vec<_> =
            user_children.into_iter().map(|child| supervisor.start_user_child(root, child)).collect();
        if let Err(reason) = self.wait_to_serve(root).await {
            tracing::error!(message_id = event::START_FAILED, cause = reason, "cannot serve: {reason}");
            for child in user_children.iter().chain(others.iter().rev()) {
                child.stop_within(LAST_CHILDREN).await;
            }
            return Exit::Failed;
        }
        self.leave_descriptors();
        let http = supervisor.start(root, Arc::new(self.http.clone()));
        others.extend(self.others.iter().filter(|child| !child.starts_first()).map(start));

        let plain = user_children.len();
        user_children.extend(self.serve(root, singletons).await);
        let singletons = plain..user_children.len();
        let lifecycle = &self.daemon.observer.lifecycle;
        if self.daemon.link.is_some() && matches!(lifecycle.cause(), Some(Cause::ChildFailed(_))) {
            // The systemd child says so as well, but may be the one that failed.
            self.daemon.manager.tell(&[NotifyState::Stopping]);
        }
        let hands_over = lifecycle.cause().is_some_and(Cause::is_handover);
        if hands_over {
            // At once: a client that comes now is the successor's.
            http.subsystem.initiate_shutdown();
            for singleton in &user_children[singletons.clone()] {
                singleton.subsystem.initiate_shutdown();
            }
        }
        let listening: Vec<_> = {
            let closed = |running: &Stoppable| self.children().find(|c| c.name() == &*running.name)?.closed();
            let running = others.iter().chain([&http]);
            running.filter_map(|running| Some((running, closed(running)?))).collect()
        };
        let is_followed = || self.daemon.handover.keeps_listeners();
        let told = self.daemon.told.clone().drop_guard();
        let tell = async {
            // Also if it is cut short, or before it begins.
            let _told = told;
            // Without a main process `admin` answers to the end, and its counts with it: they are told then.
            let tells = self.daemon.link.is_some() && is_followed();
            if hands_over || tells {
                for (child, _) in &listening {
                    child.subsystem.initiate_shutdown();
                }
                // One that hangs is not waited for.
                let _ = tokio::time::timeout(RETIREMENT, self.daemon.retired.cancelled()).await;
            }
            if tells {
                // From here on this worker's own scrapes stand still at what it has told (`Ledger::shown`): whoever
                // comes now is to be answered by the successor.
                self.daemon.tell_successor(TELL_FIRST).await;
            }
        };
        if self.daemon.handover.refuses(false).is_some() {
            // Also within `delay` an answer tells its client to connect elsewhere next time.
            self.http.server().announce_close();
        }
        let stop = Stop {
            config: &self.daemon.shutdown,
            lifecycle,
            registry: &self.daemon.observer.registry,
            supervisor: &supervisor,
            http: &http,
            connections: &self.http,
            user_children: &user_children,
            beside: self.settings.deadline,
        };
        let report = tokio::select! {
            report = stop.run(tell) => report,
            never = release(self.daemon.link.as_ref(), &user_children[singletons]) => match never {},
            never = retire(&self.daemon, &listening) => match never {},
        };

        self.daemon.observer.stopped(report);
        lifecycle.enter(Phase::Stopped);
        for child in others.iter().rev() {
            child.stop_within(LAST_CHILDREN).await;
        }
        if is_followed() {
            self.daemon.tell_successor(TELL_LAST).await;
        }
        if report.cut == 0 { Exit::Clean } else { Exit::Cut }
    }

    /// Tells the main process, if there is one, that this worker can serve, and waits until it may. Where another worker
    /// serves meanwhile, this one can once every child that holds READY back is ready.
    async fn wait_to_serve(&mut self, root: &SubsystemHandle) -> Result<(), String> {
        let Self { daemon, stop_when, settings, .. } = self;
        let Context { observer, link, go, .. } = daemon;
        let Some(link) = link else { return Ok(()) };
        let may_serve = async {
            if link.is_beside() {
                observer.supervisor.ready().await;
            }
            link.bound(settings).map_err(|error| format!("cannot reach the main process: {error}"))?;
            go.cancelled().await;
            Ok(())
        };
        tokio::select! {
            may_serve = may_serve => return may_serve,
            // One that is not beside another serves until it stops, as any other daemon.
            () = root.on_shutdown_requested() => if !link.is_beside() {
                return Ok(());
            },
            () = stop_when => observer.lifecycle.stop(Cause::Caller),
        }
        let cause = observer.lifecycle.cause().map(ToString::to_string).unwrap_or_default();
        let reason = format!("stopped by {cause} before it was ready");
        link.decline(&reason);
        Err(reason)
    }

    /// Leaves with the manager the descriptors that the next process is to find.
    fn leave_descriptors(&self) {
        let manager = &self.daemon.manager;
        for listener in &self.removed {
            manager.unstore(&listener.name);
            listener.unlink();
        }
        self.daemon.handover.store(manager);
        match &self.last_good {
            LastGood::Keep => {}
            LastGood::Drop => manager.unstore(LAST_GOOD),
            LastGood::Store(text) => {
                manager.unstore(LAST_GOOD);
                match sealed("steadfast-config", text.as_bytes()) {
                    Ok(text) => manager.store(LAST_GOOD, text),
                    Err(error) => tracing::warn!("cannot keep the config for the next process: {error}"),
                }
            }
        }
        let listeners: Vec<_> = self
            .servers()
            .flat_map(|(child, server)| server.listeners().into_iter().map(move |listener| (child, listener)))
            .collect();
        let bound = listeners.iter().filter(|(_, listener)| !listener.is_inherited());
        let bound: BTreeSet<_> =
            bound.filter_map(|(_, listener)| listener.configured().stored_as()).collect();
        for name in &bound {
            // The store may still hold a socket of the same name whose path is gone: it would be passed on beside the
            // new one.
            manager.unstore(name);
        }
        for (child, listener) in listeners {
            let inherited = listener.is_inherited();
            let address = listener.address();
            tracing::info!(
                message_id = event::LISTENING,
                child,
                %address,
                inherited,
                "listening on {address} for {child}"
            );
            match listener.configured().stored_as() {
                Some(name) if bound.contains(&name) => {
                    manager.store(&name, &*listener);
                    if manager.stores() {
                        listener.leave();
                    }
                }
                Some(name) => manager.stored(&name),
                None => {}
            }
        }
        manager.check_room(0);
    }

    /// Serves, once every child is ready, until something asks for a stop. Returns the singletons that have been started.
    async fn serve(&mut self, root: &SubsystemHandle, mut singletons: Vec<UserChild>) -> Vec<Stoppable> {
        let Self { daemon, http, stop_when, .. } = self;
        let Context { observer, manager, link, alone, .. } = daemon;
        let mut started = Vec::new();
        match link {
            _ if singletons.is_empty() => {}
            Some(link) => link.want_singletons(),
            None => alone.cancel(),
        }
        let run_singletons = async {
            alone.cancelled().await;
            if let Some(link) = link {
                link.hold_singletons();
            }
            started
                .extend(singletons.drain(..).map(|child| observer.supervisor.start_user_child(root, child)));
            std::future::pending::<Infallible>().await
        };
        let serving = async {
            observer.supervisor.ready().await;
            http.take_over();
            observer.lifecycle.enter(Phase::Serving);
            let taken_over = &observer.registry.totals().taken_over;
            let [connections, tunnels] = taken_over.counts();
            if connections + tunnels > 0 {
                tracing::info!(
                    message_id = event::TOOK_OVER,
                    connections,
                    tunnels,
                    over_tls = taken_over.over_tls(),
                    "{taken_over} of an earlier worker go on"
                );
            }
            tracing::info!(
                message_id = event::READY,
                phase = Phase::Serving.name(),
                "serving; took over {taken_over}"
            );
            http.keep_taking_over().await
        };
        tokio::select! {
            () = root.on_shutdown_requested() => {}
            () = stop_when => {
                manager.stops();
                observer.lifecycle.stop(Cause::Caller);
            }
            never = serving => match never {},
            never = run_singletons => match never {},
        }
        started
    }
}

/// Tells the main process once the singletons have ended, so that the successor may start its own.
async fn release(link: Option<&Link>, singletons: &[Stoppable]) -> Infallible {
    if let Some(link) = link {
        for singleton in singletons {
            singleton.subsystem.finished().await;
        }
        link.release_singletons();
    }
    std::future::pending().await
}

/// Tells the main process once the children that listen, which are told to stop, accept no client any more.
async fn retire(daemon: &Context, listening: &[(&Stoppable, &CancellationToken)]) -> Infallible {
    for (child, closed) in listening {
        tokio::select! {
            () = closed.cancelled() => {}
            // One that does not run accepts nothing.
            () = daemon.observer.supervisor.until_inactive(&child.name) => {}
        }
    }
    daemon.retired.cancel();
    if let Some(link) = &daemon.link {
        link.retired();
    }
    std::future::pending().await
}
