//! The main process as PID 1 of a container, without systemd; and the stop of a worker below one.

use std::path::Path;
use std::process::Command;

use steadfast_harness::{Client, Daemon, Exchange, Load, Signal, Upstream, print_figure, wait_until};

use crate::process::{BINARY, children, config, connect, kill, not_shown, serving, troubled};

const CLIENTS: usize = 20;

const ROUTE: &str = "http.requests_per_connection = 1000000000\n[[route]]\npath = \"/*\"\nstatus = true\n";

/// A daemon in a PID namespace of its own, where its main process is the first.
struct Container {
    /// `unshare`, which waits outside.
    daemon: Daemon,
    /// The main process, as numbered outside.
    main: u32,
}

impl Container {
    /// Starts one; says why if this machine has no namespaces for it.
    fn start(lines: &str, adjust: impl FnOnce(&mut Command)) -> Option<Self> {
        let namespace = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        let allowed = Command::new("unshare").args(namespace).arg("true").output();
        if !allowed.is_ok_and(|output| output.status.success()) {
            let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
            assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there are no PID namespaces");
            not_shown(file!(), "only root makes PID namespaces, with unshare(1)");
            return None;
        }
        let arguments = [&namespace[..], &[BINARY, "run", "--config"]].concat();
        let daemon = Daemon::spawn_program("unshare", &arguments, &config(lines), adjust);
        serving(&daemon);
        let main = wait_until("the main process", || children(daemon.pid()).pop());
        Some(Self { daemon, main })
    }

    /// The worker that was started last.
    fn worker(&self) -> u32 {
        wait_until("a worker", || children(self.main).pop())
    }

    fn load(&self) -> Load {
        let load = Load::start(CLIENTS, self.daemon.address("http"), "/");
        load.advance(500);
        load
    }

    /// Returns once the log has so many lines with this in them.
    fn wait_for_lines(&self, count: usize, what: &str) {
        wait_until(what, || {
            let lines = self.daemon.stderr().0;
            (lines.iter().filter(|line| line.contains(what)).count() >= count).then_some(())
        });
    }

    /// Returns once the main process has this child alone; one that has ended and is not reaped would be another.
    fn wait_for_only(&self, child: u32) {
        wait_until("the others to be gone", || (children(self.main) == [child]).then_some(()));
    }
}

#[test]
fn in_a_container_ten_hangups_under_load_refuse_drop_and_close_nothing() {
    // A runtime may pass one on, though nobody there adopts another process.
    for has_notify_socket in [false, true] {
        let started = Container::start(ROUTE, |command| {
            if !has_notify_socket {
                command.env_remove("NOTIFY_SOCKET");
            }
        });
        let Some(container) = started else { return };
        let load = container.load();
        for reload in 1..=10 {
            kill("HUP", container.main);
            container.wait_for_lines(reload, "takes over from worker");
            load.advance(200);
        }
        let longest = load.longest_wait();
        let account = load.finish();
        print_figure(
            "ten hangups in a container under load",
            format_args!("{account}; longest wait {} ms", longest.as_millis()),
        );
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{account}\n{}", container.daemon.stderr());
        container.wait_for_only(container.worker());
    }
}

#[test]
fn in_a_container_a_worker_that_crashes_is_replaced_and_nobody_is_refused() {
    let Some(container) = Container::start(ROUTE, |_| {}) else { return };
    let load = container.load();
    for _ in 0..3 {
        let worker = container.worker();
        kill("KILL", worker);
        wait_until("another worker", || Some(container.worker()).filter(|next| *next != worker));
        load.advance(200);
    }
    let account = load.finish();
    print_figure("three crashes of the worker in a container under load", &account);
    assert_eq!(account.refused, 0, "{account}\n{}", container.daemon.stderr());
    assert!(account.dropped <= 3 * CLIENTS as u64, "{account}");
    container.wait_for_only(container.worker());
}

#[test]
fn in_a_container_the_main_process_reaps_orphans() {
    let Some(container) = Container::start(ROUTE, |_| {}) else { return };
    let worker = container.worker();
    let main = container.main.to_string();
    let orphan = "sleep 1000 > /dev/null 2>&1 &";
    let status =
        Command::new("nsenter").args(["--target", &main, "--pid", "sh", "-c", orphan]).status().unwrap();
    assert!(status.success());
    let orphan = wait_until("the orphan to have another parent", || {
        children(container.main).into_iter().find(|child| *child != worker)
    });
    kill("KILL", orphan);
    wait_until("the orphan to be reaped", || (!Path::new(&format!("/proc/{orphan}")).exists()).then_some(()));
    assert_eq!(connect(&container.daemon, "http").get("/").unwrap().status, 200);
    container.wait_for_only(worker);
}

#[test]
fn in_a_container_a_stop_finishes_what_is_in_flight_and_ends_with_0() {
    let upstream = Upstream::start();
    let proxy = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let Some(mut container) = Container::start(&proxy, |_| {}) else { return };
    let ask = |container: &Container| {
        let mut client = Client::connect(container.daemon.address("http")).unwrap();
        client.ask("/slow").unwrap();
        (client, upstream.next_request())
    };
    // One of a predecessor, and one of the worker that serves.
    let first = ask(&container);
    kill("HUP", container.main);
    container.wait_for_lines(1, "takes over from worker");
    let second = ask(&container);
    kill("TERM", container.main);
    container.wait_for_lines(1, "SIGTERM: draining");
    for (mut client, exchange) in [first, second] {
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().text(), "worth the wait");
    }
    assert_eq!(container.daemon.wait(), 0, "{}", container.daemon.stderr());
}

#[test]
fn in_a_container_a_second_signal_cuts_and_a_third_ends_it_at_once() {
    let upstream = Upstream::start();
    let proxy = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let Some(mut container) = Container::start(&proxy, |_| {}) else { return };
    let mut client = Client::connect(container.daemon.address("http")).unwrap();
    client.ask("/slow").unwrap();
    let _unanswered = upstream.next_request();
    let worker = container.worker();
    kill("STOP", worker);
    for line in ["draining; the same again", "again: cutting what is in flight", "third time"] {
        kill("INT", container.main);
        container.wait_for_lines(1, line);
    }
    assert_eq!(container.daemon.wait(), 3, "{}", container.daemon.stderr());
    assert!(client.receive().is_err());
}

#[test]
fn a_second_signal_ends_a_stop_without_a_deadline_whose_own_child_hangs() {
    let mut daemon = troubled("shutdown.deadline = \"never\"", |command| {
        command.env("CHILD", "own").env("TROUBLE", "blocks");
    });
    let (first, worker) = (daemon.pid(), daemon.worker());
    kill("TERM", first);
    daemon.wait_for_line("of the first signal", |line| line.contains("SIGTERM: draining"));
    kill("TERM", first);
    // Cut, if it was in time to; killed else.
    let exit = daemon.wait();
    assert!(matches!(exit, 0 | 1 | 3), "{exit}\n{}", daemon.stderr());
    assert!(!Path::new(&format!("/proc/{worker}")).exists());
}

/// A daemon, not the first of a container, and a client that waits for an answer of this upstream.
fn in_flight(upstream: &Upstream, keys: &str) -> (Daemon, Client, Exchange) {
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let daemon = Daemon::spawn_with(BINARY, &config(&format!("{keys}{route}")), |_| {});
    serving(&daemon);
    let mut client = connect(&daemon, "http");
    client.ask("/slow").unwrap();
    (daemon, client, upstream.next_request())
}

/// The number in a line between these.
fn number(line: &str, before: &str, after: &str) -> u64 {
    let number = line.split_once(before).and_then(|(_, rest)| Some(rest.split_once(after)?.0.parse()));
    number
        .and_then(Result::ok)
        .unwrap_or_else(|| panic!("no number between {before:?} and {after:?}: {line}"))
}

#[test]
fn the_deadline_counts_from_the_end_of_the_delay_below_a_main_process_too_and_if_that_is_killed_meanwhile() {
    for kills_main in [false, true] {
        let upstream = Upstream::start();
        let keys = "shutdown.delay = \"1s\"\nshutdown.linger = \"0s\"\nshutdown.deadline = \"1s\"\n";
        let (daemon, _client, _unanswered) = in_flight(&upstream, keys);
        daemon.signal(Signal::TERM);
        daemon.wait_for_line("that it drains", |line| line.contains("draining: 1 request in flight"));
        if kills_main {
            daemon.signal(Signal::KILL);
        }
        daemon.wait_for_line("what was cut", |line| line.contains("cut by the deadline: GET /slow"));
        let report = daemon.wait_for_line("the report", |line| line.contains("stopped by SIGTERM in "));
        assert!(number(&report, "stopped by SIGTERM in ", " ms") >= 2000, "{report}");
    }
}

#[test]
fn a_stop_for_good_after_a_crash_of_the_main_process_says_the_time_that_it_has() {
    let upstream = Upstream::start();
    let (daemon, mut client, exchange) = in_flight(&upstream, "shutdown.deadline = \"20s\"\n");
    daemon.signal(Signal::KILL);
    let line = daemon.wait_for_line("that it drains", |line| line.contains("draining: 1 request in flight"));
    // Of `handover.deadline` it would be 3600.
    assert!(number(&line, "idle connections, ", " s left") <= 20, "{line}");
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().text(), "worth the wait");
}
