//! SIGTERM and SIGINT: once to drain, again to cut, a third time to exit at once.

use std::time::{Duration, Instant};

use steadfast_harness::{Client, Daemon, Failure, Signal, print_figure};

use crate::process::{connect, troubled};

/// Nothing but the signals ends this stop.
const NEVER: &str = "shutdown.linger = \"0s\"\nshutdown.deadline = \"never\"\n";
/// How long what happens at once may take on a machine that has much else to do.
const AT_ONCE: Duration = Duration::from_secs(10);

fn wait_for_drain(daemon: &Daemon) {
    daemon.wait_for_line("that it drains", |line| line.contains(" in flight, "));
}

/// A request whose body the test may finish, or not.
fn begin_request(daemon: &Daemon) -> Client {
    let mut client = connect(daemon, "http");
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\nhalf").unwrap();
    client.receive_head().unwrap();
    client
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
    let peer = client.local_address().unwrap().to_string();
    daemon.signal(Signal::TERM);
    wait_for_drain(&daemon);
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);
    print_figure("a cut by a second signal", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE);
    let cut = daemon.wait_for_line("what was cut", |line| line.contains("cut by the second signal"));
    for part in [" WARN ", "POST /echo", &peer, "waiting for the rest of the answer"] {
        assert!(cut.contains(part), "no {part} in {cut}");
    }
    client.take(4).unwrap();
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
        daemon.signal(Signal::STOP);
        std::thread::sleep(Duration::from_secs(6));
        daemon.signal(Signal::CONT);
        // Two more heartbeats, in which the stop looks at its children.
        std::thread::sleep(Duration::from_secs(2));
        client.send("body").unwrap();
        assert_eq!(daemon.wait(), 0);
        assert!(!daemon.stderr().to_string().contains("stuck"), "{}", daemon.stderr());
    }
}

#[test]
fn a_third_signal_exits_at_once_even_while_a_handler_blocks_its_thread() {
    let mut daemon = troubled(NEVER, |_| {});
    let mut client = connect(&daemon, "http");
    client.ask("/blocks").unwrap();
    let mut admin = connect(&daemon, "admin");
    steadfast_harness::wait_until("the request to be in flight", || {
        admin.get("/status").unwrap().text().contains("/blocks").then_some(())
    });
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
    let mut client = connect(&daemon, "http");
    client.ask("/blocks").unwrap();
    let mut admin = connect(&daemon, "admin");
    steadfast_harness::wait_until("the request to be in flight", || {
        admin.get("/status").unwrap().text().contains("/blocks").then_some(())
    });
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
