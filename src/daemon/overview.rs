//! The status for people: the tree of processes and children as rows, the drain as a bar, and all of it as text. The page,
//! the screen and `steadfast status` show the same rows.

use std::fmt;

use super::status::{
    CertificateStatus, ChildStatus, Connections, Drain, Handshakes, InFlightRequest, MainProcess, Named,
    Predecessor, Status, Tls, Totals,
};
use super::status::{grouped, lasting, printable, rate, size};
use crate::printable::counted;

/// The width of the drain's bar in text.
const BAR: usize = 40;
/// The width of a name in text, with the branch before it.
const NAME: usize = 30;
/// The most requests in flight that `steadfast status` shows.
const REQUESTS: usize = 100;

/// A row of the tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The branch before its name: "│   ├── ".
    pub branch: String,
    /// The name of a process or a child, with the process number.
    pub name: String,
    /// Its state: "running", "draining", "waiting to be restarted".
    pub state: String,
    /// The state's kind.
    pub health: Health,
    /// The seconds since its last heartbeat, if it has one.
    pub heartbeat: Option<f64>,
    /// The number of its restarts; of the main process: of its workers.
    pub restarts: Option<u64>,
    /// What it is doing, or since when.
    pub doing: String,
}

/// A kind of state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    #[default]
    Good,
    /// On its way from one state to another.
    Passing,
    /// Not as it should be.
    Bad,
}

impl Health {
    /// Its name in a page's style.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Passing => "passing",
            Self::Bad => "bad",
        }
    }
}

impl Status {
    /// The tree: the main process if there is one, the worker with its children, and the predecessors, oldest first.
    #[must_use]
    pub fn tree(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let (fork, last, within) = match &self.main_process {
            Some(main) => {
                rows.push(main.row());
                let is_last = self.predecessors.is_empty();
                ("├── ", "└── ", if is_last { "    " } else { "│   " })
            }
            None => ("", "", ""),
        };
        let branch = if self.predecessors.is_empty() { last } else { fork };
        rows.push(Row { branch: branch.to_owned(), ..self.row() });
        for (n, child) in self.children.iter().enumerate() {
            let branch = if n + 1 == self.children.len() { "└── " } else { "├── " };
            rows.push(Row { branch: format!("{within}{branch}"), ..child.row() });
        }
        for (n, predecessor) in self.predecessors.iter().enumerate() {
            let branch = if n + 1 == self.predecessors.len() { last } else { fork };
            rows.push(Row { branch: branch.to_owned(), ..predecessor.row() });
        }
        rows
    }

    /// The worker's own row.
    fn row(&self) -> Row {
        Row {
            name: format!("worker {}", self.pid),
            state: printable(&self.phase).into_owned(),
            health: match &*self.phase {
                "serving" => Health::Good,
                _ => Health::Passing,
            },
            doing: format!("up {}", lasting(self.uptime)),
            ..Row::default()
        }
    }

    /// What is wrong though everything is served, for people to read.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let warning = |what: &str, reason: &Option<String>| {
            reason.as_ref().map(|reason| format!("{what}: {}", printable(reason)))
        };
        let stale = warning("serving the last good config", &self.stale_config);
        let failure = warning("the last reload failed and changed nothing", &self.reload_failure);
        let certificates = self.tls.iter().flat_map(|tls| &tls.certificates);
        let urgent = certificates.filter(|certificate| certificate.is_due());
        let expiry =
            urgent.map(|certificate| format!("{} {}", printable(&certificate.file), certificate.expiry()));
        stale.into_iter().chain(failure).chain(expiry).collect()
    }
}

/// A week, in seconds.
const WEEK: f64 = 7.0 * 24.0 * 60.0 * 60.0;

impl CertificateStatus {
    /// True if it should have been renewed by now: with less than a week left, or of a short life less than a third, as the
    /// alert `SteadfastCertificateExpires` has it.
    fn is_due(&self) -> bool {
        self.expires_in < WEEK.min(self.lifetime / 3.0)
    }

    /// The time until it expires, or since then, for people to read: "expires in 43 d 12 h".
    #[must_use]
    pub fn expiry(&self) -> String {
        if self.expires_in > 0.0 {
            format!("expires in {}", lasting(self.expires_in))
        } else {
            format!("has expired {} ago", lasting(-self.expires_in))
        }
    }

    /// Its names, for people to read.
    #[must_use]
    pub fn all_names(&self) -> String {
        if self.names.is_empty() {
            "no names".to_owned()
        } else {
            printable(&self.names.join(", ")).into_owned()
        }
    }
}

impl Tls {
    /// The handshakes in one line: `1,203 handshakes: 1,100 TLSv1.3, 103 TLSv1.2; 103 resumed; 4 failed: 4 not_tls`.
    #[must_use]
    pub fn in_short(&self) -> String {
        let sum = |of: &dyn Fn(&Handshakes) -> bool| {
            self.handshakes.iter().filter(|handshakes| of(handshakes)).map(|h| h.number).sum::<u64>()
        };
        let mut versions: Vec<_> = self.handshakes.iter().map(|handshakes| &*handshakes.version).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        let of_version = |version: &&str| {
            format!("{} {}", grouped(sum(&|handshakes| handshakes.version == *version)), printable(version))
        };
        let versions: Vec<_> = versions.iter().map(of_version).collect();
        let all = format!("{} handshakes", grouped(sum(&|_| true)));
        let resumed = grouped(sum(&|handshakes| handshakes.resumed));
        let succeeded = if versions.is_empty() {
            all
        } else {
            format!("{all}: {}; {resumed} resumed", versions.join(", "))
        };
        let failures: u64 = self.failures.iter().map(|failures| failures.number).sum();
        let reason = |named: &Named| format!("{} {}", grouped(named.number), printable(&named.name));
        let reasons: Vec<_> = self.failures.iter().map(reason).collect();
        let colon = if reasons.is_empty() { "" } else { ": " };
        format!("{succeeded}; {} failed{colon}{}", grouped(failures), reasons.join(", "))
    }
}

impl MainProcess {
    fn row(&self) -> Row {
        Row {
            name: format!("main process {}", self.pid),
            state: if self.uptime.is_some() { "running" } else { "ended" }.to_owned(),
            health: if self.uptime.is_some() { Health::Good } else { Health::Bad },
            restarts: Some(self.restarts),
            doing: self.uptime.map(|uptime| format!("up {}", lasting(uptime))).unwrap_or_default(),
            ..Row::default()
        }
    }
}

impl ChildStatus {
    fn row(&self) -> Row {
        let (state, health) = match (&*self.state, self.running) {
            ("running", _) | ("", true) => ("running", Health::Good),
            ("starting", _) => ("starting", Health::Passing),
            ("ended", _) => ("ended", Health::Passing),
            ("waiting", _) => ("waiting to be restarted", Health::Bad),
            ("stuck", _) => ("stuck", Health::Bad),
            _ => ("not running", Health::Bad),
        };
        Row {
            name: printable(&self.name).into_owned(),
            state: state.to_owned(),
            health,
            heartbeat: self.heartbeat,
            restarts: Some(self.restarts.into()),
            doing: printable(&self.doing).into_owned(),
            ..Row::default()
        }
    }
}

impl Predecessor {
    /// Its requests and its time: "2 requests in flight, 18 s left".
    #[must_use]
    pub fn progress(&self) -> String {
        let Some(in_flight) = self.in_flight else { return printable(&self.status).into_owned() };
        format!("{} in flight, {}", counted(in_flight, "request"), countdown(self.left))
    }

    fn row(&self) -> Row {
        Row {
            name: format!("predecessor {}", self.pid),
            state: "draining".to_owned(),
            health: Health::Passing,
            doing: format!("{}; replaced {} ago", self.progress(), lasting(self.since)),
            ..Row::default()
        }
    }
}

impl Drain {
    /// The part of its time that has passed, from 0 to 1; `None` where there is no deadline.
    #[must_use]
    pub fn passed(&self) -> Option<f64> {
        let whole = self.lasted + self.left?;
        Some(if whole > 0.0 { (self.lasted / whole).clamp(0.0, 1.0) } else { 1.0 })
    }

    /// The time until the rest is cut, for people to read: "18 s left".
    #[must_use]
    pub fn countdown(&self) -> String {
        countdown(self.left)
    }
}

/// The seconds that are left, for people to read: "18 s left".
fn countdown(left: Option<f64>) -> String {
    left.map_or("no deadline".to_owned(), |left| format!("{} left", lasting(left.ceil())))
}

impl Connections {
    /// With a request, but for those that are tunnels.
    #[must_use]
    pub fn active(&self) -> usize {
        self.total() - self.parked - self.tunnel
    }
}

/// As `steadfast status` shows it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            phase,
            version,
            pid,
            uptime,
            drain,
            report,
            connections,
            totals,
            tls,
            requests,
            rates,
            ..
        } = self;
        let (version, phase) = (printable(version), printable(phase));
        writeln!(f, "steadfast {version}, process {pid}: {phase}, up {}", lasting(*uptime))?;
        for warning in self.warnings() {
            writeln!(f, "warning: {warning}")?;
        }
        if let Some(drain) = drain {
            let (cause, lasted) = (printable(&drain.cause), lasting(drain.lasted));
            writeln!(f, "draining for {lasted} because of {cause}, {}", drain.countdown())?;
            if let Some(passed) = drain.passed() {
                writeln!(f, "{}", bar(passed))?;
            }
        }
        if let Some(report) = report {
            writeln!(f, "stopped: {} finished, {} cut", counted(report.finished, "request"), report.cut)?;
        }
        for row in self.tree() {
            writeln!(f, "{}", line(&row))?;
        }
        let states: Vec<_> = connections.by_state().map(|(s, n)| format!("{n} {}", s.name())).into();
        writeln!(f, "connections: {} ({})", connections.total(), states.join(", "))?;
        write!(f, "lately: {} requests/s, {}/s", rate(rates.requests), size(rates.sent))?;
        if let (Some(p50), Some(p90), Some(p99)) = (rates.p50, rates.p90, rates.p99) {
            let [p50, p90, p99] = [p50, p90, p99].map(lasting);
            write!(f, "; half within {p50}, 90 % within {p90}, 99 % within {p99}")?;
        }
        writeln!(f)?;
        let Totals { connections, requests: ended, client_gone, broken_off, cut, .. } = totals;
        writeln!(
            f,
            "since the start: connections {}, requests {}; {client_gone} given up, {broken_off} broken off, {cut} cut",
            grouped(*connections),
            grouped(*ended),
        )?;
        for (what, [connections, tunnels], over_tls) in [
            ("handed", totals.handed_over, totals.handed_over_tls),
            ("taken", totals.taken_over, totals.taken_over_tls),
        ] {
            let (connections, tunnels) = (counted(connections, "connection"), counted(tunnels, "tunnel"));
            write!(f, "{what} over: {connections}, {tunnels}")?;
            if over_tls > 0 {
                write!(f, "; {} of these over TLS", grouped(over_tls))?;
            }
            writeln!(f)?;
        }
        if let Some(tls) = tls {
            writeln!(f, "TLS: {}", tls.in_short())?;
            for certificate in &tls.certificates {
                let (file, names) = (printable(&certificate.file), certificate.all_names());
                writeln!(f, "  {file}: {names}; {}", certificate.expiry())?;
            }
        }
        writeln!(f, "in flight: {}", requests.len())?;
        for InFlightRequest { method, path, peer, age, sent, waiting_for, .. } in
            requests.iter().take(REQUESTS)
        {
            // Escaped again: another version of the daemon may not have done it.
            let (method, path, peer) = (printable(method), printable(path), printable(peer));
            let (age, waiting_for) = (lasting(*age), printable(waiting_for));
            writeln!(
                f,
                "  {age:>8}  {method} {path} from {peer}, {sent} bytes sent, waiting for {waiting_for}"
            )?;
        }
        match requests.len().checked_sub(REQUESTS) {
            Some(more @ 1..) => writeln!(f, "  and {more} more"),
            _ => Ok(()),
        }
    }
}

/// A row of the tree as a line.
fn line(row: &Row) -> String {
    let Row { branch, name, state, heartbeat, restarts, doing, .. } = row;
    let name = format!("{branch}{name}");
    let mut rest = vec![state.clone()];
    rest.extend(heartbeat.map(|age| format!("heartbeat {} ago", lasting(age))));
    rest.extend(restarts.map(|number| counted(number, "restart")));
    rest.extend(Some(doing.clone()).filter(|doing| !doing.is_empty()));
    format!("{name:<NAME$}{}", rest.join(", "))
}

/// A part from 0 to 1 as a bar.
fn bar(part: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "of a bar"
    )]
    let filled = ((part * BAR as f64).round() as usize).min(BAR);
    format!("[{}{}]", "#".repeat(filled), "-".repeat(BAR - filled))
}
