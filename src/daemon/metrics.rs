//! The metrics, read off the registry when somebody asks.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

use super::phase::Phase;
use super::status::Observer;
use crate::logging;
use crate::server::durations::{BOUNDS, DurationsView};

const DURATION: &str = "steadfast_http_request_duration_seconds";
const REQUESTS: &str = "steadfast_http_requests_total";
const CLIENT_GONE: &str = "steadfast_http_requests_client_gone_total";
const BROKEN_OFF: &str = "steadfast_http_requests_broken_off_total";
const CUT: &str = "steadfast_http_requests_cut_total";
const IN_FLIGHT: &str = "steadfast_http_requests_in_flight";
const ACCEPTED: &str = "steadfast_http_connections_accepted_total";
const TURNED_AWAY: &str = "steadfast_http_connections_turned_away_total";
const CONNECTIONS: &str = "steadfast_http_connections";
const RESTARTS: &str = "steadfast_child_restarts_total";
const READY: &str = "steadfast_ready";
const HANDED_OVER: &str = "steadfast_handover_handed_over_total";
const TAKEN_OVER: &str = "steadfast_handover_taken_over_total";
const STALE: &str = "steadfast_config_stale";
const LOST: &str = "steadfast_log_lost_total";
const ACCESS_LOST: &str = "steadfast_access_log_lost_total";
const INFO: &str = "steadfast_build_info";

/// The daemon's own recorder: nothing global, so that one process may run several daemons.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: Collector,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let process = Collector::default();
        with_local_recorder(&recorder, || {
            process.describe();
            describe_counter!(REQUESTS, "Requests ended, by the class of their status.");
            describe_counter!(CLIENT_GONE, "Requests whose client closed before the answer was whole.");
            describe_counter!(BROKEN_OFF, "Requests whose handler or upstream broke off its answer.");
            describe_counter!(CUT, "Requests that a stop cut.");
            describe_gauge!(IN_FLIGHT, "Requests being answered.");
            describe_counter!(ACCEPTED, "Connections accepted.");
            describe_counter!(TURNED_AWAY, "Connections closed at once, for their client had too many.");
            describe_gauge!(CONNECTIONS, "Open connections, by what they are doing.");
            describe_counter!(RESTARTS, "Restarts of a child of the tree.");
            describe_gauge!(READY, "1 while new clients should come, as /readyz says.");
            describe_counter!(
                HANDED_OVER,
                "Connections given to the next process, and those that could not be."
            );
            describe_counter!(
                TAKEN_OVER,
                "Connections taken from an earlier process, and those not understood."
            );
            describe_gauge!(
                STALE,
                "1 while the last good config is served, because the one that is there is wrong."
            );
            describe_counter!(LOST, "Log events lost because the journal was too slow.");
            describe_counter!(ACCESS_LOST, "Requests that the access log had no room for.");
            describe_gauge!(INFO, "1, with the version as its label.");
        });
        Self(Arc::new(Inner { recorder, handle, process }))
    }

    /// The text that Prometheus scrapes (exposition format 0.0.4).
    pub(crate) fn render(&self, observer: &Observer) -> String {
        with_local_recorder(&self.0.recorder, || {
            self.0.process.collect();
            let registry = &observer.registry;
            let totals = registry.totals();
            for (class, count) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(totals.by_class()) {
                counter!(REQUESTS, "code" => *class).absolute(count);
            }
            counter!(CLIENT_GONE).absolute(totals.client_gone());
            counter!(BROKEN_OFF).absolute(totals.broken_off());
            counter!(CUT).absolute(totals.cut());
            counter!(TURNED_AWAY).absolute(totals.turned_away.load(Relaxed));
            counter!(ACCEPTED).absolute(totals.accepted.load(Relaxed));
            let handed_over = (HANDED_OVER, &totals.handed_over, totals.not_carried.total());
            let taken_over = (TAKEN_OVER, &totals.taken_over, totals.not_understood.load(Relaxed));
            for (name, carried, refused) in [handed_over, taken_over] {
                let [connections, tunnels] = carried.counts();
                counter!(name, "kind" => "connection").absolute(connections);
                counter!(name, "kind" => "tunnel").absolute(tunnels);
                counter!(name, "kind" => "refused").absolute(refused);
            }
            counter!(LOST).absolute(logging::lost());
            counter!(ACCESS_LOST).absolute(logging::access_lost());
            gauge!(IN_FLIGHT).set(as_f64(registry.in_flight()));
            for (state, count) in observer.connections().by_state() {
                gauge!(CONNECTIONS, "state" => state.name()).set(as_f64(count));
            }
            for child in observer.supervisor.children() {
                counter!(RESTARTS, "child" => child.name().to_owned()).absolute(child.restarts().into());
            }
            gauge!(READY).set(if observer.lifecycle.phase() == Phase::Serving { 1.0 } else { 0.0 });
            gauge!(STALE).set(if observer.stale_config.is_some() { 1.0 } else { 0.0 });
            gauge!(INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        });
        self.0.handle.render() + &histogram(&observer.registry.totals().durations())
    }
}

/// The durations as a histogram. The recorder takes single durations alone, and these have been counted.
fn histogram(durations: &DurationsView) -> String {
    let mut text = format!(
        "# HELP {DURATION} From a request's head to the last byte of its answer.\n# TYPE {DURATION} histogram\n"
    );
    let mut count = 0;
    let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".into()]);
    for (bound, number) in bounds.zip(durations.buckets) {
        // Each bucket has those below it, too.
        count += number;
        let _ = writeln!(text, "{DURATION}_bucket{{le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(text, "{DURATION}_sum {}\n{DURATION}_count {count}", durations.sum.as_secs_f64());
    text
}

#[expect(clippy::cast_precision_loss, reason = "2^53 connections are not to be expected")]
fn as_f64(n: usize) -> f64 {
    n as f64
}
