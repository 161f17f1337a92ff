//! The layer between the tree and a child: it restarts one that fails, and hears its heart beat.
//!
//! A child that returns an error or panics is started again after a wait that doubles each time, with jitter so that
//! children that failed together do not come back together. More than `max_restarts` within `window` are the tree's
//! failure: it stops gracefully, exits 1, and systemd takes over.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_graceful_shutdown::{NestedSubsystem, SubsystemBuilder, SubsystemHandle};

use super::child::{BoxError, Child, Vitals};
use super::phase::{Cause, Lifecycle};

/// `[supervision]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How often a child may be restarted within `window` before the whole tree stops; 5 by default.
    pub max_restarts: u32,
    /// The time in which restarts are counted; 60 s by default.
    pub window: Duration,
    /// How long the first restart waits; each further one twice as long. 100 ms by default.
    pub backoff: Duration,
    /// The longest wait before a restart; 5 s by default.
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// How often a child's heart beats, unless the service manager's watchdog is so impatient that it must beat faster.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Starts children and keeps them running.
#[derive(Clone, Debug)]
pub struct Supervisor {
    config: Config,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    epoch: Instant,
    children: Arc<Mutex<Vec<Arc<Vitals>>>>,
}

impl Supervisor {
    /// `watchdog`: how long the service manager waits between two pings, if it has a watchdog on this process.
    pub(super) fn new(config: Config, lifecycle: Lifecycle, watchdog: Option<Duration>) -> Self {
        let heartbeat = watchdog.map_or(HEARTBEAT, |period| HEARTBEAT.min(period / 8));
        Self { config, lifecycle, heartbeat, epoch: Instant::now(), children: Arc::default() }
    }

    /// How often a heart beats.
    pub(super) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Every child, in the order of their start.
    #[must_use]
    pub fn children(&self) -> Vec<Arc<Vitals>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The running children whose heart has not beaten for longer than `limit`.
    #[must_use]
    pub fn stuck_for(&self, limit: Duration) -> Vec<Arc<Vitals>> {
        let now = self.now();
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let is_stuck = |c: &Arc<Vitals>| {
            let beat = c.beat.load(Relaxed);
            beat != Vitals::NOT_RUNNING && now.saturating_sub(beat) > limit
        };
        self.children().into_iter().filter(is_stuck).collect()
    }

    /// Returns when a child's heart has been still for so long that nothing more is to be expected of it.
    pub(super) async fn until_stuck(&self, name: &str) {
        let is_stuck = || self.stuck_for(self.heartbeat * 5).iter().any(|child| child.name() == name);
        loop {
            if is_stuck() {
                // After the whole process stood still every heart is, for a moment.
                tokio::time::sleep(self.heartbeat / 10).await;
                if is_stuck() {
                    return;
                }
            }
            tokio::time::sleep(self.heartbeat).await;
        }
    }

    /// Returns when a child does nothing: it has ended, waits to be restarted, or is stuck.
    pub(super) async fn until_still(&self, name: &str) {
        let runs = |child: &Arc<Vitals>| child.name() == name && child.is_running();
        tokio::select! {
            () = self.until_stuck(name) => {}
            () = async {
                while self.children().iter().any(runs) {
                    tokio::time::sleep(self.heartbeat).await;
                }
            } => {}
        }
    }

    /// Starts a child below `parent`. It is told to stop on its own, in the order that `shutdown` keeps.
    pub(super) fn start<F, R>(&self, parent: &SubsystemHandle, name: &str, run: F) -> NestedSubsystem
    where
        F: Fn(Child) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let vitals = Arc::new(Vitals {
            name: name.into(),
            restarts: AtomicU32::new(0),
            beat: AtomicU64::new(Vitals::NOT_RUNNING),
            doing: Mutex::new("starting"),
            #[cfg(feature = "faults")]
            faults: super::faults::Faults::default(),
        });
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&vitals));
        let supervisor = self.clone();
        let subsystem = async move |handle: &mut SubsystemHandle| {
            let child = Child { stopping: handle.create_cancellation_token(), vitals };
            supervisor.supervise(&child, run).await
        };
        parent.start(SubsystemBuilder::new(name.to_owned(), subsystem).detached())
    }

    async fn supervise<F, R>(&self, child: &Child, run: F) -> Result<(), BoxError>
    where
        F: Fn(Child) -> R,
        R: Future<Output = Result<(), BoxError>>,
    {
        let name = child.name();
        let mut restarts = VecDeque::new();
        loop {
            let fault = match self.run_once(child, run(child.clone())).await {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            if child.is_stopping() {
                tracing::error!(child = name, "{name} {fault}, while it was stopping");
                return Ok(());
            }
            let now = Instant::now();
            while restarts.front().is_some_and(|&at| now.duration_since(at) > self.config.window) {
                restarts.pop_front();
            }
            if restarts.len() >= self.config.max_restarts as usize {
                tracing::error!(
                    child = name,
                    "{name} {fault}; it was restarted {} times within {:?}: the daemon stops",
                    restarts.len(),
                    self.config.window
                );
                self.lifecycle.stop(Cause::ChildFailed(name.into()));
                return Ok(());
            }
            let wait = self.backoff(restarts.len());
            restarts.push_back(now);
            child.vitals.restarts.fetch_add(1, Relaxed);
            tracing::error!(
                child = name,
                restarts = child.vitals.restarts(),
                "{name} {fault}; restarting it in {} ms",
                wait.as_millis()
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // It may have begun what it can still finish.
                () = child.stopping() => {}
            }
        }
    }

    /// Runs a child until it ends, with its heart beating from within its own task.
    async fn run_once(
        &self,
        child: &Child,
        run: impl Future<Output = Result<(), BoxError>>,
    ) -> Result<(), String> {
        let alive = async {
            tokio::select! {
                result = run => result,
                never = self.beat(&child.vitals) => match never {},
            }
        };
        #[cfg(feature = "faults")]
        let alive = child.vitals.faults.strike(alive);
        // Also one that is aborted runs no more.
        let _running = Running(&child.vitals);
        match AssertUnwindSafe(alive).catch_unwind().await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("failed: {}", chain(&*error))),
            Err(payload) => Err(format!("panicked: {}", message(&*payload))),
        }
    }

    async fn beat(&self, vitals: &Vitals) -> std::convert::Infallible {
        loop {
            vitals.beat.store(self.now(), Relaxed);
            tokio::time::sleep(self.heartbeat).await;
        }
    }

    /// The wait before the restart that follows `earlier` others: doubled each time, of which the last half is chance.
    fn backoff(&self, earlier: usize) -> Duration {
        let doublings = u32::try_from(earlier).unwrap_or(u32::MAX).min(31);
        let whole = self.config.backoff.saturating_mul(1 << doublings).min(self.config.backoff_max);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// Held while a child runs.
struct Running<'a>(&'a Vitals);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.beat.store(Vitals::NOT_RUNNING, Relaxed);
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
