//! The journal's entries, field by field.

use serde_json::{Value, json};
use steadfast_harness::{build_examples, wait_until, wait_with};

use crate::service::{CONFIG, Service, UNIT};

#[test]
fn the_fields_of_a_users_spans_are_fields_of_their_own_in_the_journal() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    // A service with spans of its own, in place of the binary.
    service.copy(&build_examples(&["--example", "troubled"]).join("troubled"), "/usr/bin/troubled", "0755");
    service.write(CONFIG, "http.listen = [\"127.0.0.1:8080\"]\n");
    service.edit_unit(&format!("ExecStart=\nExecStart=/usr/bin/troubled {CONFIG}"));
    service.ok(["systemctl", "start", UNIT]);
    assert_eq!(service.connect().get("/traced/42").unwrap().status, 200);

    let entry = wait_until("the handler's words in the journal", || {
        let journal = service.journal_json(UNIT, &[]);
        let mut entries = journal.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        entries.find(|entry| entry["MESSAGE"] == "looked it up")
    });
    for (field, value) in [("ID", "42"), ("FOUND", "true"), ("NUMBER", "7")] {
        assert_eq!(entry[field], value, "{field} in {entry:#}");
    }
    assert_eq!(entry["SPAN_NAME"], json!(["traced", "step"]), "{entry:#}");
    assert_eq!(entry["SYSLOG_IDENTIFIER"], "troubled", "`journalctl -t` finds it by its name: {entry:#}");
}

/// The id of an event, by the name of its constant.
fn id(event: &str) -> &'static str {
    let constant = format!("const {event}: &str = \"");
    let (_, rest) = include_str!("../../src/event.rs").split_once(&constant).expect("there is such an event");
    rest.split('"').next().expect("an id")
}

/// The entries of the journal that have this in a field, once there is one.
fn found(service: &Service, matches: &[&str]) -> Vec<Value> {
    let entries = || -> Vec<Value> {
        let journal = service.journal_json(UNIT, matches);
        journal.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    wait_with(
        || Some(entries()).filter(|entries| !entries.is_empty()),
        || format!("{matches:?} in:\n{}", service.journal(UNIT, &["-o", "verbose"])),
    )
}

/// The last entry of an event, with this in one of its fields.
fn event(service: &Service, event: &str, field: &str) -> Value {
    found(service, &[&format!("MESSAGE_ID={}", id(event)), field]).pop().expect("one at least")
}

/// What `journalctl -x` says of an event.
fn explained(service: &Service, event: &str) -> String {
    service.ok([
        "journalctl",
        "--quiet",
        "--no-pager",
        "-x",
        "-u",
        UNIT,
        &format!("MESSAGE_ID={}", id(event)),
    ])
}

#[test]
fn the_events_of_a_services_life_are_found_by_their_ids_and_fields_and_explained() {
    let rest = "[log]\naccess = \"all\"\n[shutdown]\ndeadline = \"1s\"\n[[route]]\npath = \"/app/*\"\n\
        proxy = \"http://127.0.0.1:3000\"\n[[route]]\npath = \"/absent\"\n\
        proxy = { to = \"http://127.0.0.1:9\", retry_for = \"0s\" }\n";
    let Some(service) = Service::install(file!(), rest) else {
        return;
    };
    service.ok(["journalctl", "--update-catalog"]);
    let upstream = service.upstream();
    service.ok(["systemctl", "start", UNIT]);
    event(&service, "STARTING", &format!("CONFIG={CONFIG}"));
    event(&service, "LISTENING", "ADDRESS=127.0.0.1:8080");
    event(&service, "READY", "PHASE=serving");

    // One request, by the id that its client and the upstream know.
    let (mut client, exchange) = service.in_flight(&upstream, "/app/page?q=1");
    let head = exchange.head.to_lowercase();
    exchange.answer(200, "hello");
    let answer = client.receive().expect("an answer");
    let request = format!("REQUEST_ID={}", answer.header("x-request-id").expect("an id"));
    assert!(head.contains(&format!("\r\nx-request-id: {}\r\n", &request["REQUEST_ID=".len()..])), "{head}");
    let [access] = &found(&service, &[&request])[..] else { panic!("more than one event has {request}") };
    for (field, value) in [
        ("MESSAGE_ID", id("ACCESS")),
        ("METHOD", "GET"),
        ("PATH", "/app/page"),
        ("QUERY", "q=1"),
        ("ROUTE", "/app/*"),
        ("STATUS", "200"),
        ("OUTCOME", "answered"),
        ("PRIORITY", "7"),
    ] {
        assert_eq!(access[field], value, "{field} in {access:#}");
    }
    for field in ["DURATION_USEC", "BYTES_SENT"] {
        assert!(access[field].as_str().is_some_and(|n| n.parse::<u64>().is_ok()), "{field} in {access:#}");
    }

    // A failure has two events, of one id.
    let failed = service.connect().get("/absent").expect("an answer");
    assert_eq!(failed.status, 502);
    let failure = event(&service, "UPSTREAM_FAILED", "UPSTREAM=http://127.0.0.1:9");
    assert_eq!(failure["REQUEST_ID"], failed.header("x-request-id").expect("an id"));
    event(&service, "ACCESS", &format!("REQUEST_ID={}", failure["REQUEST_ID"].as_str().expect("a text")));

    // A reload that hands an idle connection over, one that fails, a restart that finds the config broken.
    let idle = service.answered();
    let worker = service.worker_pid();
    service.reload();
    event(&service, "RELOAD_BEGUN", &format!("_PID={}", service.main_pid()));
    event(&service, "WORKER_REPLACED", &format!("PREDECESSOR={worker}"));
    event(&service, "HANDED_OVER", &format!("_PID={worker}"));
    event(&service, "WORKER_FINISHED", &format!("WORKER={worker}"));
    drop(idle);
    service.configure("[shutdown]\ndeadlin = 1\n");
    assert!(!service.run(["systemctl", "reload", UNIT]).status.success());
    let reason = "CAUSE=config.toml:8:1: unknown key \"deadlin\", nearest \"deadline\"";
    event(&service, "RELOAD_FAILED", reason);
    service.restart();
    event(&service, "LAST_GOOD_CONFIG", reason);
    service.configure(rest);
    service.reload();

    // A crash, and a stop that cuts.
    let worker = service.worker_pid();
    service.kill_worker();
    event(&service, "WORKER_ENDED", &format!("WORKER={worker}"));
    service.worker_pid();
    let (_client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.stop();
    event(&service, "STOP_ASKED", "SIGNAL=SIGTERM");
    event(&service, "DRAINING", "IN_FLIGHT=1");
    let cut = event(&service, "REQUEST_CUT", "PATH=/app/slow");
    let id_of_cut = cut["REQUEST_ID"].as_str().expect("a text");
    assert!(exchange.head.to_lowercase().contains(&format!("\r\nx-request-id: {id_of_cut}\r\n")));
    event(&service, "ACCESS", &format!("REQUEST_ID={id_of_cut}"));
    event(&service, "SHUTDOWN_REPORT", "CUT=1");

    // A start with a config that is wrong, which is before there is a log.
    service.configure("[shutdown]\ndeadlin = 1\n");
    assert!(!service.run(["systemctl", "start", UNIT]).status.success());
    event(&service, "CONFIG_REFUSED", reason);

    for (event, words) in [
        ("READY", "Subject: steadfast serves"),
        ("REQUEST_CUT", "It was waiting for the upstream to answer."),
        ("REQUEST_CUT", "raise `deadline` in [shutdown]"),
        ("UPSTREAM_FAILED", "Subject: The upstream http://127.0.0.1:9 has not answered"),
        ("CONFIG_REFUSED", "see with `steadfast check` that it is valid"),
    ] {
        // As journalctl wraps it.
        let text =
            explained(&service, event).split_whitespace().collect::<Vec<_>>().join(" ").replace("░░ ", "");
        assert!(text.contains(words), "{words} in {text}");
        assert!(text.contains("Defined-By: steadfast"), "{text}");
    }
}

#[test]
fn the_troubles_of_a_services_own_code_are_found_by_their_ids_and_fields() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.copy(&build_examples(&["--example", "troubled"]).join("troubled"), "/usr/bin/troubled", "0755");
    service.write(CONFIG, "http.listen = [\"127.0.0.1:8080\"]\nadmin.listen = [\"127.0.0.1:9090\"]\n");
    let start = format!("ExecStart=\nExecStart=/usr/bin/troubled {CONFIG}");
    service.edit_unit(&start);
    service.ok(["systemctl", "start", UNIT]);
    let answer = service.connect().get("/panic").unwrap();
    assert_eq!(answer.status, 500);
    let panic = event(&service, "PANIC", "PRIORITY=3");
    assert!(
        panic["MESSAGE"].as_str().is_some_and(|text| text.contains("the handler's own words")),
        "{panic}"
    );
    let mut blocking = service.connect();
    blocking.ask("/blocks").unwrap();
    let blocked = event(&service, "HANDLER_BLOCKED", "PATH=/blocks");
    assert_eq!(blocked["REQUEST_ID"].as_str().map(str::len), Some(32), "{blocked}");

    service.write(
        CONFIG,
        "http.listen = [\"127.0.0.1:8080\"]\nadmin.listen = []\nsupervision.max_restarts = 1\n",
    );
    service.edit_unit(&format!("{start}\nEnvironment=CHILD=consumer TROUBLE=fails"));
    service.run(["systemctl", "restart", UNIT]);
    event(&service, "CHILD_RESTARTED", "CAUSE=failed: no luck");
    event(&service, "CHILD_GAVE_UP", "CHILD=consumer");
}

#[test]
fn a_flood_of_accesses_uses_up_no_other_events_share_of_the_journal() {
    let Some(service) = Service::install(file!(), "[log]\naccess = \"all\"\n") else {
        return;
    };
    // A share that is used up soon, and stays so for longer than the test takes. journald makes it some times as large
    // where the disk has room.
    service.edit_unit("LogRateLimitIntervalSec=1h\nLogRateLimitBurst=500");
    service.ok(["systemctl", "start", UNIT]);
    let load = service.load(4);
    wait_until("journald to suppress accesses", || {
        load.advance(2000);
        // It says how many once it takes one again, which is not before the hour is over: so it is seen by their absence.
        let accesses = || service.journal(UNIT, &[&format!("MESSAGE_ID={}", id("ACCESS"))]).lines().count();
        let before = accesses();
        load.advance(500);
        (accesses() == before).then_some(())
    });
    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
    // Of level info, as an access is on stderr.
    service.reload();
    event(&service, "RELOAD_BEGUN", "PRIORITY=6");
}
