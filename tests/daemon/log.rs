//! The log on stderr.

use std::process::Command;

use serde_json::Value;
use steadfast_harness::{Client, Daemon, Signal};

use crate::process::{connect, troubled};

fn unchanged(_: &mut Command) {}

/// Runs a service with these keys, asks for these paths, and returns its whole log.
fn log_of(keys: &str, paths: &[(&str, u16)]) -> Vec<String> {
    let mut daemon = troubled(keys, unchanged);
    let mut client = connect(&daemon, "http");
    for (path, status) in paths {
        assert_eq!(client.get(path).unwrap().status, *status, "{path}");
    }
    drop(client);
    stop(&mut daemon)
}

fn stop(daemon: &mut Daemon) -> Vec<String> {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    daemon.stderr().0
}

/// The requests that the access log names.
fn accesses(log: &[String]) -> Vec<&str> {
    log.iter()
        .filter(|line| line.contains("steadfast::access"))
        .map(|line| {
            let path = line.split("GET ").nth(1).expect("it names the request");
            path.split(' ').next().expect("and its path")
        })
        .collect()
}

const PATHS: [(&str, u16); 4] = [("/", 200), ("/nowhere", 404), ("/failure", 500), ("/panic", 500)];

#[test]
fn access_all_logs_every_request() {
    let log = log_of("log.access = \"all\"\n", &PATHS);
    assert_eq!(accesses(&log), ["/", "/nowhere", "/failure", "/panic"], "{log:#?}");
}

#[test]
fn access_errors_logs_those_that_the_server_failed() {
    let log = log_of("log.access = \"errors\"\n", &PATHS);
    assert_eq!(accesses(&log), ["/failure", "/panic"], "{log:#?}");
}

#[test]
fn access_off_logs_none() {
    let log = log_of("log.access = \"off\"\n", &PATHS);
    assert_eq!(accesses(&log), Vec::<&str>::new(), "{log:#?}");
}

#[test]
fn a_request_is_logged_under_the_route_that_answers_it() {
    let keys = "[log]\nformat = \"json\"\naccess = \"all\"\n\
        [[route]]\npath = \"/exact\"\nstatus = true\n[[route]]\npath = \"/below/*\"\nstatus = true\n";
    let mut daemon = troubled(keys, unchanged);
    let listening = daemon.wait_for_line("where it listens", |line| line.contains("\"child\":\"http\""));
    let listening: Value = serde_json::from_str(&listening).unwrap();
    let mut client = Client::connect(listening["address"].as_str().unwrap().parse().unwrap()).unwrap();
    // All at once: the next head may be here before an answer is written.
    let paths = ["/below/x?y", "/exact", "/nowhere", "/below/../exact", "/..", "/below/"];
    let request = |path: &&str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send(paths.iter().map(request).collect::<String>()).unwrap();
    for _ in &paths {
        client.receive().unwrap();
    }
    drop(client);
    let log = stop(&mut daemon);
    let routes: Vec<_> = log
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).expect("an object a line"))
        .filter(|event| event["target"] == "steadfast::access")
        .map(|event| event["route"].as_str().expect("a route").to_owned())
        .collect();
    assert_eq!(routes, ["/below/*", "/exact", "router", "/exact", "none", "/below/*"], "{log:#?}");
}

#[test]
fn a_slow_request_is_logged_whatever_access_says() {
    for access in ["all", "errors", "off"] {
        let keys = format!("log.access = \"{access}\"\nlog.slow = \"20ms\"\n");
        let log = log_of(&keys, &[("/slow", 200)]);
        assert_eq!(accesses(&log), ["/slow"], "{log:#?}");
    }
}

#[test]
fn a_panic_is_logged_with_its_message_and_its_place() {
    let log = log_of("", &[("/panic", 500), ("/", 200)]).join("\n");
    assert!(log.contains("the handler's own words"), "{log}");
    assert!(log.contains("tests/daemon/troubled.rs:"), "{log}");
    let of_request =
        log.lines().find(|line| line.contains("a handler has panicked")).expect("of which request");
    assert!(of_request.contains("path=\"/panic\"") && of_request.contains("request_id="), "{of_request}");
}

#[test]
fn json_is_one_object_a_line_whatever_happens() {
    let mut daemon = troubled("log.format = \"json\"\nlog.access = \"all\"\n", |command| {
        command.env("CHILD", "a\n\"name\"").env("TROUBLE", "fails");
    });
    let listening = daemon.wait_for_line("where it listens", |line| line.contains("\"child\":\"http\""));
    let listening: Value = serde_json::from_str(&listening).unwrap();
    let address = listening["address"].as_str().unwrap().parse().unwrap();
    let mut client = Client::connect(address).unwrap();
    assert_eq!(client.get("/panic?with=%22").unwrap().status, 500);
    drop(client);
    assert_eq!(daemon.wait(), 1, "its child failed too often");
    let log = daemon.stderr().0;
    let events: Vec<Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
        .collect();
    assert!(events.len() > 10, "{log:#?}");
    for event in &events {
        for key in ["timestamp", "level", "message"] {
            assert!(event[key].is_string(), "no {key} in {event}");
        }
    }
    let access = events.iter().find(|e| e["target"] == "steadfast::access").unwrap();
    let fields = ["method", "path", "outcome"].map(|name| access[name].as_str().unwrap());
    assert_eq!(fields, ["GET", "/panic", "answered"]);
    assert_eq!(access["status"], 500);
    assert!(events.iter().any(|e| e["child"] == "a\n\"name\""), "{log:#?}");
}

#[test]
fn level_off_says_nothing_and_level_warn_only_what_was_lost() {
    // Nobody is told the address, so nobody asks.
    for level in ["off", "warn"] {
        let config = crate::process::config(&format!("log.level = \"{level}\"\n"));
        let mut daemon = Daemon::start(crate::process::BINARY, &config);
        assert_eq!(stop(&mut daemon), Vec::<String>::new());
    }
}

#[test]
fn the_fields_of_a_users_spans_are_in_the_log() {
    let log = log_of("", &[("/traced/42", 200)]);
    let line = log.iter().find(|line| line.contains("looked it up")).expect("it is logged");
    assert!(line.contains("traced{id=42 found=true}:step{number=7}: "), "{line}");
}

#[test]
fn the_fields_of_a_users_spans_are_in_the_log_as_json() {
    let mut daemon = troubled("log.format = \"json\"\n", |_| {});
    let listening = daemon.wait_for_line("where it listens", |line| line.contains("\"child\":\"http\""));
    let listening: Value = serde_json::from_str(&listening).unwrap();
    let mut client = Client::connect(listening["address"].as_str().unwrap().parse().unwrap()).unwrap();
    assert_eq!(client.get("/traced/42").unwrap().status, 200);
    drop(client);
    let log = stop(&mut daemon);
    let line = log.iter().find(|line| line.contains("looked it up")).expect("it is logged");
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["spans"][0], serde_json::json!({ "name": "traced", "id": 42, "found": true }));
    assert_eq!(event["span"], serde_json::json!({ "name": "step", "number": 7 }));
}

#[test]
fn a_failure_that_ends_the_service_is_told_once_by_the_worker_and_once_by_the_main_process() {
    // It may end before it serves.
    let config = crate::process::config("supervision.max_restarts = 0\n");
    let program = crate::process::example("troubled");
    let mut daemon = Daemon::spawn_program(program, &[], &config, |command| {
        command.env("CHILD", "worker").env("TROUBLE", "fails");
    });
    assert_eq!(daemon.wait(), 1);
    let log = daemon.stderr().0;
    // In any order, for two processes write.
    let errors = log.iter().filter(|line| line.contains("ERROR"));
    let (giving_up, others): (Vec<_>, Vec<_>) = errors.partition(|line| line.contains("giving up"));
    let [failed] = &others[..] else { panic!("{log:#?}") };
    assert!(failed.contains("worker failed: no luck; it was restarted 0 times"), "{failed}");
    // Where it ended before it served, the main process has nothing to add.
    assert!(giving_up.len() <= 1, "{log:#?}");
}

#[test]
fn an_object_has_the_id_of_its_kind_of_event_and_a_line_of_text_has_no_room_for_it() {
    let text = log_of("log.access = \"all\"\n", &PATHS);
    assert!(text.len() > 5 && !text.iter().any(|line| line.contains("message_id")), "{text:#?}");
    let objects = stop(&mut troubled("log.format = \"json\"\n", unchanged));
    assert!(objects.iter().any(|line| line.contains("\"message_id\":\"")), "{objects:#?}");
}
