//! The daemon: the tree on one screen, and what its children share.

pub(crate) mod access;
pub mod admin;
#[cfg(feature = "faults")]
mod faults;
pub mod http;
pub mod phase;
pub mod registry;
mod reload;
pub mod shutdown;
pub mod signals;
pub mod status;
pub mod supervisor;
pub mod systemd;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};
use tokio_graceful_shutdown::{SubsystemHandle, Toplevel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::access::AccessLog;
use self::admin::{Admin, Metrics};
use self::http::Http;
use self::http::listener::{Address, BindError, Departed};
use self::http::routes;
use self::phase::{Cause, Lifecycle, Phase};
use self::registry::Registry;
use self::reload::{Reload, ReloadDesk};
use self::shutdown::{Stop, Stoppable};
use self::signals::Signals;
use self::status::Observer;
use self::supervisor::{BoxError, Child, Supervisor};
use self::systemd::Systemd;
use self::systemd::activation::{Inherited, restore_stderr};
use self::systemd::manager::Manager;
use self::systemd::watchdog::Watchdog;
use crate::handover::Handover;
use crate::handover::predecessor::Predecessor;
use crate::handover::successor::Word;
use crate::{Config, Exit, logging};

/// How long each of the last children may take to stop.
const LAST_CHILDREN: Duration = Duration::from_secs(2);

type Running = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A child of the caller's own.
#[derive(Clone)]
struct Own {
    name: Arc<str>,
    run: Arc<dyn Fn(Child) -> Running + Send + Sync>,
}

/// A daemon: a config, and what the caller adds to it.
pub struct Daemon {
    config: Config,
    router: Option<Router>,
    own: Vec<Own>,
    lifecycle: Lifecycle,
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The process that this one was to relieve is not there.
    #[error("cannot take over from the running daemon: {0}")]
    Predecessor(#[source] io::Error),
    /// A signal handler or a thread is refused by the system.
    #[error("cannot set up the process: {0}")]
    Process(#[from] io::Error),
}

impl Daemon {
    /// A daemon that serves what the config says.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            router: None,
            own: Vec::new(),
            lifecycle: Lifecycle::new(),
            stop_when: Box::pin(std::future::pending()),
        }
    }

    /// Answers what no `[[route]]` claims.
    #[must_use]
    pub fn router(mut self, router: Router) -> Self {
        self.router = Some(router);
        self
    }

    /// Adds a child of the caller's own. It is restarted when it fails, told to stop once the requests in flight are
    /// finished, and cut at the deadline.
    #[must_use]
    pub fn child<F, R, E>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let run = move |child| -> Running {
            let running = run(child);
            Box::pin(async move { running.await.map_err(Into::into) })
        };
        self.own.push(Own { name: name.into(), run: Arc::new(run) });
        self
    }

    /// Stops the daemon when a future resolves, beside SIGTERM and SIGINT.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop_when = Box::pin(stop);
        self
    }

    /// Is cancelled at the first moment of a stop: for handlers that would stream for ever.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.lifecycle.stopping().clone()
    }

    /// [`Self::run`] in a runtime of its own, for a `main` that is not async. A handler or a child that blocks its
    /// thread cannot hold up its return.
    #[must_use]
    pub fn run_blocking(self) -> Exit {
        // Two at least: where one is blocked by a handler, the other goes on.
        let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return failed(&StartError::Process(error)),
        };
        let exit = runtime.block_on(self.run());
        // All that was promised is done: nothing that is left is waited for.
        runtime.shutdown_background();
        exit
    }

    /// Runs until it is stopped, or cannot go on. Why it cannot is logged. Needs a multi-threaded runtime with its
    /// I/O and timers enabled.
    pub async fn run(self) -> Exit {
        restore_stderr();
        let mut inherited = Inherited::from_environment();
        let predecessor = match Predecessor::find(&mut inherited) {
            Ok(predecessor) => predecessor,
            Err(error) => return failed(&StartError::Predecessor(error)),
        };
        let lifecycle = self.lifecycle.clone();
        let (tree, departed) = match self.bind(inherited, predecessor.is_none()) {
            Ok(bound) => bound,
            Err(error) => {
                if let Some(predecessor) = &predecessor {
                    predecessor.decline(&error.to_string()).await;
                }
                return failed(&error);
            }
        };
        if let Some(predecessor) = &predecessor
            && let Err(error) = predecessor.relieve().await
        {
            return failed(&StartError::Predecessor(error));
        }
        tree.take_office(&departed);
        let exit = tokio::select! {
            exit = tree.run(predecessor) => exit,
            () = lifecycle.abandoned().cancelled() => Exit::Cut,
        };
        logging::flush();
        exit
    }

    /// Binds every socket and installs the signal handlers; starts nothing. Returns beside the tree the inherited
    /// listeners that this config has no use for.
    fn bind(self, mut inherited: Inherited, is_main: bool) -> Result<(Tree, Vec<Departed>), StartError> {
        let Self { config, router, own, lifecycle, stop_when } = self;
        raise_descriptor_limit();
        let manager = Manager::from_environment(is_main);
        let handover = Arc::new(Handover::bind(config.handover.clone(), &mut inherited, &manager)?);
        let departed = depart(&config, &mut inherited);
        if is_main && !departed.is_empty() {
            // What they leave free may be needed right now.
            for listener in &departed {
                manager.unstore(&listener.name);
            }
            inherited.expect_closing();
        }
        let beside = |error: BindError| if is_main { error } else { error.beside(&departed) };
        let metrics = Metrics::new();
        let registry = Registry::new(metrics.durations(), AccessLog::new(&config.log));
        let supervisor = Supervisor::new(config.supervision, lifecycle.clone(), Manager::watchdog());
        let observer = Observer {
            lifecycle: lifecycle.clone(),
            supervisor: supervisor.clone(),
            registry: Arc::clone(&registry),
            started: Instant::now(),
            reload_failure: Arc::default(),
        };
        let (reloads, requests) = ReloadDesk::open();

        let tunnels = TaskTracker::new();
        let router = routes::router(&config.http.routes, router, &tunnels);
        let http = Http::bind(
            &config.http,
            config.shutdown.linger,
            router,
            Arc::clone(&registry),
            Arc::clone(&handover),
            &mut inherited,
        )
        .map_err(beside)?;
        let admin = Admin::bind(
            &config.admin,
            observer.clone(),
            metrics,
            Arc::clone(&handover),
            reloads.clone(),
            manager.clone(),
            &mut inherited,
        )
        .map_err(beside)?;
        let signals = Signals::bind((), lifecycle.clone(), reloads)?;
        let systemd = Systemd::bind((), observer.clone(), manager.clone());

        let reload = Reload {
            observer,
            manager,
            handover,
            ready_timeout: config.handover.ready_timeout,
            program: std::env::current_exe().map_err(|e| e.kind()),
            servers: std::iter::once(http.server()).chain(admin.servers()).cloned().collect(),
        };
        let tree = Tree {
            shutdown: config.shutdown,
            lifecycle,
            supervisor,
            registry,
            signals,
            http,
            admin,
            systemd,
            own,
            reload,
            requests,
            stop_when,
        };
        Ok((tree, departed))
    }
}

fn failed(error: &StartError) -> Exit {
    tracing::error!("{error}");
    logging::flush();
    Exit::Failed
}

/// Closes inherited listeners that the config does not name any more.
fn depart(config: &Config, inherited: &mut Inherited) -> Vec<Departed> {
    let control = admin::control_socket();
    let wanted = config.http.listen.iter().chain(&config.admin.listen).chain(&control);
    let wanted: Vec<_> = wanted.map(Address::passed_as).collect();
    let departed = inherited.retain(|name| wanted.iter().any(|w| w == name));
    departed.into_iter().map(Departed::close).collect()
}

/// Every child, bound and not yet running.
struct Tree {
    shutdown: shutdown::Config,
    lifecycle: Lifecycle,
    supervisor: Supervisor,
    registry: Arc<Registry>,
    signals: Signals,
    http: Http,
    admin: Admin,
    systemd: Systemd,
    own: Vec<Own>,
    reload: Reload,
    requests: mpsc::Receiver<reload::Request>,
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Tree {
    /// From now on this is the unit's main process: it leaves with the manager what the next one is to find.
    fn take_office(&self, departed: &[Departed]) {
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
                    }
                    None => {}
                }
            }
        }
    }

    async fn run(self, predecessor: Option<Predecessor>) -> Exit {
        let (tell, told) = tokio::sync::oneshot::channel();
        let toplevel = Toplevel::new(async move |root: &mut SubsystemHandle| {
            // Nobody waits for the exit if the tree was abandoned.
            let _ = tell.send(self.grow(root, predecessor).await);
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
    async fn grow(self, root: &SubsystemHandle, predecessor: Option<Predecessor>) -> Exit {
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
        let start_own = |own: Own| start(&own.name, Box::new(move |child| (own.run)(child)));
        let own: Vec<_> = self.own.into_iter().map(start_own).collect();

        let Reload { observer, manager, .. } = &self.reload;
        let _watchdog = Watchdog::start(observer.clone(), manager.clone())
            .inspect_err(|error| tracing::error!(%error, "there is no watchdog"));
        lifecycle.enter(Phase::Serving);
        tracing::info!("serving; took over {}", registry.totals().taken_over);
        let mut word = tokio::select! {
            word = reason_to_stop(&lifecycle, &self.reload, self.requests, self.stop_when) => word,
            never = connections.keep_taking_over(predecessor.as_ref()) => match never {},
        };
        if word.is_some() {
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
            match &mut word {
                Some(word) => word.cut_asked().await,
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
/// returns the word that the successor was given.
async fn reason_to_stop(
    lifecycle: &Lifecycle,
    reload: &Reload,
    mut requests: mpsc::Receiver<reload::Request>,
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Option<Word> {
    let reload_on_request = async {
        while let Some(request) = requests.recv().await {
            let outcome = reload.run().await;
            // Whoever asked may be gone.
            let _ = request.send(outcome.as_ref().map(Word::pid).map_err(ToString::to_string));
            if let Ok(word) = outcome {
                return word;
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
        word = reload_on_request => {
            lifecycle.stop(Cause::Reload);
            Some(word)
        }
    }
}

/// A connection is a descriptor: take as many as the service manager allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files above {:?}", limit.current);
    }
}
