//! One snapshot of the daemon, for `STATUS=`, `/status` and the metrics alike.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::history;
use super::phase::{Lifecycle, Phase};
use super::shutdown;
use super::supervisor::Supervisor;
use crate::main_process;
use crate::printable::{LONGEST, counted, excerpt_of};
pub use crate::printable::{grouped, lasting, printable, rate, size};
use crate::server::threads::IoThreads;
use crate::server::{Registry, RequestView, State};
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

/// The daemon's status, as `/status` shows it. Durations are in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// `starting`, `serving`, `draining` or `stopped`.
    pub phase: String,
    /// The daemon's version.
    pub version: String,
    /// Its process: the worker.
    pub pid: u32,
    /// The time since its start.
    pub uptime: f64,
    /// Its drain, from when a stop was asked for until all work is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What became of the work in flight, once a stop has ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// The process above the worker; absent for a daemon without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_process: Option<MainProcess>,
    /// The tree of the worker.
    pub children: Vec<ChildStatus>,
    /// Its open connections.
    pub connections: Connections,
    /// The rates of the last ten seconds.
    #[serde(default)]
    pub rates: Rates,
    /// The rates of the last minutes.
    #[serde(default)]
    pub history: History,
    /// Everything that is counted since the start.
    pub totals: Totals,
    /// The requests in flight, oldest first.
    pub requests: Vec<InFlightRequest>,
    /// The workers that finish what they had in flight when others took over, oldest first.
    #[serde(default)]
    pub predecessors: Vec<Predecessor>,
    /// The reason why the last good config is served and not the one that is there now; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_config: Option<String>,
    /// The reason why the last reload changed nothing; absent if it did not fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_failure: Option<String>,
}

/// The process that starts workers and keeps what outlives them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MainProcess {
    /// Its number.
    pub pid: u32,
    /// The time since its start; absent if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<f64>,
    /// The number of workers that it has started in the place of others that failed.
    pub restarts: u64,
}

/// What became of the work that was in flight at a stop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were finished.
    pub finished: u64,
    /// Requests and children that were cut.
    pub cut: u64,
}

/// What happened in each second of some time, and how long the requests took that ended in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests ended in a second.
    pub requests: f64,
    /// Bytes of answers sent in a second.
    pub sent: u64,
    /// The time that half of the requests took at most; absent if none ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The same of nine in ten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// The same of 99 in 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// The rates of the last minutes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// The time that each is of.
    pub interval: f64,
    /// The rates, oldest first.
    pub rates: Vec<Rates>,
}

/// A worker that finishes what it had in flight when another took over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its process.
    pub pid: u32,
    /// The time since another took over.
    pub since: f64,
    /// Its requests in flight; absent if it has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// The time until what is left is cut; absent where there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<f64>,
    /// What it said last of its state, for people to read: "draining: 2 requests, ...".
    pub status: String,
}

/// A drain in progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// The cause of the stop.
    pub cause: String,
    /// The time since the stop was asked for.
    pub lasted: f64,
    /// The time until the rest is cut; absent where there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<f64>,
}

/// A child of the tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Its name.
    pub name: String,
    /// True while it has neither ended nor waits to be restarted.
    pub running: bool,
    /// `starting`, `running`, `stuck`, `waiting` (to be restarted) or `ended`.
    #[serde(default)]
    pub state: String,
    /// The time since its last heartbeat; absent while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<f64>,
    /// The number of its restarts.
    pub restarts: u32,
    /// What it said last that it is doing, for people to read.
    #[serde(default)]
    pub doing: String,
}

/// Open connections, by what they are doing.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Idle.
    pub parked: usize,
    /// Reading the head of a request.
    pub reading: usize,
    /// Being answered.
    pub answering: usize,
    /// Being sent the last bytes of an answer.
    pub flushing: usize,
    /// Sending the rest of an unread body, which is discarded.
    pub discarding: usize,
    /// Speaking another protocol.
    pub tunnel: usize,
    /// Answered for the last time.
    pub closing: usize,
}

impl Connections {
    /// The counts by the states' names.
    #[must_use]
    pub fn by_state(&self) -> [(State, usize); 7] {
        State::OPEN.map(|state| (state, *self.clone().count(state)))
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.by_state().iter().map(|(_, n)| n).sum()
    }

    fn count(&mut self, state: State) -> &mut usize {
        match state {
            State::Parked => &mut self.parked,
            State::Reading => &mut self.reading,
            State::Answering => &mut self.answering,
            State::Flushing => &mut self.flushing,
            State::Discarding => &mut self.discarding,
            State::Tunnel => &mut self.tunnel,
            // One that was closed while it was looked at was closing a moment ago.
            State::Closing | State::Closed => &mut self.closing,
        }
    }
}

/// Everything that is counted since the start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Totals {
    /// Connections accepted.
    pub connections: u64,
    /// Requests ended, in whatever way.
    pub requests: u64,
    /// Requests whose client went away.
    pub client_gone: u64,
    /// Requests whose handler or upstream broke off its answer.
    #[serde(default)]
    pub broken_off: u64,
    /// Requests the stop cut.
    pub cut: u64,
    /// Connections and tunnels given to the successor.
    pub handed_over: [u64; 2],
    /// Connections and tunnels taken from a predecessor.
    pub taken_over: [u64; 2],
}

/// A request in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InFlightRequest {
    /// Its id, as it stands in `X-Request-Id`.
    #[serde(default)]
    pub id: String,
    /// Its method: the first 1,024 bytes.
    pub method: String,
    /// Its path: the first 1,024 bytes, with control characters as escapes.
    pub path: String,
    /// The route that answers it: its pattern; `router`, or `none`.
    #[serde(default)]
    pub route: String,
    /// The client.
    pub peer: String,
    /// The time since its head was read.
    pub age: f64,
    /// Bytes of the answer written.
    pub sent: u64,
    /// The step that it waits for, for people to read.
    pub waiting_for: String,
}

impl InFlightRequest {
    /// It, with the first `longest` bytes of its method and of its path.
    fn of(request: &RequestView, longest: usize) -> Self {
        Self {
            id: request.id.clone(),
            method: excerpt_of(longest, request.method.as_str()).into_owned(),
            path: excerpt_of(longest, request.uri.path()).into_owned(),
            route: printable(&request.route).into_owned(),
            peer: request.peer.to_string(),
            age: request.age.as_secs_f64(),
            sent: request.sent,
            waiting_for: request.waiting_for(),
        }
    }
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
            },
            requests,
            predecessors: self.predecessors(),
            stale_config: self.stale_config.clone(),
            reload_failure: self.reload_failure(),
        }
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
impl Status {
    /// One that has something of everything.
    pub(crate) fn example() -> Self {
        let child = |name: &str, state: &str, restarts, doing: &str| ChildStatus {
            name: name.to_owned(),
            running: matches!(state, "running" | "stuck"),
            state: state.to_owned(),
            heartbeat: matches!(state, "running" | "stuck").then_some(if state == "stuck" {
                42.0
            } else {
                0.3
            }),
            restarts,
            doing: doing.to_owned(),
        };
        let rates =
            Rates { requests: 1203.4, sent: 5_000_000, p50: Some(0.0042), p90: Some(0.05), p99: Some(0.31) };
        Self {
            phase: "draining".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 830,
            uptime: 7500.0,
            drain: Some(Drain { cause: "SIGTERM".to_owned(), lasted: 12.0, left: Some(18.0) }),
            report: Some(Report { finished: 17, cut: 2 }),
            main_process: Some(MainProcess { pid: 800, uptime: Some(273_600.0), restarts: 1 }),
            children: vec![
                child("signals", "running", 0, "waiting for a signal"),
                child("http", "running", 0, "draining connections"),
                child("admin", "stuck", 0, "accepting connections"),
                child("worker", "waiting", 3, "waiting for the queue"),
            ],
            connections: Connections { parked: 298, answering: 12, tunnel: 2, ..Connections::default() },
            totals: Totals {
                connections: 4711,
                requests: 1_234_567,
                client_gone: 5,
                broken_off: 1,
                cut: 0,
                handed_over: [298, 2],
                taken_over: [30, 1],
            },
            rates,
            history: History { interval: 2.0, rates: vec![rates; 10] },
            requests: vec![InFlightRequest {
                id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
                method: "GET".to_owned(),
                path: "/app/export".to_owned(),
                route: "/app/*".to_owned(),
                peer: "192.0.2.7".to_owned(),
                age: 12.3,
                sent: 1 << 20,
                waiting_for: "the upstream".to_owned(),
            }],
            predecessors: vec![Predecessor {
                pid: 815,
                since: 40.0,
                in_flight: Some(2),
                left: Some(17.5),
                status: "draining: 2 requests, 18 s left".to_owned(),
            }],
            stale_config: Some("unknown key `listne`".to_owned()),
            reload_failure: Some("the new process exited with code 78".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    //! What is documented is what there is, and a line of STATUS changes only with a reason.

    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The paths of all keys: `drain.left`, `children[].name`.
    fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    keys(value, &path, found);
                }
            }
            Value::Array(values) if values.iter().any(Value::is_object) => {
                for value in values {
                    keys(value, &format!("{path}[]"), found);
                }
            }
            _ => _ = found.insert(path.to_owned()),
        }
    }

    #[test]
    fn every_key_of_the_json_is_documented_and_no_other() {
        let mut found = BTreeSet::new();
        keys(&serde_json::to_value(Status::example()).expect("it is JSON"), "", &mut found);
        let (_, table) =
            include_str!("../../docs/status.md").split_once("\n## The JSON\n").expect("it is there");
        let documented: BTreeSet<_> = table
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert!(found.len() > 40, "{found:?}");
        assert_eq!(found, documented);
    }

    #[test]
    fn the_json_of_an_older_version_is_understood() {
        let mut json = serde_json::to_value(Status::example()).expect("it is JSON");
        let fields = json.as_object_mut().expect("an object");
        for newer in ["report", "main_process", "rates", "history", "predecessors", "reload_failure"] {
            fields.remove(newer);
        }
        for child in fields["children"].as_array_mut().expect("a list") {
            for newer in ["state", "heartbeat", "doing"] {
                child.as_object_mut().expect("an object").remove(newer);
            }
        }
        let status: Status = serde_json::from_value(json).expect("it is a status");
        assert!(status.to_string().contains("running, 0 restarts"), "{status}");
    }

    #[test]
    fn a_rate_is_told_in_two_figures() {
        let rates = [0.0, 0.4, 1.2, 9.6, 14.4, 1203.0, 1249.0, 1251.0, 98_765.0];
        let told = rates.map(|rate| rounded(rate).replace(" requests/s", ""));
        assert_eq!(
            told,
            ["0", "under 1 request/s", "1 request/s", "10", "14", "1,200", "1,200", "1,300", "99,000"]
        );
    }

    #[test]
    fn the_text_shows_the_tree_and_the_drain() {
        let text = Status::example().to_string();
        for shown in [
            "main process 800",
            "├── worker 830",
            "│   ├── signals",
            "└── predecessor 815",
            "2 requests in flight, 18 s left",
            "[################------------------------]",
            "stuck, heartbeat 42 s ago",
            "waiting to be restarted, 3 restarts",
            "1,203 requests/s, 4.8 MiB/s; half within 4.2 ms",
            "GET /app/export from 192.0.2.7",
            "serving the last good config: unknown key",
        ] {
            assert!(text.contains(shown), "{shown} in:\n{text}");
        }
    }
}
