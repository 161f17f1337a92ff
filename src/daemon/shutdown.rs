//! The stop, from the first request for it to the report.
//!
//! The order: readiness fails; `delay`; the http child stops accepting and its requests in flight finish; the
//! caller's own children, which those requests may need, finish; at `deadline` or on demand what is left is cut by
//! name. The daemon's root then stops the admin child and the rest. No step waits where there is nothing to wait for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_graceful_shutdown::NestedSubsystem;

use super::http::Http;
use super::phase::{Cause, Lifecycle, Phase};
use super::supervisor::Supervisor;
use crate::event;
use crate::printable::{counted, excerpt};
use crate::rules::Check;
use crate::server::{Registry, Totals};

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The time to serve on after readiness fails, for a load balancer to look away; none by default.
    pub delay: Duration,
    /// The time in which an idle connection that cannot be carried may ask once more; 1 s by default.
    pub linger: Duration,
    /// The longest that requests in flight may take once `delay` has passed; 30 s by default, `None` is "never".
    pub deadline: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            linger: Duration::from_secs(1),
            deadline: Some(Duration::from_secs(30)),
        }
    }
}

impl Config {
    pub(super) fn check(&self, check: &mut Check) {
        check.delay("delay", self.delay);
        check.delay("linger", self.linger);
        if let Some(deadline) = self.deadline {
            check.delay("deadline", deadline);
        }
    }
}

/// The longest that connections may take to be gone once they are cut.
const AFTER_CUT: Duration = Duration::from_secs(1);

/// A child to be stopped.
pub(super) struct Stoppable {
    pub(super) name: Arc<str>,
    pub(super) subsystem: NestedSubsystem,
}

impl Stoppable {
    /// Tells the child to stop, and returns when it has.
    pub(super) async fn stop(&self) {
        self.subsystem.initiate_shutdown();
        self.subsystem.finished().await;
    }

    /// Tells the child to stop, and returns when it has; or when it is stuck, so that it never will.
    pub(super) async fn stop_or_leave(&self, supervisor: &Supervisor) {
        tokio::select! {
            () = self.stop() => {}
            () = supervisor.until_stuck(&self.name) => {
                tracing::warn!(
                    message_id = event::CHILD_LATE,
                    child = &*self.name,
                    "{} is stuck: stopping without it",
                    self.name
                );
                self.subsystem.abort();
            }
        }
    }

    /// Tells the child to stop, and ends it by force if that takes longer than `limit`.
    pub(super) async fn stop_within(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.stop()).await.is_err() {
            tracing::warn!(
                message_id = event::CHILD_LATE,
                child = &*self.name,
                "{} did not stop within {limit:?}: aborting it",
                self.name
            );
            self.subsystem.abort();
        }
    }
}

/// Everything that a stop needs to reach.
pub(super) struct Stop<'a> {
    pub(super) config: &'a Config,
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) registry: &'a Registry,
    pub(super) supervisor: &'a Supervisor,
    pub(super) http: &'a Stoppable,
    /// The http child's connections, which are there even if the child is not.
    pub(super) connections: &'a Http,
    pub(super) user_children: &'a [Stoppable],
    /// The longest that this may take where another worker serves, or will.
    pub(super) beside: Option<Duration>,
}

/// The outcome for the work in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// Requests that were finished.
    pub(super) finished: u64,
    /// Requests and children that were cut.
    pub(super) cut: u64,
}

impl Stop<'_> {
    /// Stops the http child and the caller's own, after `first`. Returns when they are gone.
    pub(super) async fn run(self, first: impl Future<Output = ()>) -> Report {
        let Self { config, lifecycle, registry, supervisor, http, connections, user_children, beside } = self;
        let asked = Instant::now();
        let ended_before = ended(registry.totals());
        let in_flight_before = registry.in_flight();
        let idle_before = registry.idle();
        // There is no delay where another worker serves: load balancers need not look away.
        let hands_over = lifecycle.cause().is_some_and(Cause::is_handover);
        let delay = if hands_over { Duration::ZERO } else { config.delay };
        let deadline = if hands_over { beside } else { config.deadline };
        let until = deadline.and_then(|deadline| asked.checked_add(delay)?.checked_add(deadline));
        lifecycle.enter(Phase::Draining { since: asked, until });
        // It may have been hurried before it began.
        let until = lifecycle.until();
        tracing::info!(
            message_id = event::DRAINING,
            phase = lifecycle.phase().name(),
            cause = lifecycle.cause().map(tracing::field::display),
            in_flight = in_flight_before,
            idle = idle_before,
            deadline_usec = until.map(|at| micros(at.duration_since(asked))),
            "draining: {} in flight, {}, {}",
            counted(in_flight_before, "request"),
            counted(idle_before, "idle connection"),
            until.map_or("no deadline".into(), |at| format!("{} s left", at.duration_since(asked).as_secs())),
        );

        if !delay.is_zero() {
            tokio::select! {
                () = sleep(delay) => {}
                () = lifecycle.cutting().cancelled() => {}
            }
        }
        let delayed = asked.elapsed();

        let work = async {
            first.await;
            http.stop_or_leave(supervisor).await;
            // Connections that the child has left, if it failed or is stuck.
            connections.finish().await;
            let drained = asked.elapsed();
            // All are told before the first is waited for.
            for child in user_children {
                child.subsystem.initiate_shutdown();
            }
            for child in user_children {
                child.stop().await;
            }
            drained
        };
        let mut named = Named::default();
        let drained = tokio::select! {
            drained = work => drained,
            () = lifecycle.overdue() => {
                named = cut_all("the deadline", registry, http, user_children).await;
                asked.elapsed()
            }
            by = lifecycle.cut_by() => {
                named = cut_all(by, registry, http, user_children).await;
                asked.elapsed()
            }
        };

        let took = asked.elapsed();
        let Totals { handed_over, not_carried, .. } = registry.totals();
        let ended = ended(registry.totals());
        let [finished, ended_by_cut] = [0, 1].map(|n| ended[n].saturating_sub(ended_before[n]));
        // Of those that were named some may not have ended yet, and one may have begun after that.
        let cut = named.requests.max(ended_by_cut) + named.children;
        let cause = lifecycle.cause().map(ToString::to_string).unwrap_or_default();
        let [connections, tunnels] = handed_over.counts();
        if connections + tunnels > 0 {
            tracing::info!(
                message_id = event::HANDED_OVER,
                connections,
                tunnels,
                over_tls = handed_over.over_tls(),
                "{handed_over} go on in the next worker"
            );
        }
        // Accesses have a thread of their own, and the report comes after them, but for what a slow disk has not taken.
        let access = registry.totals().access().clone();
        let _ = tokio::task::spawn_blocking(move || access.flush()).await;
        tracing::info!(
            message_id = event::SHUTDOWN_REPORT,
            cause,
            finished,
            cut,
            handed_over_connections = connections,
            handed_over_tunnels = tunnels,
            handed_over_tls = handed_over.over_tls(),
            not_carried = not_carried.total(),
            delay_usec = micros(delayed),
            drain_usec = micros(drained.saturating_sub(delayed)),
            children_usec = micros(took.saturating_sub(drained)),
            duration_usec = micros(took),
            "stopped by {cause} in {} ms: {} finished, {cut} cut; handed over {handed_over}{not_carried}",
            took.as_millis(),
            counted(finished, "request"),
        );
        Report { finished, cut }
    }
}

/// Requests that have ended by themselves, and those that were cut.
fn ended(totals: &Totals) -> [u64; 2] {
    let cut = totals.cut();
    [totals.requests().saturating_sub(cut), cut]
}

/// What is cut, with a WARN event for each.
#[derive(Debug, Default)]
struct Named {
    requests: u64,
    /// Children of the caller's.
    children: u64,
}

/// Ends all that is left, after it has named it.
async fn cut_all(by: &str, registry: &Registry, http: &Stoppable, user_children: &[Stoppable]) -> Named {
    let requests = registry.requests();
    for r in &requests {
        let (method, path) = (excerpt(r.method.as_str()), excerpt(r.uri.path()));
        tracing::warn!(
            message_id = event::REQUEST_CUT,
            cause = by,
            request_id = r.id,
            method = &*method,
            path = &*path,
            route = r.route,
            peer = %r.peer,
            duration_usec = micros(r.age),
            bytes_sent = r.sent,
            waiting_for = r.waiting_for(),
            "cut by {by}: {} {} from {} after {:.1} s, {} bytes sent, waiting for {}",
            method,
            path,
            r.peer,
            r.age.as_secs_f64(),
            r.sent,
            r.waiting_for(),
        );
    }
    registry.cut();
    // The requests end with their connections, which may outlive the child: they are to be in the metrics and the report.
    let emptied = tokio::time::timeout(AFTER_CUT, registry.emptied());
    let ((), _) = tokio::join!(http.stop_within(AFTER_CUT), emptied);

    let late: Vec<_> = user_children.iter().filter(|child| !child.subsystem.is_finished()).collect();
    for child in &late {
        child.subsystem.initiate_shutdown();
    }
    for child in &late {
        tracing::warn!(
            message_id = event::CHILD_CUT,
            cause = by,
            child = &*child.name,
            "cut by {by}: the child {}",
            child.name
        );
        child.subsystem.abort();
    }
    Named { requests: requests.len() as u64, children: late.len() as u64 }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
