//! The metrics: what they are called, and where their values are. They are read when somebody asks, and when a worker
//! hands over: the successor goes on from what this one and its predecessors have counted (`ledger`).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use super::exposition::{Kind, Metric, Samples, as_f64, text};
use super::http::routes::Routes;
use super::http::routes::proxy::Happened;
use super::ledger::{Counts, Ledger, of};
use super::observer::Observer;
use super::phase::Phase;
use super::status::Predecessor;
use super::usage::{self, Usage};
use crate::handover::Handover;
use crate::handover::parcel::{CountsNote, Parcel};
use crate::logging;
use crate::server::durations::{BOUNDS, DurationsView};
use crate::server::requests::{CODE, METHOD, ROUTE, label};

const REQUESTS: &str = "steadfast_http_requests_total";
const DURATION: &str = "steadfast_http_request_duration_seconds";
const CLIENT_GONE: &str = "steadfast_http_requests_client_gone_total";
const BROKEN_OFF: &str = "steadfast_http_requests_broken_off_total";
const CUT: &str = "steadfast_http_requests_cut_total";
const IN_FLIGHT: &str = "steadfast_http_requests_in_flight";
const REFUSED: &str = "steadfast_http_refused_total";
const ACCEPTED: &str = "steadfast_http_connections_accepted_total";
const CONNECTIONS: &str = "steadfast_http_connections";
const RECEIVED: &str = "steadfast_http_received_bytes_total";
const SENT: &str = "steadfast_http_sent_bytes_total";
const UPSTREAM_REQUESTS: &str = "steadfast_upstream_requests_total";
const UPSTREAM_FAILURES: &str = "steadfast_upstream_failures_total";
const UPSTREAM_CONNECTS: &str = "steadfast_upstream_connects_total";
const UPSTREAM_CONNECT_FAILURES: &str = "steadfast_upstream_connect_failures_total";
const UPSTREAM_RETRIES: &str = "steadfast_upstream_retries_total";
const UPSTREAM_IN_FLIGHT: &str = "steadfast_upstream_requests_in_flight";
const UPSTREAM_IDLE: &str = "steadfast_upstream_connections_idle";
const HANDED_OVER: &str = "steadfast_handover_handed_over_total";
const TAKEN_OVER: &str = "steadfast_handover_taken_over_total";
const HANDED_OVER_TLS: &str = "steadfast_handover_handed_over_tls_total";
const TAKEN_OVER_TLS: &str = "steadfast_handover_taken_over_tls_total";
const LINGERED: &str = "steadfast_handover_lingered_total";
const HANDSHAKES: &str = "steadfast_tls_handshakes_total";
const HANDSHAKES_BY_NAME: &str = "steadfast_tls_handshakes_by_name_total";
const HANDSHAKE_FAILURES: &str = "steadfast_tls_handshake_failures_total";
const CERTIFICATE_EXPIRY: &str = "steadfast_tls_certificate_expiry_timestamp_seconds";
const CERTIFICATE_NOT_BEFORE: &str = "steadfast_tls_certificate_not_before_timestamp_seconds";
const RELOADS: &str = "steadfast_reloads_total";
const WORKER_RESTARTS: &str = "steadfast_worker_restarts_total";
const CHILD_RESTARTS: &str = "steadfast_child_restarts_total";
const PREDECESSORS: &str = "steadfast_predecessors";
const PREDECESSOR_IN_FLIGHT: &str = "steadfast_predecessor_requests_in_flight";
const PREDECESSOR_LEFT: &str = "steadfast_predecessor_left_seconds";
const MAIN_UPTIME: &str = "steadfast_main_process_uptime_seconds";
const PHASE: &str = "steadfast_phase";
const READY: &str = "steadfast_ready";
const STALE: &str = "steadfast_config_stale";
const LOST: &str = "steadfast_log_lost_total";
const ACCESS_LOST: &str = "steadfast_access_log_lost_total";
const INFO: &str = "steadfast_build_info";
const STARTED: &str = "steadfast_process_start_time_seconds";
const PROCESS_CPU: &str = "process_cpu_seconds_total";
const PROCESS_RESIDENT: &str = "process_resident_memory_bytes";
const PROCESS_ADDRESSED: &str = "process_virtual_memory_bytes";
const PROCESS_DESCRIPTORS: &str = "process_open_fds";
const PROCESS_MOST_DESCRIPTORS: &str = "process_max_fds";
const PROCESS_THREADS: &str = "process_threads";
const PROCESS_STARTED: &str = "process_start_time_seconds";

/// The label of a histogram's buckets, and among the counts its sum, in nanoseconds.
const LE: &str = "le";
const SUM: &str = "sum";
/// The bound of the last bucket.
const INFINITE: &str = "+Inf";

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

/// All of them, in the order in which they are shown.
static METRICS: [Metric; 49] = [
    counter(REQUESTS, &[ROUTE, METHOD, CODE], "Requests ended, by route, method and status."),
    Metric {
        name: DURATION,
        kind: Kind::Histogram,
        labels: &[LE],
        help: "From a request's head to the last byte of its answer.",
    },
    gauge(IN_FLIGHT, &[], "Requests being answered, tunnels among them."),
    counter(CLIENT_GONE, &[], "Requests whose client closed, or stalled, before the answer was whole."),
    counter(BROKEN_OFF, &[], "Requests whose handler or upstream broke off its answer."),
    counter(CUT, &[], "Requests that a stop, or the end of a handover, cut."),
    counter(
        REFUSED,
        &["reason"],
        "Clients that were not served, or not to the end, or waited before they were.",
    ),
    gauge(CONNECTIONS, &["state"], "Open connections, by what they are doing."),
    counter(ACCEPTED, &[], "Connections accepted."),
    counter(RECEIVED, &[], "Bytes received from clients."),
    counter(SENT, &[], "Bytes sent to clients."),
    counter(
        HANDSHAKES,
        &["version", "suite", "alpn", "resumed"],
        "Handshakes of TLS that succeeded, by what was agreed on.",
    ),
    counter(
        HANDSHAKES_BY_NAME,
        &["name"],
        "The same by the name that the client asked for, as it stands in a certificate.",
    ),
    counter(HANDSHAKE_FAILURES, &["reason"], "Handshakes of TLS that failed."),
    gauge(CERTIFICATE_EXPIRY, &["certificate"], "When a certificate expires, in seconds since 1970."),
    gauge(CERTIFICATE_NOT_BEFORE, &["certificate"], "Since when a certificate is valid, in the same."),
    counter(UPSTREAM_REQUESTS, &["upstream"], "Requests to be passed on."),
    counter(
        UPSTREAM_FAILURES,
        &["upstream"],
        "Requests without an answer of the upstream's, or without all of it.",
    ),
    counter(UPSTREAM_CONNECTS, &["upstream"], "Connections made."),
    counter(UPSTREAM_CONNECT_FAILURES, &["upstream"], "Attempts to connect that failed."),
    counter(
        UPSTREAM_RETRIES,
        &["upstream"],
        "Attempts, to connect or to send a request, that were made again.",
    ),
    gauge(UPSTREAM_IN_FLIGHT, &["upstream"], "Requests that the upstream has yet to answer; no tunnels."),
    gauge(UPSTREAM_IDLE, &["upstream"], "Open connections that wait for a request."),
    counter(HANDED_OVER, &["kind"], "Connections and tunnels given to the next process."),
    counter(
        TAKEN_OVER,
        &["kind"],
        "Connections and tunnels taken from an earlier process, and those that were closed instead.",
    ),
    counter(HANDED_OVER_TLS, &[], "Those of them that are over TLS."),
    counter(TAKEN_OVER_TLS, &[], "Those of them that are over TLS."),
    counter(LINGERED, &["reason"], "Connections that could not be given to the next process."),
    counter(RELOADS, &["outcome"], "Reloads."),
    Metric {
        name: WORKER_RESTARTS,
        kind: Kind::CounterOfProcess,
        labels: &[],
        help: "Workers started in the place of one that ended unasked, since the start of the main process.",
    },
    counter(CHILD_RESTARTS, &["child"], "Restarts of a child of the tree."),
    gauge(PREDECESSORS, &[], "Workers that finish what they had in flight when another took over."),
    gauge(PREDECESSOR_IN_FLIGHT, &["pid"], "Requests that such a worker still has in flight."),
    gauge(PREDECESSOR_LEFT, &["pid"], "The time until what it has left is cut, in seconds."),
    gauge(MAIN_UPTIME, &[], "The time since the start of the main process, in seconds."),
    gauge(PHASE, &["phase"], "1 for the phase that the process is in, 0 for the others."),
    gauge(READY, &[], "1 while new clients should come, as /readyz says."),
    gauge(STALE, &[], "1 while the last good config is served, because the one that is there is wrong."),
    counter(LOST, &[], "Log events that could not be logged."),
    counter(ACCESS_LOST, &[], "Requests that could not be logged."),
    gauge(INFO, &["version"], "1, with the version as its label."),
    gauge(STARTED, &[], "When the process started that has answered this scrape, in seconds since 1970."),
    Metric {
        name: PROCESS_CPU,
        kind: Kind::CounterOfProcess,
        labels: &[],
        help: "Processor time of this process, in seconds.",
    },
    gauge(PROCESS_RESIDENT, &[], "Memory that this process has in use, in bytes."),
    gauge(PROCESS_ADDRESSED, &[], "Address space of this process, in bytes."),
    gauge(PROCESS_DESCRIPTORS, &[], "Open descriptors of this process."),
    gauge(PROCESS_MOST_DESCRIPTORS, &[], "The most descriptors that this process may have."),
    gauge(PROCESS_THREADS, &[], "Threads of this process."),
    gauge(PROCESS_STARTED, &[], "When this process started, in seconds since 1970."),
];

/// The metric of a name.
fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The daemon's metrics: nothing global, so that one process may run several daemons.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    routes: OnceLock<Routes>,
    reloads: [AtomicU64; 2],
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

// ---- what they learn -------------------------------------------------------------------------------------

impl Metrics {
    /// Those of a daemon that may have had predecessors, through this handover.
    pub(crate) fn new(handover: &Handover) -> Self {
        Self(Arc::new(Inner {
            ledger: Ledger::new(find, !handover.is_inherited()),
            routes: OnceLock::new(),
            reloads: Default::default(),
        }))
    }

    /// The upstreams of these routes are to be shown.
    pub(super) fn follow(&self, routes: Routes) {
        // There are no others.
        let _ = self.0.routes.set(routes);
    }

    /// Counts a reload, by its outcome.
    pub(super) fn reloaded(&self, succeeded: bool) {
        self.0.reloads[usize::from(succeeded)].fetch_add(1, Relaxed);
    }

    /// What came from predecessors, and is yet to come.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Leaves in the mailbox what the successor has not been told yet of what was counted, waiting for room while
    /// somebody makes it, for `limit` at most in all.
    pub(super) async fn tell_successor(&self, observer: &Observer, handover: &Handover, limit: Duration) {
        let put = |note: CountsNote| handover.put(&mut vec![Parcel::Counts(note)]);
        let tell = async {
            loop {
                match self.0.ledger.tell(|| self.counts(observer), put) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && handover.has_room().await => {}
                    outcome => return outcome,
                }
            }
        };
        let told = tokio::time::timeout(limit, tell).await;
        if let Err(error) = told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            tracing::warn!("the next process does not learn what this one has counted: {error}");
        }
    }
}

// ---- what they show --------------------------------------------------------------------------------------

impl Metrics {
    /// The text that Prometheus scrapes. Without `inherited` it has no counter that goes on from process to process.
    pub(crate) fn render(&self, observer: &Observer, inherited: bool) -> String {
        let counts = self.0.ledger.shown(|| self.counts(observer));
        let gauges = self.gauges(observer);
        let shown = METRICS.iter().filter(|metric| inherited || !metric.kind.is_inherited());
        text(shown.map(|metric| {
            let mut samples = Samples::of(metric);
            match metric.kind {
                Kind::Histogram => histogram(&mut samples, metric, &counts),
                Kind::Counter => {
                    for (labels, count) in of(metric.name, &counts) {
                        samples.add(labels.iter().map(String::as_str), as_f64(count));
                    }
                }
                Kind::Gauge | Kind::CounterOfProcess => {
                    for (_, label, value) in gauges.iter().filter(|(name, ..)| *name == metric.name) {
                        samples.add(label.as_deref(), *value);
                    }
                }
            }
            samples
        }))
    }

    /// What this process has counted itself.
    fn counts(&self, observer: &Observer) -> Counts {
        let totals = observer.registry.totals();
        let mut counts = Counts::new();
        let mut add = |name: &'static str, labels: &[&str], value: u64| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            *counts.entry((name, labels)).or_default() += value;
        };
        for (labels, number) in totals.requests_apart() {
            add(REQUESTS, &[&labels.route, &labels.method, &labels.code], number);
        }
        let DurationsView { buckets, sum } = totals.durations();
        for (bound, number) in bounds().iter().zip(buckets) {
            add(DURATION, &[bound], number);
        }
        add(DURATION, &[SUM], u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX));
        add(CLIENT_GONE, &[], totals.client_gone());
        add(BROKEN_OFF, &[], totals.broken_off());
        add(CUT, &[], totals.cut());
        for (reason, number) in totals.refused.by_reason() {
            add(REFUSED, &[reason.name()], number);
        }
        add(ACCEPTED, &[], totals.accepted.load(Relaxed));
        let [received, sent] = observer.registry.moved();
        add(RECEIVED, &[], received);
        add(SENT, &[], sent);
        for (terms, number) in totals.handshakes.by_terms() {
            let resumed = if terms.resumed { "true" } else { "false" };
            add(HANDSHAKES, &[terms.version, terms.suite, terms.alpn, resumed], number);
        }
        for (name, number) in totals.handshakes.by_name() {
            add(HANDSHAKES_BY_NAME, &[&label(&name)], number);
        }
        if totals.handshakes.are_possible() {
            for (reason, number) in totals.handshakes.failures() {
                add(HANDSHAKE_FAILURES, &[reason.name()], number);
            }
        }
        for upstream in self.0.routes.get().into_iter().flat_map(Routes::upstreams) {
            for (what, number) in upstream.happened {
                let name = match what {
                    Happened::Request => UPSTREAM_REQUESTS,
                    Happened::Connect => UPSTREAM_CONNECTS,
                    Happened::ConnectFailure => UPSTREAM_CONNECT_FAILURES,
                    Happened::Retry => UPSTREAM_RETRIES,
                    Happened::Failure => UPSTREAM_FAILURES,
                };
                add(name, &[&label(&upstream.to)], number);
            }
        }
        for (name, carried) in [(HANDED_OVER, &totals.handed_over), (TAKEN_OVER, &totals.taken_over)] {
            let [connections, tunnels] = carried.counts();
            add(name, &["connection"], connections);
            add(name, &["tunnel"], tunnels);
        }
        add(HANDED_OVER_TLS, &[], totals.handed_over.over_tls());
        add(TAKEN_OVER_TLS, &[], totals.taken_over.over_tls());
        add(TAKEN_OVER, &["refused"], totals.not_understood.load(Relaxed));
        add(TAKEN_OVER, &["other_policy"], totals.judged_otherwise.load(Relaxed));
        for (reason, number) in totals.not_carried.by_reason() {
            add(LINGERED, &[reason.name()], number);
        }
        for (outcome, number) in ["failed", "succeeded"].iter().zip(&self.0.reloads) {
            add(RELOADS, &[outcome], number.load(Relaxed));
        }
        for child in observer.supervisor.children() {
            add(CHILD_RESTARTS, &[&label(child.name())], child.restarts().into());
        }
        add(LOST, &[], logging::lost());
        add(ACCESS_LOST, &[], logging::access_lost());
        counts
    }

    /// What is as it is now; and what processes count for themselves.
    fn gauges(&self, observer: &Observer) -> Vec<(&'static str, Option<String>, f64)> {
        let size = |n: usize| as_f64(n as u64);
        let one_if = |condition| if condition { 1.0 } else { 0.0 };
        let phase = observer.lifecycle.phase();
        let usage = Usage::now();
        let predecessors = observer.predecessors();
        let plain = [
            (IN_FLIGHT, size(observer.registry.in_flight())),
            (PREDECESSORS, size(predecessors.len())),
            (READY, one_if(phase.is_ready())),
            (STALE, one_if(observer.stale_config.is_some())),
            (STARTED, usage::started()),
            (PROCESS_CPU, usage.cpu),
            (PROCESS_RESIDENT, usage.resident),
            (PROCESS_ADDRESSED, usage.addressed),
            (PROCESS_DESCRIPTORS, usage.descriptors),
            (PROCESS_MOST_DESCRIPTORS, usage.most_descriptors),
            (PROCESS_THREADS, usage.threads),
            (PROCESS_STARTED, usage::started()),
        ];
        let mut gauges: Vec<_> = plain.into_iter().map(|(name, value)| (name, None, value)).collect();
        for (state, count) in observer.connections().by_state() {
            gauges.push((CONNECTIONS, Some(state.name().to_owned()), size(count)));
        }
        for name in Phase::NAMES {
            gauges.push((PHASE, Some(name.to_owned()), one_if(name == phase.name())));
        }
        gauges.push((INFO, Some(env!("CARGO_PKG_VERSION").to_owned()), 1.0));
        let mut upstreams = std::collections::BTreeMap::<_, [f64; 2]>::new();
        for upstream in self.0.routes.get().into_iter().flat_map(Routes::upstreams) {
            let [in_flight, idle] = upstreams.entry(label(&upstream.to)).or_default();
            *in_flight += as_f64(upstream.in_flight);
            *idle += size(upstream.idle);
        }
        for (to, [in_flight, idle]) in upstreams {
            gauges.push((UPSTREAM_IN_FLIGHT, Some(to.clone()), in_flight));
            gauges.push((UPSTREAM_IDLE, Some(to), idle));
        }
        for certificate in observer.registry.totals().handshakes.certificates() {
            let file = label(&certificate.file().to_string_lossy());
            for (name, time) in [
                (CERTIFICATE_EXPIRY, certificate.not_after()),
                (CERTIFICATE_NOT_BEFORE, certificate.not_before()),
            ] {
                let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                gauges.push((name, Some(file.clone()), time.as_secs_f64()));
            }
        }
        for Predecessor { pid, in_flight, left, .. } in predecessors {
            let in_flight = in_flight.map(|number| (PREDECESSOR_IN_FLIGHT, as_f64(number)));
            let left = left.map(|left| (PREDECESSOR_LEFT, left));
            for (name, value) in in_flight.into_iter().chain(left) {
                gauges.push((name, Some(pid.to_string()), value));
            }
        }
        gauges.extend(observer.worker_restarts().map(|number| (WORKER_RESTARTS, None, as_f64(number))));
        gauges.extend(observer.main_process_age().map(|age| (MAIN_UPTIME, None, age.as_secs_f64())));
        gauges
    }
}

/// The bounds of the buckets, as they are written.
fn bounds() -> [String; BOUNDS.len() + 1] {
    std::array::from_fn(|bucket| BOUNDS.get(bucket).map_or(INFINITE.to_owned(), ToString::to_string))
}

/// Adds the durations. What another version has counted up to a bound that this one has not is in the bucket of the next
/// larger one.
fn histogram(samples: &mut Samples, metric: &Metric, counts: &Counts) {
    let (mut buckets, mut sum) = ([0_u64; BOUNDS.len() + 1], Duration::ZERO);
    for (labels, count) in of(metric.name, counts) {
        match labels {
            [label] if label == SUM => sum = Duration::from_nanos(count),
            [label] => {
                let bound = label.parse().unwrap_or(f64::INFINITY);
                let bucket = BOUNDS.partition_point(|larger| *larger < bound);
                buckets[bucket] = buckets[bucket].saturating_add(count);
            }
            _ => {}
        }
    }
    // Each bucket has those below it, too.
    let mut total = 0_u64;
    let below = buckets.map(|count| {
        total = total.saturating_add(count);
        total
    });
    samples.add_histogram(BOUNDS.into_iter().zip(below), total, sum.as_secs_f64());
}

#[cfg(test)]
mod tests {
    //! The documentation has each metric as it is.

    use super::*;

    #[test]
    fn a_bucket_of_another_version_counts_in_the_next_larger_one() {
        let count = |label: &str, value| ((DURATION, vec![label.to_owned()]), value);
        let [first, second] = [BOUNDS[0], BOUNDS[1]];
        let between = f64::midpoint(first, second).to_string();
        let counts = [
            count(&first.to_string(), 1),
            count(&between, 10),
            count("1e9", 100),
            count("much", 1000),
            count(INFINITE, 10_000),
            count(SUM, 2_000_000_000),
        ];
        let metric = find(DURATION).expect("it is one");
        let mut samples = Samples::of(metric);
        histogram(&mut samples, metric, &counts.into());
        let text = text([samples]);
        let value = |series: String| {
            let line = text.lines().find_map(|line| line.strip_prefix(&*series)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {series} in {text}")).to_owned()
        };
        let bucket = |bound: f64| value(format!("{DURATION}_bucket{{le=\"{bound}\"}}"));
        assert_eq!([bucket(first), bucket(second), bucket(BOUNDS[BOUNDS.len() - 1])], ["1", "11", "11"]);
        assert_eq!(value(format!("{DURATION}_count")), "11111");
        assert_eq!(value(format!("{DURATION}_sum")), "2");
    }

    const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

    #[test]
    fn every_metric_is_documented_as_it_is() {
        let rows = DOCUMENTED.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: Vec<_> = rows
            .map(|row| {
                let cells: Vec<_> = row.split(" | ").collect();
                let name = cells[0].trim_end_matches('`').to_owned();
                let labels = cells[2].split(", ").filter(|label| !label.is_empty());
                let labels: Vec<_> = labels.map(|label| label.trim_matches('`').to_owned()).collect();
                assert!(cells[3].len() > 10, "{name} is not explained");
                (name, cells[1].to_owned(), labels)
            })
            .collect();
        let known = METRICS.iter().map(|metric| {
            let labels = metric.labels.iter().map(|label| (*label).to_owned()).collect();
            (metric.name.to_owned(), format!("{:?}", metric.kind.as_type()).to_lowercase(), labels)
        });
        assert_eq!(documented, known.collect::<Vec<_>>());
    }
}
