//! The daemon: what a caller adds to it, how it is bound, and what its children share. The tree is in `tree`.

pub(crate) mod admin;
pub(crate) mod child;
pub(crate) mod config;
mod exposition;
#[cfg(feature = "faults")]
mod faults;
mod history;
pub(crate) mod http;
mod ledger;
mod link;
mod metrics;
mod observer;
pub(crate) mod overview;
pub(crate) mod phase;
mod reload;
pub(crate) mod shutdown;
pub(crate) mod signals;
pub(crate) mod status;
pub(crate) mod supervisor;
pub(crate) mod systemd;
mod threads;
mod tree;
mod usage;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::child::{BoundChild, BoxError, Child, Context, Kind, UserChild};
pub use self::config::Config;
use self::config::Source;
use self::history::History;
use self::http::Http;
use self::http::https::Tls;
use self::http::routes::{Route, Routes};
use self::link::Link;
use self::metrics::Metrics;
use self::observer::Observer;
use self::phase::Lifecycle;
use self::reload::Reloads;
use self::supervisor::Supervisor;
use self::threads::{Runtimes, Threads};
use self::tree::{LastGood, Tree};
use crate::event;
use crate::handover::Handover;
use crate::logging::LastWords;
use crate::logging::access::OpenError;
use crate::main_process::{self, Settings};
use crate::rules::{Check, Violations};
use crate::server::access::AccessLog;
use crate::server::address::{Address, BindError};
use crate::server::listener::RemovedListener;
use crate::server::route::RouteNames;
use crate::server::{Registry, Totals};
use crate::systemd::activation::{Inherited, LAST_GOOD, Role, restore_stderr, role};
use crate::systemd::manager::Manager;
use crate::{Exit, logging};

/// The longest that the start of a service waits for what it cannot bind yet, such as a port that is being given up.
/// Then it fails, and the service manager tries again.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// A daemon: a config, and what the caller adds to it.
pub struct Daemon {
    config: Config,
    router: Option<Router>,
    user_children: Vec<UserChild>,
    lifecycle: Lifecycle,
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The reason why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The config is wrong. Cannot happen to one that was read from a file and not changed since, but for the certificates
    /// that it names.
    #[error(transparent)]
    Config(#[from] Violations),
    /// A listener cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The access log cannot be opened.
    #[error(transparent)]
    AccessLog(#[from] OpenError),
    /// A child of the caller's own has no name, or that of another child: the log, the metrics and `/status` tell
    /// children by their names.
    #[error(
        "a child cannot be named {0:?}: it needs a name that no other child has, nor one of the daemon's own"
    )]
    ChildName(String),
    /// The system refuses a socket, a thread or another resource.
    #[error("cannot set up the process: {0}")]
    Process(#[from] io::Error),
}

impl StartError {
    /// The exit of a process that cannot start for this reason: [`Exit::Config`] or [`Exit::Failed`].
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Bind(_) | Self::AccessLog(_) | Self::ChildName(_) | Self::Process(_) => Exit::Failed,
        }
    }

    /// Logs it, and returns the process's exit.
    fn log(&self) -> Exit {
        match self {
            Self::Config(violations) => {
                violations.iter().for_each(|violation| {
                    tracing::error!(
                        message_id = event::CONFIG_REFUSED,
                        cause = %violation,
                        "the config is wrong: {violation}"
                    );
                });
            }
            other => tracing::error!(message_id = event::START_FAILED, "{other}"),
        }
        logging::finish();
        self.exit()
    }
}

impl Daemon {
    /// A daemon that serves what the config says.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            router: None,
            user_children: Vec::new(),
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
    /// finished, and cut at the deadline. No other child may have its name, nor may one of the daemon's own.
    #[must_use]
    pub fn child<F, R, E>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.user_children.push(UserChild::new(name, Kind::Plain, run));
        self
    }

    /// The same for a child that others cannot do without. Until it has called [`Child::ready`] clients wait in the
    /// listeners' backlog, `/readyz` fails, the service manager is not told that the service is ready, and in a
    /// reload the predecessor serves on, for `[handover] ready_timeout` at most. One that ends before that has
    /// failed.
    #[must_use]
    pub fn child_with_readiness<F, R, E>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.user_children.push(UserChild::new(name, Kind::HoldsReady, run));
        self
    }

    /// The same for a child that must not run twice, such as the consumer of a queue. In a handover it is told to stop
    /// at the first moment, and the successor starts its own only when the predecessor's has ended; clients are
    /// served meanwhile. It is not waited for, however long that takes, within `[handover] deadline`.
    #[must_use]
    pub fn singleton<F, R, E>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.user_children.push(UserChild::new(name, Kind::Singleton, run));
        self
    }

    /// Stops the daemon when a future resolves, beside SIGTERM and SIGINT.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop_when = Box::pin(stop);
        self
    }

    /// A token that is cancelled at the first moment of a stop: for handlers that would stream for ever.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.lifecycle.stopping().clone()
    }

    /// Runs the service: the main process, or in a process that it has started as a worker, this daemon in runtimes of its
    /// own. For a `main` that is not async.
    ///
    /// The main process starts workers by the path and with the arguments that it was started with itself. `main` runs
    /// in each of these processes up to this call, so what comes before it should have no effect outside of the
    /// process.
    ///
    /// In a worker connections live on I/O threads (`[http] threads`), the tree on a small runtime, and what is the
    /// caller's own, the `Router` and children, on another one beside them. So a handler or a child that blocks its
    /// thread holds up nothing but its like, and cannot hold up the return.
    #[must_use]
    pub fn run_blocking(self) -> Exit {
        let _last_words = LastWords;
        if role() == Role::Main {
            return main_process::run();
        }
        match Runtimes::start(self.router.is_some() || !self.user_children.is_empty()) {
            Ok(runtimes) => runtimes.run(self),
            Err(error) => StartError::Process(error).log(),
        }
    }

    /// [`Self::bind`] and [`Bound::run`], in this process and without a main process: a reload is refused, and a restart
    /// makes clients wait for what is in flight. Why it cannot start is logged. Needs a multi-threaded runtime with its I/O
    /// and timers enabled.
    pub async fn run(self) -> Exit {
        self.run_on(&Threads::Shared).await
    }

    async fn run_on(self, threads: &Threads) -> Exit {
        match self.bind_on(threads) {
            Ok(bound) => bound.run().await,
            Err(error) => error.log(),
        }
    }

    /// Checks the config and binds every socket; starts nothing. Needs a runtime, on which all of it runs from now on:
    /// the tree, the connections whatever `[http] threads` says, and what the caller has added. Takes the descriptors
    /// that the process was started with: only the first daemon of a process gets these.
    ///
    /// # Errors
    /// [`StartError`]; what had been bound is closed again.
    pub fn bind(self) -> Result<Bound, StartError> {
        self.bind_on(&Threads::Shared)
    }

    fn bind_on(self, threads: &Threads) -> Result<Bound, StartError> {
        restore_stderr();
        let mut inherited = Inherited::from_environment();
        let link = Link::find(&mut inherited)?;
        match self.bind_tree(threads, inherited, link.clone()) {
            Ok(tree) => Ok(Bound(tree)),
            Err(error) => {
                if let Some(link) = link {
                    link.decline(&error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Binds every child. In a reload another worker still listens.
    fn bind_tree(
        self,
        threads: &Threads,
        mut inherited: Inherited,
        link: Option<Link>,
    ) -> Result<Tree, StartError> {
        let Self { config, router, user_children, lifecycle, stop_when } = self;
        config.check()?;
        let tls = load_https(&config)?;
        let source = &config.source;
        log_source(source);
        let is_beside = link.as_ref().is_some_and(Link::is_beside);
        let channel = link.as_ref().map(|link| Arc::clone(link.channel()));
        let manager = channel.clone().map_or_else(Manager::from_environment, Manager::main_process);
        let handover = Arc::new(Handover::bind(config.handover.clone(), &mut inherited, &manager)?);
        // No listener of an earlier config: `Config::load` has read it.
        drop(inherited.take(LAST_GOOD));
        let removed = remove(&config, &mut inherited);
        if !is_beside && manager.listens() {
            // Removed at once: this process may be about to bind their addresses.
            for listener in &removed {
                manager.unstore(&listener.name);
            }
            inherited.wait_until(std::time::Instant::now() + PATIENCE);
        }
        let beside = |error: BindError| {
            if is_beside {
                error.beside(removed.iter().filter_map(|listener| listener.address.as_ref()))
            } else {
                error
            }
        };
        let metrics = Metrics::new(&handover);
        let io = threads.io(config.http.threads)?;
        let names: Vec<_> = config.http.routes.iter().map(Route::name).collect();
        let routes = RouteNames::new(names.iter().map(|name| &**name));
        let totals = Totals::new(io.number(), AccessLog::open(&config.log)?, routes);
        let registry = Registry::new(totals);
        let users = threads.users();
        let supervisor = Supervisor::new(config.supervision.clone(), lifecycle.clone(), Manager::watchdog());
        let supervisor = supervisor.with_runtime_of_users(users.clone());
        let observer = Observer {
            lifecycle: lifecycle.clone(),
            supervisor: supervisor.clone(),
            registry: Arc::clone(&registry),
            io: io.clone(),
            started: Instant::now(),
            reload_failure: Arc::default(),
            main_process: link.as_ref().map(Link::pid),
            news: Arc::default(),
            history: History::default(),
            report: Arc::default(),
            stale_config: source.stale.as_ref().map(|stale| stale.in_short.clone()),
        };
        let last_good = match source {
            Source { stale: Some(_), .. } => LastGood::Keep,
            Source { text, .. } if config.handover.last_good && !text.is_empty() => {
                LastGood::Store(Arc::clone(text))
            }
            Source { .. } => LastGood::Drop,
        };
        let settings = Settings {
            deadline: config.handover.deadline,
            predecessors: config.handover.predecessors,
            ready_timeout: config.handover.ready_timeout,
            stop: config.shutdown.deadline.and_then(|deadline| deadline.checked_add(config.shutdown.delay)),
            max_restarts: config.supervision.max_restarts,
            window: config.supervision.window,
            backoff: config.supervision.backoff,
            backoff_max: config.supervision.backoff_max,
        };
        let context = Context {
            observer,
            metrics,
            manager,
            handover,
            reloads: Reloads::new(channel),
            shutdown: config.shutdown,
            link,
            go: CancellationToken::new(),
            alone: CancellationToken::new(),
            retired: CancellationToken::new(),
            told: CancellationToken::new(),
        };

        let tunnels = TaskTracker::new();
        let routes = Routes::new(&config.http.routes, router, users, &tunnels);
        context.metrics.follow(routes.clone());
        let https = config.https.as_ref().zip(tls);
        let linger = context.shutdown.linger;
        let http =
            Http::bind(&config.http, https, linger, routes, io, &context, &mut inherited).map_err(beside)?;
        let others: Vec<Arc<dyn BoundChild>> = vec![
            Arc::new(signals::Signals::bind(&context)),
            Arc::new(admin::Admin::bind(&config.admin, &context, &mut inherited).map_err(beside)?),
            Arc::new(systemd::Systemd::bind(&context)),
        ];
        let mut names: HashSet<&str> = others.iter().map(|child| child.name()).collect();
        names.extend(["", http.name()]);
        if let Some(child) = user_children.iter().find(|child| !names.insert(child.name())) {
            return Err(StartError::ChildName(child.name().to_owned()));
        }

        Ok(Tree { daemon: context, settings, last_good, http, others, user_children, stop_when, removed })
    }
}

/// Reads the certificates of `[https]`, if there is that section, and says what is doubtful about them.
fn load_https(config: &Config) -> Result<Option<Tls>, Violations> {
    let mut check = Check::default();
    let tls = config.load_https(&mut check);
    for warning in check.finish()? {
        tracing::warn!(message_id = event::CERTIFICATE_DOUBTFUL, cause = %warning, "{warning}");
    }
    Ok(tls)
}

/// Says which config this is, and why it is not the one that is there.
fn log_source(source: &Source) {
    if !source.name.is_empty() {
        let (version, config) = (env!("CARGO_PKG_VERSION"), &*source.name);
        tracing::info!(message_id = event::STARTING, version, config, "steadfast {version} with {config}");
    }
    if let Some(stale) = &source.stale {
        tracing::error!(
            message_id = event::LAST_GOOD_CONFIG,
            cause = stale.in_short,
            "the config is wrong, serving the last good one until a reload succeeds: {}",
            stale.said
        );
    }
}

/// A daemon that listens: clients wait in the backlog until it runs. Dropped before that it leaves nothing behind, but
/// for what the service manager had kept for listeners that the config does not name any more.
pub struct Bound(Tree);

impl Bound {
    /// The addresses that each child listens on, by the child's name (`http`, `admin`) and in the config's order,
    /// with the ports that the kernel chose. The control socket is one of `admin`'s.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, Vec<Address>> {
        let mut addresses: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (child, server) in self.0.servers() {
            let listeners = server.listeners().into_iter().map(|listener| listener.address());
            addresses.entry(child.to_owned()).or_default().extend(listeners);
        }
        addresses
    }

    /// Installs the signal handlers, starts the children, and runs until it is stopped or cannot go on. Why it cannot
    /// is logged. Binds nothing.
    pub async fn run(self) -> Exit {
        raise_descriptor_limit();
        let lifecycle = self.0.daemon.observer.lifecycle.clone();
        let access = self.0.daemon.observer.registry.totals().access().clone();
        let exit = tokio::select! {
            exit = self.0.run() => exit,
            () = lifecycle.abandoned().cancelled() => Exit::Cut,
        };
        // Whatever else the runtime has to do need not wait for a slow journal.
        let finish = move || {
            access.flush();
            logging::finish();
        };
        let _ = tokio::task::spawn_blocking(finish).await;
        exit
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bound").field(&self.addresses()).finish()
    }
}

/// Closes inherited listeners that the config does not name any more.
fn remove(config: &Config, inherited: &mut Inherited) -> Vec<RemovedListener> {
    let wanted: Vec<_> = config.sockets().iter().map(Address::passed_as).collect();
    let removed = inherited.retain(|name| wanted.iter().any(|w| w == name));
    removed.into_iter().map(RemovedListener::close).collect()
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
