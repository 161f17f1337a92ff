//! The layer between the tree and a child: it restarts one that fails, and keeps its heartbeat.
//!
//! A child has two subsystems, one within the other: the outer is its place in the tree, the inner one is one run of
//! it. A run that returns an error or panics is the outer one's to catch: it starts another after a wait that doubles
//! each time, with jitter so that children that failed together do not come back together. More than `max_restarts`
//! within `window` it does not catch but returns: that is the tree's own failure, which stops gracefully, exits 1, and
//! systemd takes over.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_graceful_shutdown::errors::{SubsystemError, SubsystemJoinError};
use tokio_graceful_shutdown::{ErrorAction, SubsystemBuilder, SubsystemHandle};
use tokio_util::task::AbortOnDropHandle;

use super::child::{BoundChild, BoxError, Child, Kind, Pause, Run, UserChild, Vitals};
use super::phase::{Cause, Lifecycle};
use super::shutdown::Stoppable;
use crate::event;
use crate::rules::Check;

/// `[supervision]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The most restarts of a child within `window`; one more stops the whole tree. 5 by default.
    pub max_restarts: u32,
    /// The time in which restarts are counted; 60 s by default.
    pub window: Duration,
    /// The wait before the first restart; each further one is twice as long. 100 ms by default.
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

impl Config {
    pub(super) fn check(&self, check: &mut Check) {
        check.timeout("window", self.window);
        check.delay("backoff", self.backoff);
        check.delay("backoff_max", self.backoff_max);
        if self.backoff > self.backoff_max {
            let what = format!(
                "`backoff`, {:?}, is longer than `backoff_max`, {:?}",
                self.backoff, self.backoff_max
            );
            let also = check.path("backoff_max");
            check
                .note("backoff", what, "the first wait to be no longer than the longest")
                .also(also, "the longest wait");
        }
    }
}

/// The longest time between two heartbeats of a child; shorter where the service manager's watchdog asks for it.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Starts children and keeps them running.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    config: Config,
    lifecycle: Lifecycle,
    heartbeat: Duration,
    epoch: Instant,
    /// Where the caller's own children run; none where that is the tree's runtime.
    users: Option<Handle>,
    children: Arc<Mutex<Vec<Arc<Vitals>>>>,
}

impl Supervisor {
    /// `watchdog`: the longest that the service manager waits between two pings, if it has a watchdog on this process.
    pub(super) fn new(config: Config, lifecycle: Lifecycle, watchdog: Option<Duration>) -> Self {
        let heartbeat = watchdog.map_or(HEARTBEAT, |period| HEARTBEAT.min(period / 8));
        Self { config, lifecycle, heartbeat, epoch: Instant::now(), users: None, children: Arc::default() }
    }

    /// The same, with the caller's own children on a runtime beside the tree's.
    pub(super) fn with_runtime_of_users(self, users: Option<Handle>) -> Self {
        Self { users, ..self }
    }

    /// The runtime of the caller's own children; none if that is the tree's.
    pub(super) fn runtime_of_users(&self) -> Option<&Handle> {
        self.users.as_ref()
    }

    /// The time between two heartbeats.
    pub(super) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// The time without a heartbeat after which a child must be stuck.
    fn stuck_after(&self) -> Duration {
        self.heartbeat * 5
    }

    /// The time since a child's last heartbeat; none while it does not run.
    pub(super) fn heartbeat_of(&self, child: &Vitals) -> Option<Duration> {
        let beat = Some(child.beat.load(Relaxed)).filter(|beat| *beat != Vitals::NOT_RUNNING)?;
        Some(Duration::from_millis(self.now().saturating_sub(beat)))
    }

    /// A child's state, as the status names it.
    pub(super) fn state_of(&self, child: &Vitals) -> &'static str {
        match (self.heartbeat_of(child), child.pause()) {
            (Some(age), _) if age > self.stuck_after() => "stuck",
            (Some(_), _) if !child.is_ready() => "starting",
            (Some(_), _) => "running",
            (None, Pause::Starting) => "starting",
            (None, Pause::Waiting) => "waiting",
            (None, Pause::Ended) => "ended",
        }
    }

    /// Every child that was started: those of the daemon, and after them the caller's own.
    #[must_use]
    pub(crate) fn children(&self) -> Vec<Arc<Vitals>> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner).clone();
        children.sort_by_key(|child| child.is_users);
        children
    }

    /// The running children that have had no heartbeat for longer than `limit`.
    #[must_use]
    pub(crate) fn stuck_for(&self, limit: Duration) -> Vec<Arc<Vitals>> {
        let now = self.now();
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let is_stuck = |c: &Arc<Vitals>| {
            let beat = c.beat.load(Relaxed);
            beat != Vitals::NOT_RUNNING && now.saturating_sub(beat) > limit
        };
        self.children().into_iter().filter(is_stuck).collect()
    }

    /// Returns when a child has had no heartbeat for so long that it must be stuck.
    pub(super) async fn until_stuck(&self, name: &str) {
        let is_stuck = || self.stuck_for(self.stuck_after()).iter().any(|child| child.name() == name);
        loop {
            if is_stuck() {
                // After the whole process stood still every child looks stuck for a moment.
                tokio::time::sleep(self.heartbeat / 10).await;
                if is_stuck() {
                    return;
                }
            }
            tokio::time::sleep(self.heartbeat).await;
        }
    }

    /// Returns when a child is inactive: it has ended, waits to be restarted, or is stuck.
    pub(super) async fn until_inactive(&self, name: &str) {
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

    /// Returns when every child that has been started is ready.
    pub(super) async fn ready(&self) {
        for child in self.children() {
            // Its sender is part of the child.
            let _ = child.ready.subscribe().wait_for(|ready| *ready).await;
        }
    }

    /// Starts a child in the tree. It is told to stop on its own, in the order that `shutdown` keeps.
    pub(super) fn start(&self, tree: &SubsystemHandle, child: Arc<dyn BoundChild>) -> Stoppable {
        self.start_as(tree, Vitals::new(child.name()), child)
    }

    /// Starts a child of the caller's own.
    pub(super) fn start_user_child(&self, tree: &SubsystemHandle, child: UserChild) -> Stoppable {
        let mut vitals = Vitals::new(child.name());
        vitals.is_users = true;
        vitals.ready.send_replace(child.kind != Kind::HoldsReady);
        self.start_as(tree, vitals, Arc::new(child))
    }

    fn start_as(&self, tree: &SubsystemHandle, vitals: Vitals, child: Arc<dyn BoundChild>) -> Stoppable {
        let vitals = Arc::new(vitals);
        let name = Arc::clone(&vitals.name);
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&vitals));
        let supervisor = self.clone();
        let supervise = async move |place: &mut SubsystemHandle| {
            let ended = supervisor.supervise(place, &vitals, &child).await;
            vitals.pauses(Pause::Ended);
            ended
        };
        let subsystem = tree.start(SubsystemBuilder::new(&*name, supervise).detached());
        Stoppable { name, subsystem }
    }

    /// Runs a child again and again, until it ends, or has failed too often.
    async fn supervise(
        &self,
        place: &SubsystemHandle,
        vitals: &Arc<Vitals>,
        child: &Arc<dyn BoundChild>,
    ) -> Result<(), BoxError> {
        let name = vitals.name();
        let mut restarts = VecDeque::new();
        loop {
            let fault = match self.run_once(place, vitals, child).await {
                Ok(()) if vitals.is_ready() || place.is_shutdown_requested() => return Ok(()),
                Ok(()) => "ended before it was ready".to_owned(),
                Err(fault) => fault,
            };
            if place.is_shutdown_requested() {
                tracing::error!(
                    message_id = event::CHILD_FAILED,
                    child = name,
                    cause = fault,
                    "{name} {fault}, while it was stopping"
                );
                return Ok(());
            }
            let now = Instant::now();
            while restarts.front().is_some_and(|&at| now.duration_since(at) > self.config.window) {
                restarts.pop_front();
            }
            if restarts.len() >= self.config.max_restarts as usize {
                tracing::error!(
                    message_id = event::CHILD_GAVE_UP,
                    child = name,
                    cause = fault,
                    restarts = restarts.len(),
                    "{name} {fault}; it was restarted {} times within {:?}: the daemon stops",
                    restarts.len(),
                    self.config.window
                );
                self.lifecycle.blame(Cause::ChildFailed(name.into()));
                return Err(fault.into());
            }
            let wait = self.backoff(restarts.len());
            restarts.push_back(now);
            vitals.restarts.fetch_add(1, Relaxed);
            tracing::error!(
                message_id = event::CHILD_RESTARTED,
                child = name,
                cause = fault,
                restarts = vitals.restarts(),
                "{name} {fault}; restarting it in {} ms",
                wait.as_millis()
            );
            vitals.pauses(Pause::Waiting);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // During a stop it is restarted at once: it may have work that it can still finish.
                () = place.on_shutdown_requested() => {}
            }
            vitals.pauses(Pause::Starting);
        }
    }

    /// Runs a child until it ends, and returns what became of it if it did not end well.
    async fn run_once(
        &self,
        place: &SubsystemHandle,
        vitals: &Arc<Vitals>,
        child: &Arc<dyn BoundChild>,
    ) -> Result<(), String> {
        let supervisor = self.clone();
        let (own, child) = (Arc::clone(vitals), Arc::clone(child));
        let one_run = async move |handle: &mut SubsystemHandle| {
            let place = Child { stopping: handle.create_cancellation_token(), vitals: Arc::clone(&own) };
            let users = supervisor.users.clone().filter(|_| own.is_users);
            let run = async move { supervisor.keep_alive(&own, child.run(place)).await };
            match users {
                Some(runtime) => run_on(&runtime, run).await,
                None => run.await,
            }
        };
        let one_run = SubsystemBuilder::new("run", one_run)
            .on_failure(ErrorAction::CatchAndLocalShutdown)
            .on_panic(ErrorAction::CatchAndLocalShutdown);
        let Err(SubsystemJoinError::SubsystemsFailed(errors)) = place.start(one_run).join().await else {
            return Ok(());
        };
        // Of one subsystem there is one error.
        Err(match errors.first() {
            Some(SubsystemError::Failed(_, error)) => format!("failed: {}", chain(&**error.get_error())),
            Some(SubsystemError::Panicked(_)) | None => format!("panicked: {}", vitals.last_panic()),
        })
    }

    /// Runs a child, with its heartbeat from within its own task.
    async fn keep_alive(&self, vitals: &Vitals, run: Run) -> Result<(), BoxError> {
        let alive = async {
            tokio::select! {
                result = run => result,
                never = self.beat(vitals) => match never {},
            }
        };
        #[cfg(feature = "faults")]
        let alive = vitals.faults.strike(alive);
        // The drop notes that it does not run, also after an abort.
        let _running = Running(vitals);
        // The tree reports that a child has panicked, but not the panic's message.
        AssertUnwindSafe(alive).catch_unwind().await.unwrap_or_else(|panic| {
            vitals.panicked(message(&*panic));
            resume_unwind(panic)
        })
    }

    async fn beat(&self, vitals: &Vitals) -> std::convert::Infallible {
        loop {
            vitals.beat.store(self.now(), Relaxed);
            tokio::time::sleep(self.heartbeat).await;
        }
    }

    /// The wait before the restart that follows `earlier` others: doubled each time, and the second half of it is
    /// random.
    fn backoff(&self, earlier: usize) -> Duration {
        let doublings = u32::try_from(earlier).unwrap_or(u32::MAX).min(31);
        let whole = self.config.backoff.saturating_mul(1 << doublings).min(self.config.backoff_max);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// Runs a child's future on another runtime, until that ends or this one is dropped.
async fn run_on(
    runtime: &Handle,
    run: impl Future<Output = Result<(), BoxError>> + Send + 'static,
) -> Result<(), BoxError> {
    match AbortOnDropHandle::new(runtime.spawn(run)).await {
        Ok(ended) => ended,
        Err(error) => Err(error.try_into_panic().map_or_else(Into::into, |panic| resume_unwind(panic))),
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

/// The message of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    //! The state of a child, as the status names it.

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_state_of_a_child_has_its_name() {
        let supervisor = Supervisor::new(Config::default(), Lifecycle::new(), None);
        let child = Vitals::new("worker");
        assert_eq!((supervisor.state_of(&child), supervisor.heartbeat_of(&child)), ("starting", None));
        child.beat.store(supervisor.now(), Relaxed);
        child.ready.send_replace(false);
        assert_eq!(supervisor.state_of(&child), "starting");
        child.ready.send_replace(true);
        assert_eq!(supervisor.state_of(&child), "running");
        tokio::time::advance(HEARTBEAT * 6).await;
        assert_eq!(supervisor.state_of(&child), "stuck");
        assert_eq!(supervisor.heartbeat_of(&child), Some(HEARTBEAT * 6));
        child.beat.store(Vitals::NOT_RUNNING, Relaxed);
        for (pause, state) in [(Pause::Waiting, "waiting"), (Pause::Ended, "ended")] {
            child.pauses(pause);
            assert_eq!((supervisor.state_of(&child), supervisor.heartbeat_of(&child)), (state, None));
        }
    }
}
