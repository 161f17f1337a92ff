//! Where a snapshot of the daemon is taken: everything that it looks at, and the line that systemd shows.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::history;
use super::phase::{Lifecycle, Phase};
use super::shutdown;
use super::status::{
    CertificateStatus, ChildStatus, Connections, Drain, Handshakes, InFlightRequest, MainProcess, Named,
    Predecessor, Rates, Report, Status, Tls, Totals,
};
use super::supervisor::Supervisor;
use crate::main_process;
use crate::printable::{LONGEST, counted, excerpt_of, grouped};
use crate::server::Registry;
use crate::server::handshakes::Terms;
use crate::server::threads::IoThreads;
use crate::systemd::process;

/// The most of a method that is shown in one line, in bytes.
const METHOD: usize = 20;
/// The same of a path.
const PATH: usize = 100;

/// Everything that a snapshot is taken from.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    pub(super) lifecycle: Lifecycle,
    pub(super) supervisor: Supervisor,
    pub(super) registry: Arc<Registry>,
    /// The threads that the registry's connections live on.
    pub(super) io: IoThreads,
    pub(super) started: Instant,
    /// The reason, on one line, why the last reload failed; none if it did not.
    pub(super) reload_failure: Arc<Mutex<Option<String>>>,
    /// The main process; none for a daemon without one.
    pub(super) main_process: Option<u32>,
    /// What the main process told last, and when.
    pub(super) news: Arc<Mutex<Option<(main_process::News, Instant)>>>,
    pub(super) history: history::History,
    /// What became of the work in flight; set once, by the root, at the end of a stop.
    pub(super) report: Arc<OnceLock<shutdown::Report>>,
    /// The reason, on one line, why the last good config is served and not the one that is there now.
    pub(super) stale_config: Option<String>,
}

impl Observer {
    /// Notes that a reload failed: the program or config on disk is not the one that runs, which every snapshot shows
    /// from now on.
    pub(super) fn reload_failed(&self, reason: String) {
        *self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Notes what the main process has told.
    pub(super) fn told(&self, news: main_process::News) {
        *self.news() = Some((news, Instant::now()));
    }

    /// Notes what became of the work in flight.
    pub(super) fn stopped(&self, report: shutdown::Report) {
        // There is one stop.
        let _ = self.report.set(report);
    }

    fn news(&self) -> MutexGuard<'_, Option<(main_process::News, Instant)>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The predecessors, as the main process told last. Time has passed since.
    pub(super) fn predecessors(&self) -> Vec<Predecessor> {
        let news = self.news();
        let Some((news, told)) = &*news else { return Vec::new() };
        let passed = told.elapsed().as_secs_f64();
        let predecessor = |one: &main_process::Predecessor| Predecessor {
            pid: one.pid,
            since: one.since + passed,
            in_flight: one.in_flight,
            left: one.left.map(|left| (left - passed).max(0.0)),
            status: one.status.clone(),
        };
        news.predecessors.iter().map(predecessor).collect()
    }

    /// The number of workers that the main process has started in the place of others that failed; none without one.
    pub(super) fn worker_restarts(&self) -> Option<u64> {
        self.news().as_ref().map(|(news, _)| news.restarts)
    }

    /// The time since the start of the main process, if it is there.
    pub(super) fn main_process_age(&self) -> Option<Duration> {
        self.main_process.and_then(process::age)
    }

    fn reload_failure(&self) -> Option<String> {
        self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rates of the last seconds.
    fn rates(&self) -> Rates {
        self.history.rates(&self.registry)
    }

    /// How far the drain is, for the main process.
    pub(super) fn drain_progress(&self) -> main_process::DrainProgress {
        let left = match self.lifecycle.phase() {
            Phase::Draining { until, .. } => until.map(|at| left(at).as_secs_f64()),
            Phase::Starting | Phase::Serving | Phase::Stopped => None,
        };
        main_process::DrainProgress { in_flight: Some(self.registry.in_flight() as u64), left }
    }

    /// A snapshot of this moment.
    pub(super) fn status(&self) -> Status {
        let requests = self.registry.requests();
        self.status_with(requests.iter().map(|request| InFlightRequest::of(request, LONGEST)).collect())
    }

    /// The same with the oldest requests alone, at most so many, and the number of all. Of their methods and paths there
    /// are the first `longest` bytes.
    pub(super) fn brief_status(&self, most: usize, longest: usize) -> (Status, usize) {
        let (oldest, number) = self.registry.oldest_requests(most);
        let oldest = oldest.iter().map(|request| InFlightRequest::of(request, longest));
        (self.status_with(oldest.collect()), number)
    }

    fn status_with(&self, requests: Vec<InFlightRequest>) -> Status {
        let phase = self.lifecycle.phase();
        let totals = self.registry.totals();
        Status {
            phase: phase.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs_f64(),
            drain: match phase {
                Phase::Draining { since, until } => Some(Drain {
                    cause: self.lifecycle.cause().map(ToString::to_string).unwrap_or_default(),
                    lasted: since.elapsed().as_secs_f64(),
                    left: until.map(|at| left(at).as_secs_f64()),
                }),
                Phase::Starting | Phase::Serving | Phase::Stopped => None,
            },
            report: self.report.get().map(|&shutdown::Report { finished, cut }| Report { finished, cut }),
            main_process: self.main_process.map(|pid| MainProcess {
                pid,
                uptime: self.main_process_age().map(|age| age.as_secs_f64()),
                restarts: self.worker_restarts().unwrap_or_default(),
            }),
            children: self
                .supervisor
                .children()
                .iter()
                .map(|child| ChildStatus {
                    name: child.name().to_owned(),
                    running: child.is_running(),
                    state: self.supervisor.state_of(child).to_owned(),
                    heartbeat: self.supervisor.heartbeat_of(child).map(|age| age.as_secs_f64()),
                    restarts: child.restarts(),
                    doing: child.last_doing().to_owned(),
                })
                .collect(),
            connections: self.connections(),
            rates: self.rates(),
            history: self.history.points(),
            totals: Totals {
                connections: totals.accepted.load(Relaxed),
                requests: totals.requests(),
                client_gone: totals.client_gone(),
                broken_off: totals.broken_off(),
                cut: totals.cut(),
                handed_over: totals.handed_over.counts(),
                taken_over: totals.taken_over.counts(),
                handed_over_tls: totals.handed_over.over_tls(),
                taken_over_tls: totals.taken_over.over_tls(),
            },
            tls: self.tls(),
            requests,
            predecessors: self.predecessors(),
            stale_config: self.stale_config.clone(),
            reload_failure: self.reload_failure(),
        }
    }

    /// What is known of TLS; none without it.
    fn tls(&self) -> Option<Tls> {
        let handshakes = &self.registry.totals().handshakes;
        let of_terms = |(terms, number): (Terms, u64)| Handshakes {
            version: terms.version.to_owned(),
            suite: terms.suite.to_owned(),
            alpn: terms.alpn.to_owned(),
            resumed: terms.resumed,
            number,
        };
        let named = |(name, number): (&str, u64)| Named { name: name.to_owned(), number };
        let failures = handshakes.failures().map(|(reason, number)| (reason.name(), number));
        handshakes.are_possible().then(|| Tls {
            handshakes: handshakes.by_terms().into_iter().map(of_terms).collect(),
            names: handshakes.by_name().iter().map(|(name, number)| named((name, *number))).collect(),
            failures: failures.filter(|(_, number)| *number > 0).map(named).collect(),
            certificates: handshakes.certificates().map(CertificateStatus::of).collect(),
        })
    }

    /// Counts the open connections.
    pub(super) fn connections(&self) -> Connections {
        let mut counts = Connections::default();
        for connection in self.registry.connections() {
            *counts.count(connection.state()) += 1;
        }
        counts
    }

    /// The snapshot in one line, for `systemctl status`.
    pub(super) fn line(&self) -> String {
        let in_flight = self.registry.in_flight();
        match self.lifecycle.phase() {
            Phase::Draining { until, .. } => {
                let requests = self.registry.requests();
                let mut line = format!("draining: {}", counted(in_flight, "request"));
                if let Some(oldest) = requests.first() {
                    // More would push the rest off the line.
                    let method = excerpt_of(METHOD, oldest.method.as_str());
                    let path = excerpt_of(PATH, oldest.uri.path());
                    _ = write!(line, ", oldest {method} {path} {} s", oldest.age.as_secs());
                }
                if let Some(at) = until {
                    _ = write!(line, ", {} s left", left(at).as_secs());
                }
                line
            }
            Phase::Serving => {
                let connections = self.registry.len();
                let mut line = format!(
                    "serving: {}, {} in flight, {}",
                    counted(connections, "connection"),
                    counted(in_flight, "request"),
                    rounded(self.rates().requests),
                );
                if let Some(reason) = &self.stale_config {
                    _ = write!(line, "; serving the last good config: {reason}");
                }
                match &*self.predecessors() {
                    [] => {}
                    [one] => _ = write!(line, "; 1 predecessor: {}", one.status),
                    several => _ = write!(line, "; {} predecessors", several.len()),
                }
                if let Some(reason) = self.reload_failure() {
                    _ = write!(line, "; the last reload failed: {reason}");
                }
                line
            }
            phase @ (Phase::Starting | Phase::Stopped) => phase.name().to_owned(),
        }
    }
}

/// A rate as STATUS has it: in two figures, so that it is not another one each time without a reason.
fn rounded(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is neither negative nor that large"
    )]
    let whole = rate.round() as u64;
    let step = 10_u64.pow(whole.checked_ilog10().unwrap_or_default().saturating_sub(1));
    match whole {
        0 if rate > 0.0 => "under 1 request/s".to_owned(),
        1 => "1 request/s".to_owned(),
        _ => format!("{} requests/s", grouped((whole + step / 2) / step * step)),
    }
}

fn left(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    //! The line changes with a reason.

    use super::*;

    #[test]
    fn a_rate_is_told_in_two_figures() {
        let rates = [0.0, 0.4, 1.2, 9.6, 14.4, 1203.0, 1249.0, 1251.0, 98_765.0];
        let told = rates.map(|rate| rounded(rate).replace(" requests/s", ""));
        assert_eq!(
            told,
            ["0", "under 1 request/s", "1 request/s", "10", "14", "1,200", "1,200", "1,300", "99,000"]
        );
    }
}
