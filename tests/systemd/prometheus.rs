//! A real Prometheus that scrapes the daemon over a restart and a reload.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use steadfast_harness::{Client, print_figure, wait_until};

use crate::service::{Service, UNIT};

/// The address on which Prometheus answers, in the box.
const API: &str = "127.0.0.1:9091";

/// The time between two scrapes, which is all that one may take.
const INTERVAL: Duration = Duration::from_secs(4);

/// The rules are those that are shipped.
const CONFIG: &str = r#"
global: { scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 2s }
rule_files: [/usr/lib/prometheus/steadfast.rules.yml]
scrape_configs:
  - job_name: steadfast
    static_configs: [{ targets: ["127.0.0.1:9090"] }]
"#;

/// The program; says that it is not there.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("prometheus")).find(|file| file.exists());
    if found.is_none() {
        let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
        assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there is no `prometheus` in PATH");
        // Past the capture that the test runner puts around `eprintln!`.
        let _ = writeln!(std::io::stderr(), "skipped: {}, because there is no `prometheus` in PATH", file!());
    }
    found
}

/// A Prometheus in the box of a service.
struct Prometheus<'a>(&'a Service);

impl<'a> Prometheus<'a> {
    fn start(service: &'a Service, program: &std::path::Path) -> Self {
        service.copy(program, "/usr/local/bin/prometheus", "0755");
        service.write("/etc/prometheus.yml", CONFIG);
        let command = format!(
            "/usr/local/bin/prometheus --config.file=/etc/prometheus.yml --storage.tsdb.path=/var/lib/prometheus \
             --web.listen-address={API}"
        );
        service.write("/etc/systemd/system/prometheus.service", format!("[Service]\nExecStart={command}\n"));
        service.ok(["systemctl", "daemon-reload"]);
        service.ok(["systemctl", "start", "prometheus.service"]);
        let prometheus = Self(service);
        wait_until("Prometheus to have scraped", || prometheus.try_ask("up").filter(|up| !up.is_empty()));
        prometheus
    }

    /// The series that an expression gives; none while nobody answers.
    fn try_ask(&self, expression: &str) -> Option<Vec<Value>> {
        let encoded = expression.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
        let answer = self.0.enter_network(|| {
            Client::connect(API.parse().expect("an address"))?.get(&format!("/api/v1/query?query={encoded}"))
        });
        let answer: Value = serde_json::from_slice(&answer.ok()?.body).ok()?;
        Some(answer["data"]["result"].as_array()?.clone())
    }

    fn ask(&self, expression: &str) -> Vec<Value> {
        self.try_ask(expression).unwrap_or_else(|| panic!("no answer to {expression}"))
    }

    /// Returns when it has scraped twice more: at least once what has been there all along.
    fn wait_for_scrapes(&self) {
        let scrapes =
            || self.ask("up[10m]").first().map_or(0, |up| up["values"].as_array().map_or(0, Vec::len));
        let before = scrapes();
        wait_until("two scrapes", || (scrapes() >= before + 2).then_some(()));
    }

    /// The one value of an expression, as it is written; none if there is none.
    fn value(&self, expression: &str) -> Option<String> {
        Some(self.ask(expression).first()?["value"][1].as_str()?.to_owned())
    }

    fn wait_for(&self, expression: &str, value: &str) {
        wait_until(&format!("{expression} to be {value}"), || {
            (self.value(expression).as_deref() == Some(value)).then_some(())
        });
    }
}

/// Something of each sample of a series.
fn of_each(series: &Value, what: impl Fn(&Value) -> Option<f64>) -> Vec<f64> {
    let samples = series["values"].as_array().expect("a list of samples");
    samples.iter().map(|sample| what(sample).expect("a number")).collect()
}

#[test]
fn prometheus_sees_one_series_over_a_restart_and_a_reload_and_is_told_of_a_request_that_is_cut() {
    let Some(program) = program() else { return };
    // Longer than the test needs until it asks for the cut by a second reload.
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[handover]\ndeadline = \"5s\"\n")
    else {
        return;
    };
    let prometheus = Prometheus::start(&service, &program);
    let load = service.load(4);
    load.advance(500);
    prometheus.wait_for_scrapes();
    service.restart();
    prometheus.wait_for_scrapes();
    service.reload();
    prometheus.wait_for_scrapes();
    let up = prometheus.ask("up[10m]");
    let took = prometheus.ask("scrape_duration_seconds[10m]");
    assert_eq!(
        prometheus.ask("ALERTS{alertstate=\"firing\"}"),
        [Value::Null; 0],
        "neither a restart nor a reload is worth an alert: {up:?}, {took:?}\n{}",
        service.journal(UNIT, &["-o", "short-unix"])
    );

    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    assert!(client.receive().is_err(), "it is cut at the deadline");
    prometheus.wait_for("sum(steadfast_http_requests_cut_total)", "1");
    prometheus.wait_for("count(ALERTS{alertname=\"SteadfastRequestsCut\",alertstate=\"firing\"})", "1");

    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
    service.wait_for_one_worker();
    // The request that was cut as well.
    prometheus.wait_for("sum(steadfast_http_requests_total)", &(account.answered + 1).to_string());

    let journal = || service.journal(UNIT, &[]);
    assert_eq!(prometheus.value("min(min_over_time(up[10m]))").as_deref(), Some("1"), "{}", journal());
    let counters = prometheus.ask("{__name__=~\"steadfast_.+_(total|bucket|sum|count)\"}[10m]");
    assert!(counters.len() > 20, "{counters:?}");
    for counter in &counters {
        let values: Vec<f64> = of_each(counter, |sample| sample[1].as_str()?.parse().ok());
        assert!(values.is_sorted(), "{} was reset: {values:?}\n{}", counter["metric"], journal());
    }
    let processes = prometheus.value("changes(steadfast_process_start_time_seconds[10m])");
    assert_eq!(processes.as_deref(), Some("3"), "a restart and two reloads");
    let samples = prometheus.ask("steadfast_ready[10m]");
    let times = of_each(&samples[0], |sample| sample[0].as_f64());
    let longest = times.windows(2).map(|two| two[1] - two[0]).fold(0.0, f64::max);
    print_figure(
        "Prometheus over a restart and two reloads",
        format_args!(
            "{} scrapes, one every four seconds, at most {longest:.3} s apart; no counter was reset",
            times.len()
        ),
    );
    // None has failed; Prometheus itself may be late.
    assert!(longest < 5.0 * INTERVAL.as_secs_f64(), "{times:?}");
}
