//! The operator's tools are told the same that the clients have seen.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use steadfast::Daemon;

use crate::handlers::{Gate, router};
use crate::process::not_shown;
use crate::service::{Service, open_connections};

/// The samples of a scrape, by name and labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            (name, value.parse().expect("a value is a number"))
        })
        .collect()
}

/// A service that has done something of everything, with one request still in flight.
async fn used(gate: &Gate) -> (Service, Vec<crate::client::Client>) {
    let route = gate.route();
    let service = Service::start("", |d: Daemon| d.router(router().route("/gate", route))).await;
    let mut first = service.connect().await;
    for _ in 0..7 {
        assert_eq!(first.get("/").await.unwrap().status, 200);
    }
    for _ in 0..3 {
        assert_eq!(first.get("/nowhere").await.unwrap().status, 404);
    }
    assert_eq!(first.get("/panic").await.unwrap().status, 500);
    let mut leaver = service.connect().await;
    leaver.ask("/never").await;
    service
        .wait_for_status("with the request that will be left", |s| s["requests"][0]["path"] == "/never")
        .await;
    drop(leaver);
    service.wait_for_status("without it", |s| s["totals"]["client_gone"] == 1).await;
    let second = service.held(gate, "/gate?and=query").await;
    (service, vec![first, second])
}

#[tokio::test]
async fn health_is_told_in_words_and_in_status_codes() {
    let service = Service::start("", |daemon| daemon).await;
    for (path, text) in [("/livez", "ok\n"), ("/readyz", "serving\n")] {
        let response = service.admin(path).await;
        assert_eq!((response.status, response.text()), (200, text));
    }
    assert_eq!(service.admin("/nowhere").await.status, 404);
}

#[tokio::test]
async fn the_status_is_what_the_clients_did() {
    let gate = Gate::new();
    let (service, _clients) = used(&gate).await;
    let status = service.status().await;
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], std::process::id());
    assert!(status["uptime"].as_f64().unwrap() > 0.0);
    assert_eq!(status.get("drain"), None);
    let totals = &status["totals"];
    let expected = [("connections", 3), ("requests", 12), ("client_gone", 1), ("broken_off", 0), ("cut", 0)];
    for (name, count) in expected {
        assert_eq!(totals[name], count, "{name} in {totals}");
    }
    assert_eq!(open_connections(&status), 2, "{status}");
    let names: Vec<_> = status["children"]
        .as_array()
        .unwrap()
        .iter()
        .map(|child| {
            assert_eq!((&child["running"], &child["restarts"]), (&json!(true), &json!(0)));
            child["name"].clone()
        })
        .collect();
    assert_eq!(names, ["signals", "http", "admin", "systemd"]);
    let [request] = status["requests"].as_array().unwrap().as_slice() else {
        panic!("{status:#}");
    };
    assert_eq!(request["method"], "GET");
    assert_eq!(request["path"], "/gate");
    assert_eq!(request["peer"], "unix");
    assert_eq!(request["sent"], 0);
    assert_eq!(request["waiting_for"], "the handler");
    assert!(request["age"].as_f64().is_some_and(|age| age >= 0.0));
}

#[tokio::test]
async fn the_metrics_are_what_the_clients_did() {
    let gate = Gate::new();
    let (service, _clients) = used(&gate).await;
    let response = service.admin("/metrics").await;
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(response.text());
    for (name, value) in [
        ("steadfast_http_requests_total{route=\"router\",method=\"GET\",code=\"200\"}", 7.0),
        ("steadfast_http_requests_total{route=\"router\",method=\"GET\",code=\"404\"}", 3.0),
        ("steadfast_http_requests_total{route=\"router\",method=\"GET\",code=\"500\"}", 1.0),
        ("steadfast_http_requests_total{route=\"router\",method=\"GET\",code=\"none\"}", 1.0),
        ("steadfast_http_requests_client_gone_total", 1.0),
        ("steadfast_http_requests_broken_off_total", 0.0),
        ("steadfast_http_requests_cut_total", 0.0),
        ("steadfast_http_requests_in_flight", 1.0),
        ("steadfast_http_request_duration_seconds_count", 12.0),
        ("steadfast_http_request_duration_seconds_bucket{le=\"+Inf\"}", 12.0),
        ("steadfast_http_connections_accepted_total", 3.0),
        ("steadfast_child_restarts_total{child=\"http\"}", 0.0),
        ("steadfast_ready", 1.0),
    ] {
        let found = samples.get(name).copied();
        assert_eq!(found, Some(value), "{name} in:\n{}", response.text());
    }
    let open = samples.iter().filter(|(name, _)| name.starts_with("steadfast_http_connections{"));
    assert_eq!(Some(open.map(|(_, count)| count).sum()), Some(2.0));
    assert!(samples["process_resident_memory_bytes"] > 0.0);
}

#[tokio::test]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    let gate = Gate::new();
    let (service, _clients) = used(&gate).await;
    let scrape = service.admin("/metrics").await;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        not_shown(file!(), "there is no promtool");
        return;
    };
    promtool.stdin.take().unwrap().write_all(&scrape.body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}\n{}",
        String::from_utf8_lossy(&said),
        scrape.text()
    );
}

#[tokio::test]
async fn the_admins_own_requests_do_not_count() {
    let service = Service::start("", |daemon| daemon).await;
    for _ in 0..10 {
        service.admin("/livez").await;
    }
    let status = service.status().await;
    for (name, count) in [("connections", 0), ("requests", 0), ("client_gone", 0)] {
        assert_eq!(status["totals"][name], count, "{name}");
    }
    assert_eq!(status["requests"], Value::Array(Vec::new()));
}
