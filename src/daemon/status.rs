//! One snapshot of the daemon, for `STATUS=`, `/status` and the metrics alike.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::phase::{Lifecycle, Phase};
use super::supervisor::Supervisor;
use crate::main_process;
use crate::printable::{counted, excerpt, excerpt_of, printable};
use crate::server::threads::IoThreads;
use crate::server::{Registry, RequestView, State};

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
    /// The workers that finish what they had in flight when others took over.
    pub(super) predecessors: Arc<Mutex<Vec<main_process::Predecessor>>>,
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
    /// Its process.
    pub pid: u32,
    /// The time since its start.
    pub uptime: f64,
    /// Its drain, once a stop was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// The tree.
    pub children: Vec<ChildStatus>,
    /// Its open connections.
    pub connections: Connections,
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
}

/// A worker that finishes what it had in flight when another took over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its process.
    pub pid: u32,
    /// The time since another took over.
    pub since: f64,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<f64>,
}

/// A child of the tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Its name.
    pub name: String,
    /// True while it has neither ended nor waits to be restarted.
    pub running: bool,
    /// The number of its restarts.
    pub restarts: u32,
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

impl From<&RequestView> for InFlightRequest {
    fn from(request: &RequestView) -> Self {
        Self {
            id: request.id.clone(),
            method: excerpt(request.method.as_str()).into_owned(),
            path: excerpt(request.uri.path()).into_owned(),
            route: printable(&request.route).into_owned(),
            peer: request.peer.to_string(),
            age: request.age.as_secs_f64(),
            sent: request.sent,
            waiting_for: request.waiting_for(),
        }
    }
}

impl From<&main_process::Predecessor> for Predecessor {
    fn from(told: &main_process::Predecessor) -> Self {
        Self { pid: told.pid, since: told.since, status: told.status.clone() }
    }
}

/// As `steadfast status` shows it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, version, pid, uptime, drain, children, connections, totals, requests, .. } = self;
        let Self { predecessors, stale_config, .. } = self;
        writeln!(f, "steadfast {version}, process {pid}: {phase} for {uptime:.0} s")?;
        if let Some(reason) = stale_config {
            writeln!(f, "serving the last good config: {}", printable(reason))?;
        }
        if let Some(Drain { cause, lasted, left }) = drain {
            let left = left.map_or("no deadline".into(), |s| format!("{s:.0} s left"));
            writeln!(f, "draining for {lasted:.0} s because of {cause}, {left}")?;
        }
        for (n, child) in children.iter().enumerate() {
            let branch = if n + 1 == children.len() { "└──" } else { "├──" };
            let state = if child.running { "running" } else { "not running" };
            writeln!(f, "{branch} {:<12}{state}, {}", child.name, counted(child.restarts, "restart"))?;
        }
        let states: Vec<_> = connections.by_state().map(|(s, n)| format!("{n} {}", s.name())).into();
        writeln!(f, "connections: {} ({})", connections.total(), states.join(", "))?;
        let Totals { connections, requests: ended, client_gone, broken_off, cut, handed_over, taken_over } =
            totals;
        writeln!(
            f,
            "since the start: {}, {}, {client_gone} given up, {broken_off} broken off, {cut} cut",
            counted(*connections, "connection"),
            counted(*ended, "request"),
        )?;
        for (what, [connections, tunnels]) in [("handed", handed_over), ("taken", taken_over)] {
            let (connections, tunnels) = (counted(*connections, "connection"), counted(*tunnels, "tunnel"));
            writeln!(f, "{what} over: {connections}, {tunnels}")?;
        }
        writeln!(f, "in flight: {}", requests.len())?;
        for r in requests {
            let InFlightRequest { method, path, peer, age, sent, waiting_for, .. } = r;
            // Escaped again: another version of the daemon may not have done it.
            let path = printable(path);
            writeln!(
                f,
                "  {method} {path} from {peer}, {age:.1} s, {sent} bytes sent, waiting for {waiting_for}"
            )?;
        }
        for Predecessor { pid, since, status } in predecessors {
            writeln!(f, "predecessor: process {pid}, replaced {since:.0} s ago, {}", printable(status))?;
        }
        Ok(())
    }
}

impl Observer {
    /// Notes that a reload failed: the program or config on disk is not the one that runs, which every snapshot shows
    /// from now on.
    pub(super) fn reload_failed(&self, reason: String) {
        *self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// The predecessors, as the main process told last.
    pub(super) fn predecessors(&self) -> MutexGuard<'_, Vec<main_process::Predecessor>> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot of this moment.
    pub(super) fn status(&self) -> Status {
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
            children: self
                .supervisor
                .children()
                .iter()
                .map(|c| ChildStatus {
                    name: c.name().to_owned(),
                    running: c.is_running(),
                    restarts: c.restarts(),
                })
                .collect(),
            connections: self.connections(),
            totals: Totals {
                connections: totals.accepted.load(Relaxed),
                requests: totals.requests(),
                client_gone: totals.client_gone(),
                broken_off: totals.broken_off(),
                cut: totals.cut(),
                handed_over: totals.handed_over.counts(),
                taken_over: totals.taken_over.counts(),
            },
            requests: self.registry.requests().iter().map(Into::into).collect(),
            predecessors: self.predecessors().iter().map(Into::into).collect(),
            stale_config: self.stale_config.clone(),
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
                let answered = self.registry.totals().requests();
                let mut line = format!(
                    "serving: {}, {} in flight, {answered} answered",
                    counted(connections, "connection"),
                    counted(in_flight, "request"),
                );
                if let Some(reason) = &self.stale_config {
                    _ = write!(line, "; serving the last good config: {reason}");
                }
                match &**self.predecessors() {
                    [] => {}
                    [one] => _ = write!(line, "; 1 predecessor: {}", one.status),
                    several => _ = write!(line, "; {} predecessors", several.len()),
                }
                if let Some(reason) = &*self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner) {
                    _ = write!(line, "; the last reload failed: {reason}");
                }
                line
            }
            phase @ (Phase::Starting | Phase::Stopped) => phase.name().to_owned(),
        }
    }
}

fn left(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now())
}
