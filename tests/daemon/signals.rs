//! SIGTERM and SIGINT: once to drain, again to cut, a third time to exit at once.

use std::time::{Duration, Instant};

use steadfast_harness::{Client, Daemon, Failure, Signal, print_figure, raise_descriptor_limit, wait_until};

use crate::process::{begin_upload, connect, troubled};

/// Nothing but the signals ends this stop.
const NEVER: &str = "shutdown.linger = \"0s\"\nshutdown.deadline = \"never\"\n";
/// The longest that something immediate may take on a machine that has much else to do.
const AT_ONCE: Duration = Duration::from_secs(10);

fn wait_for_drain(daemon: &Daemon) {
    daemon.wait_for_line("that it drains", |line| line.contains(" in flight, "));
}

/// A request whose body the test may finish, or not.
fn begin_request(daemon: &Daemon) -> Client {
    let mut client = begin_upload(daemon, 8);
    client.send("half").unwrap();
    client
}

/// A request whose handler holds its thread and never answers.
fn block_a_thread(daemon: &Daemon) -> Client {
    let mut client = connect(daemon, "http");
    client.ask("/blocks").unwrap();
    wait_for_status(daemon, "/blocks");
    client
}

fn wait_for_status(daemon: &Daemon, part: &str) {
    let mut admin = connect(daemon, "admin");
    wait_until(part, || admin.get("/status").unwrap().text().contains(part).then_some(()));
}

#[test]
fn a_signal_lets_the_request_in_flight_finish_and_the_exit_code_is_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = troubled(NEVER, |_| {});
        let mut client = begin_request(&daemon);
        daemon.signal(signal);
        wait_for_drain(&daemon);
        client.send("half").unwrap();
        assert_eq!(client.take(8).unwrap(), b"halfhalf");
        assert_eq!(daemon.wait(), 0);
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        daemon.wait_for_line("the report", |line| line.contains(&format!("stopped by {name} in")));
    }
}

#[test]
fn the_same_signal_again_cuts_at_once_names_what_it_cut_and_the_exit_code_is_3() {
    let mut daemon = troubled(NEVER, |_| {});
    let mut client = begin_request(&daemon);
    assert_eq!(client.take(4).unwrap(), b"half");
    wait_for_status(&daemon, "the client to send the body");
    let peer = client.local_address().unwrap().to_string();
    daemon.signal(Signal::TERM);
    wait_for_drain(&daemon);
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);
    print_figure("a cut by a second signal", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE);
    let cut = daemon.wait_for_line("what was cut", |line| line.contains("cut by the second signal"));
    for part in [" WARN ", "POST /echo", &peer, "waiting for the client to send the body"] {
        assert!(cut.contains(part), "no {part} in {cut}");
    }
    assert!(matches!(client.take(1), Err(Failure::Closed)));
}

#[test]
fn the_deadline_cuts_by_itself_and_the_exit_code_is_3() {
    let mut daemon = troubled("shutdown.linger = \"0s\"\nshutdown.deadline = \"500ms\"\n", |_| {});
    let _client = begin_request(&daemon);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);
    daemon.wait_for_line("what was cut", |line| line.contains("cut by the deadline: POST /echo"));
}

#[test]
fn a_drain_that_stood_still_as_a_whole_goes_on() {
    for _ in 0..3 {
        let mut daemon = troubled(NEVER, |_| {});
        let mut client = begin_request(&daemon);
        daemon.signal(Signal::TERM);
        wait_for_drain(&daemon);
        // Longer than a child may be still before a stop goes on without it: time itself is the test.
        daemon.signal_all(Signal::STOP);
        std::thread::sleep(Duration::from_secs(6));
        daemon.signal_all(Signal::CONT);
        // Two more heartbeats, in which the stop looks at its children.
        std::thread::sleep(Duration::from_secs(2));
        client.send("body").unwrap();
        assert_eq!(daemon.wait(), 0);
        assert!(!daemon.stderr().to_string().contains("stuck"), "{}", daemon.stderr());
    }
}

#[test]
fn a_deadline_that_passes_while_all_stands_still_cuts_by_name_and_nobody_is_killed() {
    let mut daemon = troubled("shutdown.linger = \"0s\"\nshutdown.deadline = \"500ms\"\n", |_| {});
    let _client = begin_request(&daemon);
    daemon.signal(Signal::TERM);
    wait_for_drain(&daemon);
    // Longer than the deadline and the time that the main process allows beyond it: time itself is the test.
    daemon.signal_all(Signal::STOP);
    std::thread::sleep(Duration::from_secs(6));
    daemon.signal_all(Signal::CONT);
    assert_eq!(daemon.wait(), 3);
    for line in ["cut by the deadline: POST /echo", "stopped by SIGTERM in"] {
        daemon.wait_for_line(line, |written| written.contains(line));
    }
    assert!(!daemon.stderr().to_string().contains("killing it"), "{}", daemon.stderr());
}

#[test]
fn a_third_signal_exits_at_once_even_while_a_handler_blocks_its_thread() {
    let mut daemon = troubled(NEVER, |_| {});
    let _client = block_a_thread(&daemon);
    daemon.signal(Signal::TERM);
    wait_for_drain(&daemon);
    daemon.signal(Signal::TERM);
    daemon.wait_for_line("the second", |line| line.contains("SIGTERM again"));
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);
    print_figure("an exit by a third signal", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE);
}

#[test]
fn a_blocked_thread_cannot_hold_a_stop_beyond_its_deadline() {
    let mut daemon = troubled("shutdown.linger = \"0s\"\nshutdown.deadline = \"500ms\"\n", |_| {});
    let _client = block_a_thread(&daemon);
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    daemon.wait_for_line("what was cut", |line| line.contains("cut by the deadline: GET /blocks"));
}

#[test]
fn a_signal_during_an_idle_moment_stops_at_once() {
    let mut daemon = troubled("", |_| {});
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    print_figure("SIGTERM to exit, idle", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE);
}

#[test]
fn whoever_had_connected_and_asked_before_the_signal_is_answered_however_many_wait_in_the_backlog() {
    const WAITING: usize = 1000;
    raise_descriptor_limit(WAITING as u64 + 1000);
    let mut daemon = troubled(&format!("{NEVER}http.max_connections = 1\n"), |_| {});
    let mut first = begin_request(&daemon);
    let mut waiting: Vec<Client> = (0..WAITING).map(|_| connect(&daemon, "http")).collect();
    for client in &mut waiting {
        client.ask("/").unwrap();
    }
    daemon.signal(Signal::TERM);
    let lost: Vec<String> = waiting
        .iter_mut()
        .filter_map(|client| match client.receive() {
            Ok(answer) => (answer.status != 200).then(|| answer.status.to_string()),
            Err(failure) => Some(failure.to_string()),
        })
        .collect();
    assert!(lost.is_empty(), "{} of {WAITING}, the first: {}", lost.len(), lost[0]);
    first.send("half").unwrap();
    assert_eq!(first.take(8).unwrap(), b"halfhalf");
    assert_eq!(daemon.wait(), 0);
}
