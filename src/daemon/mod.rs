//! The daemon: the tree on one screen, and what its children share.

mod access;
pub mod admin;
pub mod http;
pub mod phase;
pub mod registry;
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
use tokio::time::{Duration, Instant};
use tokio_graceful_shutdown::{SubsystemHandle, Toplevel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::access::AccessLog;
use self::admin::{Admin, Metrics};
use self::http::Http;
use self::http::listener::BindError;
use self::http::routes;
use self::phase::{Cause, Lifecycle, Phase};
use self::registry::Registry;
use self::shutdown::{Stop, Stoppable};
use self::signals::Signals;
use self::status::Observer;
use self::supervisor::{BoxError, Child, Supervisor};
use self::systemd::Systemd;
use self::systemd::activation::Inherited;
use crate::{Config, Exit};

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
        f.debug_struct("Daemon")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
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
        self.own.push(Own {
            name: name.into(),
            run: Arc::new(run),
        });
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

    /// Runs until it is stopped, or cannot go on. Why it cannot is logged.
    pub async fn run(self) -> Exit {
        let lifecycle = self.lifecycle.clone();
        let tree = match self.bind() {
            Ok(tree) => tree,
            Err(error) => {
                tracing::error!("{error}");
                return Exit::Failed;
            }
        };
        tokio::select! {
            exit = tree.run() => exit,
            () = lifecycle.abandoned().cancelled() => Exit::Cut,
        }
    }

    /// Binds every socket and installs the signal handlers; starts nothing.
    fn bind(self) -> Result<Tree, StartError> {
        let Self {
            config,
            router,
            own,
            lifecycle,
            stop_when,
        } = self;
        raise_descriptor_limit();
        let mut inherited = Inherited::from_environment();
        let metrics = Metrics::new();
        let access = AccessLog::start(&config.log)?;
        let registry = Registry::new(metrics.durations(), access);
        let supervisor = Supervisor::new(config.supervision, lifecycle.clone());
        let observer = Observer {
            lifecycle: lifecycle.clone(),
            supervisor: supervisor.clone(),
            registry: Arc::clone(&registry),
            started: Instant::now(),
        };
        let tunnels = TaskTracker::new();
        let router = router.unwrap_or_else(|| Router::new().route("/", axum::routing::any(async || "hello")));
        let http = Http::bind(
            &config.http,
            config.shutdown.linger,
            router,
            Arc::clone(&registry),
            &mut inherited,
        )?;
        let admin = Admin::bind(&config.admin, observer.clone(), metrics, &mut inherited)?;
        let signals = Signals::bind((), lifecycle.clone())?;
        let systemd = Systemd::bind((), observer);
        for (child, addresses) in [(http::NAME, http.addresses()), (admin::NAME, admin.addresses())] {
            for address in addresses {
                tracing::info!(child, %address, "listening");
            }
        }
        Ok(Tree {
            shutdown: config.shutdown,
            lifecycle,
            supervisor,
            registry,
            signals,
            http,
            admin,
            systemd,
            own,
            stop_when,
        })
    }
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
    stop_when: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Tree {
    async fn run(self) -> Exit {
        let (tell, told) = tokio::sync::oneshot::channel();
        let toplevel = Toplevel::new(async move |root: &mut SubsystemHandle| {
            // Nobody waits for the exit if the tree was abandoned.
            let _ = tell.send(self.grow(root).await);
        });
        // The stop keeps its own deadlines; the tree's only limit must lie beyond them all.
        if let Err(error) = toplevel.handle_shutdown_requests(Duration::MAX).await {
            tracing::error!(%error, "the tree failed");
            return Exit::Failed;
        }
        told.await.unwrap_or(Exit::Failed)
    }

    /// Starts the children, waits for a reason to stop, and stops them: those with work first, admin last but for the
    /// two that must see it end.
    async fn grow(self, root: &SubsystemHandle) -> Exit {
        let Self {
            shutdown,
            lifecycle,
            supervisor,
            registry,
            ..
        } = self;
        let start = |name: &str, run: Box<dyn Fn(Child) -> Running + Send + Sync>| Stoppable {
            name: name.into(),
            subsystem: supervisor.start(root, name, run),
        };
        let (signals, http, admin, systemd) = (self.signals, self.http, self.admin, self.systemd);
        let signals = start(
            signals::NAME,
            Box::new(move |child| Box::pin(signals.clone().run(child))),
        );
        let http = start(
            http::NAME,
            Box::new(move |child| Box::pin(http.clone().run(child))),
        );
        let admin = start(
            admin::NAME,
            Box::new(move |child| Box::pin(admin.clone().run(child))),
        );
        let systemd = start(
            systemd::NAME,
            Box::new(move |child| Box::pin(systemd.clone().run(child))),
        );
        let own: Vec<_> = self
            .own
            .into_iter()
            .map(|own| start(&own.name, Box::new(move |child| (own.run)(child))))
            .collect();

        lifecycle.enter(Phase::Serving);
        tracing::info!("serving");
        tokio::select! {
            () = lifecycle.stopping().cancelled() => {}
            () = self.stop_when => lifecycle.stop(Cause::Caller),
        }
        let stop = Stop {
            config: &shutdown,
            lifecycle: &lifecycle,
            registry: &registry,
            http: &http,
            own: &own,
        };
        let report = stop.run().await;

        lifecycle.enter(Phase::Stopped);
        for child in [&admin, &systemd, &signals] {
            child.stop_within(LAST_CHILDREN).await;
        }
        registry.access().flush().await;
        match (lifecycle.cause(), report.cut) {
            (Some(Cause::ChildFailed(_)), _) => Exit::Failed,
            (_, 0) => Exit::Clean,
            (_, _) => Exit::Cut,
        }
    }
}

/// A connection is a descriptor: take as many as the service manager allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files above {:?}", limit.current);
    }
}
