//! The daemon: the tree on one screen, and what its children share.

pub mod admin;
pub mod child;
#[cfg(feature = "faults")]
mod faults;
pub mod http;
pub mod phase;
mod reload;
pub mod shutdown;
pub mod signals;
pub mod status;
pub mod supervisor;
pub mod systemd;
mod tree;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admin::{Admin, Metrics};
use self::child::{BoxError, Child};
use self::http::Http;
use self::http::routes;
use self::phase::Lifecycle;
use self::reload::{Reload, Reloads};
use self::signals::Signals;
use self::status::Observer;
use self::supervisor::Supervisor;
use self::systemd::Systemd;
use self::tree::Tree;
use crate::handover::Handover;
use crate::handover::predecessor::Predecessor;
use crate::server::Registry;
use crate::server::access::AccessLog;
use crate::server::address::{Address, BindError};
use crate::server::listener::RemovedListener;
use crate::systemd::activation::{Inherited, restore_stderr};
use crate::systemd::manager::Manager;
use crate::{Config, Exit, logging};

/// The longest that the start of a service waits for what it cannot bind yet, such as a port that is being given up.
/// Then it fails, and the service manager tries again.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

type Running = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A child of the caller's own.
#[derive(Clone)]
struct UserChild {
    name: Arc<str>,
    run: Arc<dyn Fn(Child) -> Running + Send + Sync>,
}

/// A daemon: a config, and what the caller adds to it.
pub struct Daemon {
    config: Config,
    router: Option<Router>,
    own: Vec<UserChild>,
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
        self.own.push(UserChild { name: name.into(), run: Arc::new(run) });
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
        tree.become_main(&departed);
        let exit = tokio::select! {
            exit = tree.run(predecessor) => exit,
            () = lifecycle.abandoned().cancelled() => Exit::Cut,
        };
        logging::flush();
        exit
    }

    /// Binds every socket and installs the signal handlers; starts nothing. Returns beside the tree the inherited
    /// listeners that this config has no use for.
    fn bind(
        self,
        mut inherited: Inherited,
        is_main: bool,
    ) -> Result<(Tree, Vec<RemovedListener>), StartError> {
        let Self { config, router, own, lifecycle, stop_when } = self;
        raise_descriptor_limit();
        let manager = Manager::from_environment(is_main);
        let handover = Arc::new(Handover::bind(config.handover.clone(), &mut inherited, &manager)?);
        let departed = depart(&config, &mut inherited);
        if is_main && manager.listens() {
            // What they leave free may be needed right now.
            for listener in &departed {
                manager.unstore(&listener.name);
            }
            inherited.wait_until(std::time::Instant::now() + PATIENCE);
        }
        let beside = |error: BindError| {
            if is_main {
                error
            } else {
                error.beside(departed.iter().filter_map(|listener| listener.address.as_ref()))
            }
        };
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
        let (reloads, requests) = Reloads::open();

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
fn depart(config: &Config, inherited: &mut Inherited) -> Vec<RemovedListener> {
    let control = admin::control_socket();
    let wanted = config.http.listen.iter().chain(&config.admin.listen).chain(&control);
    let wanted: Vec<_> = wanted.map(Address::passed_as).collect();
    let departed = inherited.retain(|name| wanted.iter().any(|w| w == name));
    departed.into_iter().map(RemovedListener::close).collect()
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
