//! A child of the tree: what it sees of the tree, and what the tree knows of it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::link::Link;
use super::metrics::Metrics;
use super::observer::Observer;
use super::reload::Reloads;
use super::shutdown;
use crate::handover::Handover;
use crate::server::Server;
use crate::systemd::manager::Manager;

/// The reason why a child failed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A child's place in the tree, as the child itself sees it.
#[derive(Clone, Debug)]
pub struct Child {
    pub(super) stopping: CancellationToken,
    pub(super) vitals: Arc<Vitals>,
}

impl Child {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.vitals.name
    }

    /// Returns when the child is to stop: it should then finish what it has begun and return.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Says what the child is doing, for the log and STATUS if it gets stuck there: "waiting for the queue".
    pub fn doing(&self, what: &'static str) {
        *self.vitals.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Says that the child is ready: of one that was added by
    /// [`Daemon::child_with_readiness`](crate::Daemon::child_with_readiness) this is waited for before anything is
    /// served. Once is enough, also for a child that is restarted; to all others it means nothing.
    pub fn ready(&self) {
        self.vitals.ready.send_replace(true);
    }

    /// True if the child is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}

/// The reason why a child does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pause {
    /// It is about to.
    #[default]
    Starting,
    /// It failed, and waits to be started again.
    Waiting,
    /// It has ended.
    Ended,
}

/// The supervisor's record of a child.
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(super) name: Arc<str>,
    /// True for a child of the caller's own.
    pub(super) is_users: bool,
    pub(super) restarts: AtomicU32,
    /// The time of its last heartbeat, in milliseconds of the supervisor's clock; `u64::MAX` while it does not run.
    pub(super) beat: AtomicU64,
    /// Why it does not run, while it does not; written by the supervisor.
    pub(super) pause: Mutex<Pause>,
    pub(super) doing: Mutex<&'static str>,
    /// True once it is ready; written by the child. The root waits for it before anything is served.
    pub(super) ready: watch::Sender<bool>,
    /// The message of its last panic, which the tree does not tell.
    pub(super) panic: Mutex<String>,
    #[cfg(feature = "faults")]
    pub(super) faults: super::faults::Faults,
}

impl Vitals {
    pub(super) const NOT_RUNNING: u64 = u64::MAX;

    /// The record of a child of the daemon's that has not been started yet.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            is_users: false,
            restarts: AtomicU32::new(0),
            beat: AtomicU64::new(Self::NOT_RUNNING),
            pause: Mutex::default(),
            doing: Mutex::new("starting"),
            ready: watch::Sender::new(true),
            panic: Mutex::default(),
            #[cfg(feature = "faults")]
            faults: super::faults::Faults::default(),
        }
    }

    /// The child's name.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number of its restarts.
    #[must_use]
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts.load(Relaxed)
    }

    /// The activity that it reported last, by [`Child::doing`].
    #[must_use]
    pub(crate) fn last_doing(&self) -> &'static str {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it does not run, while it does not.
    pub(super) fn pause(&self) -> Pause {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why it does not run.
    pub(super) fn pauses(&self, why: Pause) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Notes the message of a panic.
    pub(super) fn panicked(&self, message: &str) {
        message.clone_into(&mut self.panic.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The message of its last panic.
    pub(super) fn last_panic(&self) -> String {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True if it is ready, or need not be waited for.
    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// True if it runs: it has neither ended nor waits to be restarted.
    #[must_use]
    pub(crate) fn is_running(&self) -> bool {
        self.beat.load(Relaxed) != Self::NOT_RUNNING
    }
}

/// One run of a child.
pub(super) type Run = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A child that is bound: the daemon's own, or the caller's.
pub(super) trait BoundChild: Send + Sync {
    /// Its name in the tree.
    fn name(&self) -> &str;

    /// Runs it. One that failed is run again, with the listeners and the state that it had.
    fn run(&self, child: Child) -> Run;

    /// Everything that it listens with. A child that listens stops at once in a reload: the successor's answers then.
    fn servers(&self) -> Vec<&Server> {
        Vec::new()
    }

    /// Is cancelled once it accepts no client any more; none for a child that does not listen.
    fn closed(&self) -> Option<&CancellationToken> {
        None
    }

    /// True if it runs before the daemon has taken its predecessor's place.
    fn starts_first(&self) -> bool {
        false
    }

    /// Takes hold, before any child runs, of what belongs to the whole process and cannot be given back.
    fn install(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The parts of the daemon that its children share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) observer: Observer,
    pub(super) metrics: Metrics,
    pub(super) manager: Manager,
    pub(super) handover: Arc<Handover>,
    pub(super) reloads: Reloads,
    pub(super) shutdown: shutdown::Config,
    /// The way to the main process; none for a daemon without one.
    pub(super) link: Option<Link>,
    /// Is cancelled when this daemon may serve.
    pub(super) go: CancellationToken,
    /// Is cancelled when this daemon may run its singletons.
    pub(super) alone: CancellationToken,
    /// Is cancelled when no child accepts clients any more: they are the successor's, if there is one.
    pub(super) retired: CancellationToken,
    /// Is cancelled when the successor, if there is one, has been told what was counted: connections may follow.
    pub(super) told: CancellationToken,
}

impl Context {
    /// Tells the next process what was counted here, and was not told yet, within `limit`.
    pub(super) async fn tell_successor(&self, limit: Duration) {
        self.metrics.tell_successor(&self.observer, &self.handover, limit).await;
    }
}

/// The kinds of children of the caller's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Nothing is served before it says that it is ready.
    HoldsReady,
    /// In the whole service there is one at a time.
    Singleton,
}

/// A child of the caller's own.
pub(super) struct UserChild {
    name: Box<str>,
    pub(super) kind: Kind,
    run: Box<dyn Fn(Child) -> Run + Send + Sync>,
}

impl UserChild {
    pub(super) fn new<F, R, E>(name: &str, kind: Kind, run: F) -> Self
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let run = move |child| -> Run {
            let running = run(child);
            Box::pin(async move { running.await.map_err(Into::into) })
        };
        Self { name: name.into(), kind, run: Box::new(run) }
    }
}

impl BoundChild for UserChild {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, child: Child) -> Run {
        (self.run)(child)
    }
}
