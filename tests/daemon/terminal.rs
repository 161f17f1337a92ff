//! Requests on an operator's terminal: they are shown as text, and not too much of it.

use std::process::{Command, Output};

use steadfast_harness::{Client, Daemon, Signal, Upstream};

use crate::process::{BINARY, connect, serving};

/// Characters that a terminal would obey: CSI in one character (ECMA-48, 5.4), a right-to-left override (UAX #9).
const HOSTILE: &str = "/app/\u{9b}31m\u{202e}";

/// It, as it is to be shown.
const SHOWN: &str = r"/app/\u{9b}31m\u{202e}";

/// A daemon with a proxy, whose access log is whole.
fn start(upstream: &Upstream, keys: &str) -> Daemon {
    let daemon = Daemon::spawn(
        BINARY,
        &format!(
            "http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.1:0\"]\nlog.access = \"all\"\n{keys}\n\
             [[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n",
            upstream.address()
        ),
    );
    serving(&daemon);
    daemon
}

/// Asks by `GET /path`, or by another method.
fn ask(daemon: &Daemon, request: &str) -> Client {
    let mut client = connect(daemon, "http");
    client.send(format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n")).unwrap();
    client
}

/// `steadfast status`, as the daemon's operator calls it.
fn status(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    command.arg("status").args(arguments).env("RUNTIME_DIRECTORY", daemon.folder().join("run"));
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn assert_harmless(what: &str, text: &str) {
    let harmful = |char: &char| (char.is_control() && *char != '\n') || *char == '\u{202e}';
    assert_eq!(text.chars().find(harmful), None, "{what}: {text:?}");
}

#[test]
fn no_request_can_drive_the_operators_terminal() {
    let upstream = Upstream::start();
    let mut daemon = start(&upstream, "shutdown.deadline = \"2s\"");
    let _answered = ask(&daemon, &format!("GET {HOSTILE}"));
    upstream.next_request().answer(200, "");
    daemon.wait_for_line("of the access", |line| line.contains("steadfast::access"));
    let _waiting = ask(&daemon, &format!("GET {HOSTILE}"));
    let _exchange = upstream.next_request();

    let admin = connect(&daemon, "admin").get("/status").unwrap().text();
    for (what, text) in [
        ("status", status(&daemon, &[])),
        ("status --json", status(&daemon, &["--json"])),
        ("/status", admin),
    ] {
        assert_harmless(what, &text);
        assert!(text.replace(r"\\", r"\").contains(SHOWN), "{what}: {text}");
    }
    daemon.signal(Signal::TERM);
    let draining = daemon.wait_for_notification("the drain", |text| text.contains("oldest GET"));
    assert_harmless("STATUS", &draining.text);
    assert!(draining.text.contains(SHOWN), "{}", draining.text);
    assert_eq!(daemon.wait(), 3);
    let log = daemon.stderr().to_string();
    assert_harmless("the log", &log);
    for event in ["cut by the deadline: GET ", "steadfast::access: GET "] {
        assert!(log.contains(&format!("{event}{SHOWN}")), "no {event} in:\n{log}");
    }
}

/// What is shown of a long request, and behind it: of each of these words at least.
fn assert_shown_in_part(request: &str, words: &[&str]) {
    /// More than a path and a query of 1 KiB each, in a message and in fields.
    const LONGEST: usize = 5 << 10;
    let upstream = Upstream::start();
    let mut daemon = start(&upstream, "shutdown.deadline = \"2s\"");
    let _answered = ask(&daemon, request);
    upstream.next_request().answer(200, "");
    let _waiting = ask(&daemon, request);
    let exchange = upstream.next_request();
    assert!(exchange.head.contains(request), "the upstream gets all of it");
    let shows = |text: &str| words.iter().all(|word| text.contains(word));
    let text = status(&daemon, &[]);
    assert!(text.len() < LONGEST && shows(&text), "{} bytes: {text}", text.len());
    daemon.signal(Signal::TERM);
    // The text behind the request is not pushed off the line.
    daemon.wait_for_notification("the drain", |text| {
        text.contains("oldest ") && shows(text) && text.contains("s left")
    });
    assert_eq!(daemon.wait(), 3);
    for event in ["steadfast::access", "cut by the deadline"] {
        let line = daemon.wait_for_line("of the event", |line| line.contains(event));
        assert!(line.len() < LONGEST && shows(&line), "{} bytes: {line}", line.len());
    }
}

#[test]
fn a_long_path_is_shown_in_part_and_that_it_is_shows() {
    let long = format!("GET /begin{}end?{}", "a".repeat(30_000), "b".repeat(30_000));
    assert_shown_in_part(&long, &["GET /begin", " B more)"]);
}

#[test]
fn a_long_method_is_shown_in_part_and_that_it_is_shows() {
    assert_shown_in_part(&format!("BEGIN{} /path", "A".repeat(60_000)), &["BEGIN", " B more)", "/path"]);
}

#[test]
fn a_failing_upstream_does_not_bring_a_long_method_into_the_log() {
    let upstream = Upstream::start();
    let daemon = start(&upstream, "");
    let _refused = ask(&daemon, &format!("BEGIN{} /path", "A".repeat(60_000)));
    upstream.next_request().send("no HTTP\r\n\r\n");
    let line = daemon.wait_for_line("of the failure", |line| line.contains("proxied request failed"));
    assert!(line.len() < 2 << 10 && line.contains(" B more)"), "{} bytes: {line}", line.len());
}
