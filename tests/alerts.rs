//! The alerts, and the dashboard, ask for what there is: metrics that `docs/metrics.md` lists, in expressions that Prometheus
//! understands.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const METRICS: &str = include_str!("../docs/metrics.md");
const JOURNAL: &str = include_str!("../docs/journal.md");
const OPERATIONS: &str = include_str!("../docs/operations.md");

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(shipped(path)).expect("it is shipped")
}

/// The names under which the documented metrics are asked for.
fn documented() -> BTreeSet<String> {
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.flat_map(|row| {
        let (name, rest) = row.split_once("` | ").expect("a name and a type");
        let parts: &[_] = if rest.starts_with("histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
        parts.iter().map(move |part| format!("{name}{part}"))
    });
    names.collect()
}

/// The names of ours in a text, and those that every process has.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let is_metric = |word: &&str| word.starts_with("steadfast_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

fn assert_documented(text: &str) -> BTreeSet<String> {
    let (named, documented) = (named(text), documented());
    assert!(documented.len() > 20 && named.len() > 5, "{named:?} of {documented:?}");
    let unknown: Vec<_> = named.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    named
}

/// Every value of a key in a JSON document.
fn values<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|value| values(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|item| values(item, key, found)),
        _ => {}
    }
}

/// Runs `promtool` in the folder of the shipped rules, or says that it is not there.
fn promtool(args: &[&str]) {
    let output = Command::new("promtool").args(args).current_dir(shipped("prometheus")).output();
    let Ok(output) = output else {
        let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
        assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there is no `promtool` in PATH");
        // Past the capture that the test runner puts around `eprintln!`.
        let _ =
            writeln!(std::io::stderr(), "not shown: {}, for there is no `promtool` in PATH", args.join(" "));
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
}

#[test]
fn the_alerts_ask_for_documented_metrics_and_each_fires_when_it_should() {
    assert_documented(&read("prometheus/steadfast.rules.yml"));
    promtool(&["check", "rules", "steadfast.rules.yml"]);
    promtool(&["test", "rules", "steadfast.rules.test.yml"]);
    let (rules, tests) =
        (read("prometheus/steadfast.rules.yml"), read("prometheus/steadfast.rules.test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = tests.lines().any(|line| line.trim() == format!("alertname: {alert}"));
        assert!(fires, "nothing shows that {alert} fires");
    }
    let ids: Vec<_> = rules.split("MESSAGE_ID=").skip(1).filter_map(|rest| rest.get(..32)).collect();
    assert!(!ids.is_empty(), "an alert names the events to look for");
    for id in ids {
        assert!(JOURNAL.contains(id), "{id} is not in docs/journal.md");
    }
}

#[test]
fn the_dashboard_asks_for_documented_metrics_in_expressions_that_prometheus_understands() {
    let text = read("grafana/steadfast.json");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let mut expressions = Vec::new();
    values(&dashboard, "expr", &mut expressions);
    let shown = assert_documented(&expressions.join("\n"));
    assert_documented(&text);
    let missing: Vec<_> = documented().into_iter().filter(|name| name.starts_with("steadfast_")).collect();
    let missing: Vec<_> = missing.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "not on the dashboard: {missing:?}");

    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, expression) in expressions.iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "1m").replace("$__range", "1h");
        let expression = serde_json::to_string(&expression).expect("a string");
        writeln!(rules, "      - {{ record: \"expression:{number}\", expr: {expression} }}")
            .expect("a string");
    }
    let file = tempfile::NamedTempFile::with_suffix(".yml").expect("a file");
    fs::write(file.path(), rules).expect("it can be written");
    promtool(&["check", "rules", file.path().to_str().expect("a path in UTF-8")]);
}

#[test]
fn the_runbook_says_what_to_do_at_each_alert() {
    let rules = read("prometheus/steadfast.rules.yml");
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let rows: BTreeSet<&str> = OPERATIONS
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once("` | ")?.0))
        .filter(|name| name.starts_with("Steadfast"))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, rows);
}
