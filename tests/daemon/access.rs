//! The access log's formats and its file, and the ids by which its requests are found.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use steadfast_harness::{Client, Daemon, Signal, Upstream, wait_until};

use crate::process::{BINARY, config, connect, serving, troubled};

/// The binary with these lines in its config, once it serves.
fn steadfast(lines: &str) -> Daemon {
    let daemon = Daemon::spawn(BINARY, &config(lines));
    serving(&daemon);
    daemon
}

/// Stops it, and returns its whole log.
fn stop(mut daemon: Daemon) -> Vec<String> {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    daemon.stderr().0
}

fn is_fresh(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

const RESPOND: &str = "[[route]]\npath = \"/*\"\nrespond = \"hello\"\n";

// ---- ids ---------------------------------------------------------------------------------------------------------

#[test]
fn every_answer_has_an_id_of_its_own_also_of_pipelined_requests_and_the_log_has_the_same() {
    const REQUESTS: usize = 200;
    let daemon = steadfast(&format!("log.access = \"all\"\nlog.format = \"json\"\n{RESPOND}"));
    let address = daemon.wait_for_line("where it listens", |line| line.contains("\"child\":\"http\""));
    let address: Value = serde_json::from_str(&address).unwrap();
    let mut client = Client::connect(address["address"].as_str().unwrap().parse().unwrap()).unwrap();
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n".repeat(REQUESTS)).unwrap();
    let answered: Vec<_> =
        (0..REQUESTS).map(|_| client.receive().unwrap().header("x-request-id").unwrap().to_owned()).collect();
    drop(client);
    assert!(answered.iter().all(|id| is_fresh(id)), "{answered:?}");
    assert_eq!(answered.iter().collect::<HashSet<_>>().len(), REQUESTS);
    let log = stop(daemon);
    let events = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let accesses = events.filter(|event| event["target"] == "steadfast::access");
    let logged: Vec<_> = accesses.map(|event| event["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(logged, answered, "in their order");
}

#[test]
fn an_answer_that_no_route_has_made_has_an_id_as_well() {
    let daemon = steadfast("");
    for (request, status) in [
        ("GET /none HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        ("GET /../.. HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", 413),
    ] {
        let mut client = connect(&daemon, "http");
        client.send(request).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.header("x-request-id").is_some_and(is_fresh), "{request}: {answer:?}");
    }
}

#[test]
fn the_upstream_gets_the_id_of_the_answer_and_a_trace_that_begins_with_it() {
    let upstream = Upstream::start();
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let daemon = steadfast(&route);
    let mut client = connect(&daemon, "http");
    // From a client that nobody trusts.
    client
        .send("GET /a HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\nX_Request_Id: mine\r\nTracestate: a=1\r\n\r\n")
        .unwrap();
    let mut exchange = upstream.next_request();
    let head = exchange.head.to_lowercase();
    exchange.send("HTTP/1.1 200 OK\r\nX-Request-Id: the-upstreams\r\nContent-Length: 2\r\n\r\nok");
    let answer = client.receive().unwrap();
    drop(exchange);
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert!(is_fresh(&id), "{id}");
    assert!(head.contains(&format!("\r\nx-request-id: {id}\r\n")), "{head}");
    assert!(head.contains(&format!("\r\ntraceparent: 00-{id}-")) && !head.contains("tracestate"), "{head}");
    assert!(!head.contains("mine") && !format!("{answer:?}").contains("the-upstreams"), "{head}\n{answer:?}");

    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n";
    client.send(format!("GET /b HTTP/1.1\r\nHost: h\r\n{trace}\r\n")).unwrap();
    let exchange = upstream.next_request();
    for line in trace.lines() {
        assert!(exchange.head.contains(line), "{}", exchange.head);
    }
    exchange.answer(200, "ok");
    client.receive().unwrap();
}

#[test]
fn the_id_of_a_trusted_proxy_is_kept_if_it_can_be() {
    let lines = format!("http.trusted_proxies = [\"127.0.0.1\"]\nlog.access = \"all\"\n{RESPOND}");
    let daemon = steadfast(&lines);
    let mut client = connect(&daemon, "http");
    for (sent, kept) in [("from/the-edge", true), ("two words", false)] {
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: {sent}\r\n\r\n")).unwrap();
        let answer = client.receive().unwrap();
        let id = answer.header("x-request-id").unwrap();
        assert!(if kept { id == sent } else { is_fresh(id) }, "{id}");
    }
    drop(client);
    let log = stop(daemon).join("\n");
    assert!(log.contains("request_id=\"from/the-edge\"") && !log.contains("two words"), "{log}");
}

#[test]
fn a_users_router_gets_the_id_and_the_trace_and_the_status_has_the_id() {
    let daemon = troubled("", |_| {});
    let mut waiting = connect(&daemon, "http");
    waiting.ask("/never").unwrap();
    let status = wait_until("the request to be in flight", || {
        let status = connect(&daemon, "admin").get("/status").unwrap();
        let status: Value = serde_json::from_slice(&status.body).unwrap();
        status["requests"][0]["id"].is_string().then_some(status)
    });
    assert!(is_fresh(status["requests"][0]["id"].as_str().unwrap()), "{status}");
    let answer = connect(&daemon, "http").get("/identity").unwrap();
    let (id, trace) =
        answer.text().split_once(' ').map(|(id, trace)| (id.to_owned(), trace.to_owned())).unwrap();
    assert_eq!(answer.header("x-request-id"), Some(&*id));
    assert!(trace.starts_with(&format!("00-{id}-")), "{trace}");
}

// ---- formats -----------------------------------------------------------------------------------------------------

/// The lines of a file, once there are so many.
fn lines(file: &Path, number: usize) -> Vec<String> {
    wait_until(&format!("{number} lines in {}", file.display()), || {
        let text = fs::read_to_string(file).ok()?;
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        (lines.len() >= number).then_some(lines)
    })
}

fn ask(daemon: &Daemon, path: &str) {
    let mut client = connect(daemon, "http");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nReferer: http://\"here\"/\r\nUser-Agent: tests/1\r\n\r\n");
    client.send(request).unwrap();
    client.receive().unwrap();
}

#[test]
fn a_combined_line_has_the_bodys_size_and_what_the_client_says_of_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    // The level is that of events, and these are none.
    let daemon = steadfast(&format!(
        "log = {{ access = \"all\", access_format = \"combined\", access_file = {file:?} }}\n{RESPOND}"
    ));
    ask(&daemon, "/x?y=%22");
    let line = lines(&file, 1).remove(0);
    let (before, after) = line.split_once('[').unwrap();
    let after = after.split_once(']').unwrap().1;
    assert_eq!(before, "127.0.0.1 - - ");
    assert_eq!(after, r#" "GET /x?y=%22 HTTP/1.1" 200 5 "http://\x22here\x22/" "tests/1""#);
    let log = stop(daemon);
    assert!(!log.iter().any(|line| line.contains("steadfast::access")), "{log:#?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn json_lines_on_stderr_have_the_fields_of_the_event() {
    let daemon = steadfast(&format!("log = {{ access = \"all\", access_format = \"json\" }}\n{RESPOND}"));
    ask(&daemon, "/x?y");
    let log = stop(daemon);
    let line = log.iter().find(|line| line.starts_with('{')).expect("a line");
    let access: Value = serde_json::from_str(line).unwrap();
    for (field, value) in [
        ("method", "GET"),
        ("path", "/x"),
        ("query", "y"),
        ("route", "/*"),
        ("outcome", "answered"),
        ("referer", "http://\"here\"/"),
        ("user_agent", "tests/1"),
    ] {
        assert_eq!(access[field], value, "{line}");
    }
    assert!(access["time"].as_str().unwrap().ends_with('Z') && access["request_id"].is_string(), "{line}");
    assert!(access["status"] == 200 && access["duration_usec"].is_u64() && access["bytes_sent"].is_u64());
}

#[test]
fn errors_and_slow_requests_alone_are_lines_where_the_config_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let daemon = troubled(
        &format!("log = {{ slow = \"400ms\", access_format = \"combined\", access_file = {file:?} }}\n"),
        |_| {},
    );
    for path in ["/", "/failure", "/slow"] {
        ask(&daemon, path);
    }
    stop(daemon);
    let paths: Vec<_> =
        lines(&file, 2).iter().map(|line| line.split(' ').nth(6).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/failure", "/slow"]);
}

// ---- the file ----------------------------------------------------------------------------------------------------

fn reload(daemon: &Daemon) -> std::process::Output {
    let mut command = Command::new(BINARY);
    command.arg("reload").env("RUNTIME_DIRECTORY", daemon.control_socket().parent().unwrap());
    command.output().unwrap()
}

#[test]
fn a_reload_opens_the_file_anew_and_no_line_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (file, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let daemon = steadfast(&format!(
        "log = {{ access = \"all\", access_format = \"combined\", access_file = {file:?} }}\n{RESPOND}"
    ));
    ask(&daemon, "/before");
    // As logrotate does it.
    lines(&file, 1);
    fs::rename(&file, &moved).unwrap();
    ask(&daemon, "/between");
    let reloaded = reload(&daemon);
    assert!(reloaded.status.success(), "{reloaded:?}");
    ask(&daemon, "/after");
    stop(daemon);
    let paths = |file| -> Vec<_> {
        lines(file, 1).iter().map(|line| line.split(' ').nth(6).unwrap().to_owned()).collect()
    };
    assert_eq!(
        (paths(&moved), paths(&file)),
        (vec!["/before".into(), "/between".into()], vec!["/after".into()])
    );
}

#[test]
fn a_file_that_cannot_be_opened_refuses_a_start_and_a_reload_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logs/access.log");
    let lines = format!("log = {{ access_format = \"json\", access_file = {file:?} }}\n{RESPOND}");
    let mut refused = Daemon::spawn(BINARY, &config(&lines));
    assert_eq!(refused.wait(), 1);
    let said = refused.stderr().to_string();
    for expected in [file.to_str().unwrap(), "make its directory", "ERROR"] {
        assert!(said.contains(expected), "{expected} in {said}");
    }

    fs::create_dir(file.parent().unwrap()).unwrap();
    let daemon = steadfast(&lines);
    let worker = daemon.worker();
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    let reloaded = reload(&daemon);
    assert!(!reloaded.status.success(), "{reloaded:?}");
    let said = String::from_utf8_lossy(&reloaded.stderr);
    assert!(said.contains("cannot open the access log") && said.contains("make its directory"), "{said}");
    assert_eq!(daemon.worker(), worker, "the old one goes on");
    assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 200);
}

#[test]
fn a_pipe_gets_lines_while_somebody_reads_it_and_refuses_a_start_while_nobody_does() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let config_of_it =
        format!("log = {{ access = \"all\", access_format = \"json\", access_file = {pipe:?} }}\n{RESPOND}");
    let mut refused = Daemon::spawn(BINARY, &config(&config_of_it));
    assert_eq!(refused.wait(), 1);
    let said = refused.stderr().to_string();
    assert!(said.contains("nobody reads this pipe"), "{said}");

    // For writing as well, so that to open it does not wait for the daemon.
    let reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let daemon = steadfast(&config_of_it);
    ask(&daemon, "/x");
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.contains("\"path\":\"/x\""), "{line}");
}

// ---- hosts -------------------------------------------------------------------------------------------------------

#[test]
fn routes_of_one_path_are_told_apart_by_their_hosts_in_the_log_and_the_metrics() {
    let daemon = steadfast(
        "log.access = \"all\"\n[[route]]\nhost = [\"example.org\", \"*.example.org\"]\npath = \"/*\"\nrespond = \"a\"\n\
         [[route]]\npath = \"/*\"\nrespond = \"b\"\n",
    );
    let mut client = connect(&daemon, "http");
    for (host, body) in [("example.org", "a"), ("www.EXAMPLE.org:80", "a"), ("example.net", "b")] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
        assert_eq!(client.receive().unwrap().body, body.as_bytes(), "{host}");
    }
    let mut admin = connect(&daemon, "admin");
    let counted = |route, number| {
        format!("steadfast_http_requests_total{{route=\"{route}\",method=\"GET\",code=\"200\"}} {number}\n")
    };
    // A request is counted once its answer is written whole, which may be after the client has it.
    wait_until("all requests are counted", || {
        admin.send("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let metrics = String::from_utf8(admin.receive().unwrap().body).unwrap();
        let are_counted =
            metrics.contains(&counted("example.org/*", 2)) && metrics.contains(&counted("/*", 1));
        are_counted.then_some(())
    });
    drop((client, admin));
    let log = stop(daemon).join("\n");
    assert_eq!(log.matches("route=\"example.org/*\"").count(), 2, "{log}");
    assert_eq!(log.matches("route=\"/*\"").count(), 1, "{log}");
}
