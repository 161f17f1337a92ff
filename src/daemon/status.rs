//! The daemon's status, for `STATUS=`, `/status` and the metrics alike: what it consists of.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::printable::excerpt_of;
pub use crate::printable::{grouped, lasting, printable, rate, size};
use crate::server::{RequestView, State};
use crate::tls::certificates::Certificate;

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
    /// Its TLS; absent without `[https]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
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

/// TLS since the start: the handshakes of clients, and the certificates that they are shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tls {
    /// The handshakes that succeeded, by what was agreed on.
    pub handshakes: Vec<Handshakes>,
    /// The same by the name that the client asked for.
    pub names: Vec<Named>,
    /// The handshakes that failed, by the reason.
    pub failures: Vec<Named>,
    /// The certificates, in the config's order.
    pub certificates: Vec<CertificateStatus>,
}

/// Handshakes that agreed on the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handshakes {
    /// The version of TLS: `TLSv1.3`.
    pub version: String,
    /// The cipher suite, by its name at IANA.
    pub suite: String,
    /// The protocol (ALPN): `h2`, `http/1.1`, or `none`.
    pub alpn: String,
    /// True if the clients have resumed an earlier session.
    pub resumed: bool,
    /// Their number.
    pub number: u64,
}

/// A number of handshakes that have something in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    /// What that is: a server's name, as it stands in a certificate, `other` or `none`; or the reason of a failure.
    pub name: String,
    /// Their number.
    pub number: u64,
}

/// A certificate that is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The file of its chain.
    pub file: String,
    /// The names in it.
    pub names: Vec<String>,
    /// The time until it expires; since then, if it is negative.
    pub expires_in: f64,
    /// The time between its first moment and its last.
    #[serde(default)]
    pub lifetime: f64,
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
    /// Agreeing on TLS.
    #[serde(default)]
    pub handshaking: usize,
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
    /// Speaking HTTP/2, with or without requests.
    #[serde(default)]
    pub http2: usize,
    /// Answered for the last time.
    pub closing: usize,
}

impl Connections {
    /// The counts by the states' names.
    #[must_use]
    pub fn by_state(&self) -> [(State, usize); State::OPEN.len()] {
        State::OPEN.map(|state| (state, *self.clone().count(state)))
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.by_state().iter().map(|(_, n)| n).sum()
    }

    pub(super) fn count(&mut self, state: State) -> &mut usize {
        match state {
            State::Handshaking => &mut self.handshaking,
            State::Parked => &mut self.parked,
            State::Reading => &mut self.reading,
            State::Answering => &mut self.answering,
            State::Flushing => &mut self.flushing,
            State::Discarding => &mut self.discarding,
            State::Tunnel => &mut self.tunnel,
            State::Http2 => &mut self.http2,
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
    /// Those of both given over TLS.
    #[serde(default)]
    pub handed_over_tls: u64,
    /// Those of both taken over TLS.
    #[serde(default)]
    pub taken_over_tls: u64,
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

impl CertificateStatus {
    pub(super) fn of(certificate: &Certificate) -> Self {
        let (now, end) = (SystemTime::now(), certificate.not_after());
        let expires_in = match end.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(since) => -since.duration().as_secs_f64(),
        };
        Self {
            file: printable(&certificate.file().to_string_lossy()).into_owned(),
            names: certificate.names().map(str::to_owned).collect(),
            expires_in,
            lifetime: end.duration_since(certificate.not_before()).unwrap_or_default().as_secs_f64(),
        }
    }
}

impl InFlightRequest {
    /// It, with the first `longest` bytes of its method and of its path.
    pub(super) fn of(request: &RequestView, longest: usize) -> Self {
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
                handed_over_tls: 12,
                taken_over_tls: 0,
            },
            tls: Some(Tls {
                handshakes: vec![
                    Handshakes {
                        version: "TLSv1.3".to_owned(),
                        suite: "TLS_AES_128_GCM_SHA256".to_owned(),
                        alpn: "h2".to_owned(),
                        resumed: false,
                        number: 1100,
                    },
                    Handshakes {
                        version: "TLSv1.2".to_owned(),
                        suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned(),
                        alpn: "http/1.1".to_owned(),
                        resumed: true,
                        number: 103,
                    },
                ],
                names: vec![Named { name: "example.org".to_owned(), number: 1203 }],
                failures: vec![Named { name: "not_tls".to_owned(), number: 4 }],
                certificates: vec![CertificateStatus {
                    file: "/etc/ssl/example.org.pem".to_owned(),
                    names: vec!["example.org".to_owned(), "*.example.org".to_owned()],
                    expires_in: 43.5 * 86_400.0,
                    lifetime: 90.0 * 86_400.0,
                }],
            }),
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
    fn a_certificate_is_warned_of_when_it_should_have_been_renewed() {
        const DAY: f64 = 86_400.0;
        let mut status = Status { stale_config: None, reload_failure: None, ..Status::example() };
        let mut warnings = |left: f64, lifetime: f64| {
            let certificate = &mut status.tls.as_mut().expect("it is there").certificates[0];
            (certificate.expires_in, certificate.lifetime) = (left * DAY, lifetime * DAY);
            status.warnings()
        };
        let soon = ["/etc/ssl/example.org.pem expires in 6 d"];
        assert_eq!(warnings(8.0, 90.0), [""; 0]);
        assert_eq!(warnings(6.0, 90.0), soon);
        // Of six days.
        assert_eq!(warnings(3.0, 6.0), [""; 0]);
        assert_eq!(warnings(1.5, 6.0), ["/etc/ssl/example.org.pem expires in 1 d 12 h"]);
        assert_eq!(warnings(-1.5, 6.0), ["/etc/ssl/example.org.pem has expired 1 d 12 h ago"]);
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
