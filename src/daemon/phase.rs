//! The daemon's phase between its start and its end, and the requests that end it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// A phase of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Sockets are bound, children are being started.
    Starting,
    /// Everything is served.
    Serving,
    /// A stop was asked for: requests in flight are being finished, `until` then, or for as long as they take.
    Draining {
        /// The time at which the stop was asked for.
        since: Instant,
        /// The time at which the rest is cut; none without a deadline.
        until: Option<Instant>,
    },
    /// All work is done; the last children are stopping.
    Stopped,
}

impl Phase {
    /// The names of all of them.
    pub(crate) const NAMES: [&str; 4] = ["starting", "serving", "draining", "stopped"];

    /// Its name in `STATUS=`, in `/status` and in the log.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining { .. } => "draining",
            Self::Stopped => "stopped",
        }
    }

    /// True if new clients should come.
    #[must_use]
    pub(crate) fn is_ready(self) -> bool {
        self == Self::Serving
    }
}

/// The cause of a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A signal.
    Signal(&'static str),
    /// The future that the caller gave.
    Caller,
    /// A reload: a successor serves.
    Reload,
    /// A restart: a successor serves, or will.
    Restart,
    /// The main process has ended, whose successor will start another worker.
    MainProcessGone,
    /// A child failed more often than `[supervision]` allows.
    ChildFailed(Arc<str>),
}

impl Cause {
    /// True if another worker serves, or will.
    #[must_use]
    pub(crate) fn is_handover(&self) -> bool {
        matches!(self, Self::Reload | Self::Restart | Self::MainProcessGone)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::Caller => f.write_str("the caller"),
            Self::Reload => f.write_str("a reload"),
            Self::Restart => f.write_str("a restart"),
            Self::MainProcessGone => f.write_str("the end of the main process"),
            Self::ChildFailed(name) => write!(f, "the failure of {name}"),
        }
    }
}

/// The daemon's phase, shared by the whole tree. Anyone may ask for a stop; only the root moves the phase.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    phase: watch::Sender<Phase>,
    cause: OnceLock<Cause>,
    stop: CancellationToken,
    cut: CancellationToken,
    /// The reason for the cut.
    cut_by: OnceLock<&'static str>,
    /// The time at which a drain ends at the latest, also one that begins later.
    end: OnceLock<Instant>,
    abandon: CancellationToken,
}

impl Lifecycle {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            phase: watch::Sender::new(Phase::Starting),
            cause: OnceLock::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            cut_by: OnceLock::new(),
            end: OnceLock::new(),
            abandon: CancellationToken::new(),
        }))
    }

    /// The current phase.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Follows the phase.
    #[must_use]
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.0.phase.send_modify(|current| *current = self.by_the_end(phase));
    }

    /// Brings the end of a drain forward, of one that is under way or is about to begin: the rest is cut at `end` at the
    /// latest.
    pub(super) fn hurry(&self, end: Option<Instant>) {
        if let Some(end) = end {
            // Before the look at the phase: a drain that has not begun by then looks at it.
            let _ = self.0.end.set(end);
            self.0.phase.send_modify(|current| *current = self.by_the_end(*current));
        }
    }

    /// The phase, of a drain with no more time than there is.
    fn by_the_end(&self, phase: Phase) -> Phase {
        match (phase, self.0.end.get()) {
            (Phase::Draining { since, until }, Some(&end)) => {
                Phase::Draining { since, until: Some(until.map_or(end, |until| until.min(end))) }
            }
            (phase, _) => phase,
        }
    }

    /// The end of the drain that is under way; none without one, or without a deadline.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Draining { until, .. } => until,
            Phase::Starting | Phase::Serving | Phase::Stopped => None,
        }
    }

    /// Returns when the drain's end has come; never without one.
    pub(super) async fn overdue(&self) {
        let mut phase = self.watch();
        loop {
            phase.mark_unchanged();
            let over = async {
                match self.until() {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender lives as long as `self`.
                _ = phase.changed() => {}
            }
        }
    }

    /// Returns when everything is served; never, if that never comes to be.
    pub(super) async fn serving(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.watch().wait_for(|phase| *phase == Phase::Serving).await;
    }

    /// Asks for a graceful stop. The first cause counts.
    pub(crate) fn stop(&self, cause: Cause) {
        self.blame(cause);
        self.0.stop.cancel();
    }

    /// Notes the cause of a stop that the tree has begun by itself. The first cause counts.
    pub(super) fn blame(&self, cause: Cause) {
        let _ = self.0.cause.set(cause);
    }

    /// Asks for what is in flight to be cut, and says by what.
    pub(crate) fn cut(&self, by: &'static str) {
        // The first one is it.
        let _ = self.0.cut_by.set(by);
        self.0.cut.cancel();
    }

    /// Asks for the process to end without another look at anything.
    pub(crate) fn abandon(&self) {
        self.0.abandon.cancel();
    }

    /// Is cancelled when a stop is asked for, and by the tree when a child fails for good.
    #[must_use]
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Returns when a cut is asked for, by what.
    pub(crate) async fn cut_by(&self) -> &'static str {
        self.0.cut.cancelled().await;
        self.0.cut_by.get().copied().unwrap_or_default()
    }

    /// Is cancelled when a cut is asked for.
    #[must_use]
    pub(crate) fn cutting(&self) -> &CancellationToken {
        &self.0.cut
    }

    /// Is cancelled when the process is to end at once.
    #[must_use]
    pub(crate) fn abandoned(&self) -> &CancellationToken {
        &self.0.abandon
    }

    /// The cause of the stop, once one was asked for.
    #[must_use]
    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.0.cause.get()
    }
}

#[cfg(test)]
mod tests {
    //! The end of a drain.

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_drain_that_begins_after_it_was_hurried_has_no_more_time_either() {
        let since = Instant::now();
        let [soon, late] = [1, 1000].map(|seconds| since + Duration::from_secs(seconds));
        let lifecycle = Lifecycle::new();
        lifecycle.hurry(None);
        lifecycle.hurry(Some(soon));
        for until in [Some(late), None] {
            lifecycle.enter(Phase::Draining { since, until });
            let phase = lifecycle.phase();
            assert!(matches!(phase, Phase::Draining { until: Some(at), .. } if at == soon), "{phase:?}");
        }
    }
}
