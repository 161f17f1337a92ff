//! The notifications to the service manager, and their times.

use std::net::TcpStream;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use steadfast_harness::{Daemon, Signal, wait_until, wait_with};

use crate::process::{BINARY, begin_upload, connect, serving, troubled};

/// The values of an assignment in all that was said, in order.
fn said(daemon: &Daemon, name: &str) -> Vec<String> {
    let lines = daemon.notifications();
    let lines = lines.iter().flat_map(|n| n.text.lines());
    lines.filter_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned())).collect()
}

fn wait_for_ready(daemon: &Daemon) {
    daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
}

#[test]
fn ready_is_said_once_and_by_then_every_listener_accepts() {
    let lines = "[[route]]\npath = \"/*\"\nstatus = true\n";
    let config = format!(
        "[http]\nlisten = [{}]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{lines}",
        ["\"127.0.0.1:0\""; 5].join(", ")
    );
    let mut daemon = Daemon::start(BINARY, &config);
    // The log is read by another thread than READY.
    serving(&daemon);
    let addresses = daemon.addresses();
    let tcp: Vec<_> = addresses.iter().filter(|a| !a.address.starts_with("unix:")).collect();
    assert_eq!(tcp.len(), 6, "{addresses:?}");
    for listening in tcp {
        TcpStream::connect(&listening.address).expect("it accepts");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(said(&daemon, "READY"), ["1"]);
}

#[test]
fn the_status_line_says_what_goes_on() {
    let mut daemon = troubled("shutdown.linger = \"0s\"\n", |_| {});
    wait_for_ready(&daemon);
    assert!(said(&daemon, "STATUS")[0].starts_with("serving: 0 connections, 0 requests in flight"));
    let mut client = begin_upload(&daemon, 4);
    daemon.wait_for_notification("the request in flight", |text| text.contains("1 request in flight"));
    daemon.signal(Signal::TERM);
    daemon.wait_for_notification("the drain", |text| {
        text.contains("STATUS=draining: 1 request, oldest POST /echo") && text.contains(" s left")
    });
    client.send("body").unwrap();
    assert_eq!(daemon.wait(), 0);
    assert_eq!(said(&daemon, "STATUS").last().unwrap(), "stopped");
}

#[test]
fn the_status_of_an_idle_daemon_is_said_once() {
    // The pings, one at least each second, tell the time: there is a look at the status each 5 s.
    let daemon = troubled("", |command| {
        command.env("WATCHDOG_USEC", Duration::from_secs(2).as_micros().to_string());
    });
    wait_for_ready(&daemon);
    let since = || daemon.notifications().into_iter().map(|n| n.at).max();
    let ready = since().expect("it was said");
    wait_until("two looks", || (since()? - ready > Duration::from_secs(11)).then_some(()));
    assert_eq!(said(&daemon, "STATUS"), ["serving: 0 connections, 0 requests in flight, 0 requests/s"]);
}

#[test]
fn a_drain_says_stopping_and_extends_its_time_at_once_and_each_second() {
    let mut daemon = troubled("shutdown.linger = \"0s\"\nshutdown.deadline = \"4s\"\n", |_| {});
    wait_for_ready(&daemon);
    let _client = begin_upload(&daemon, 4);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 3);

    let all = daemon.notifications();
    let stopping: Vec<_> = all.iter().filter(|n| n.text.contains("STOPPING=1")).collect();
    assert_eq!(stopping.len(), 1);
    let extensions: Vec<_> = all.iter().filter(|n| n.text.contains("EXTEND_TIMEOUT_USEC=")).collect();
    assert!(extensions.len() >= 3, "{all:#?}");
    // The one comes from the main process, the other from the worker by way of it.
    let mut last = stopping[0].at.min(extensions[0].at);
    for extension in extensions {
        let gap = extension.at.duration_since(last);
        // Each lasts 15 s: what counts is that the next comes long before.
        assert!(gap < Duration::from_secs(5), "{gap:?} without an extension");
        last = extension.at;
    }
    for usec in said(&daemon, "EXTEND_TIMEOUT_USEC") {
        assert!(usec.parse::<u64>().unwrap() >= 10_000_000, "{usec}");
    }
}

#[test]
fn the_watchdog_is_fed_at_least_twice_in_its_period() {
    let period = Duration::from_secs(6);
    let daemon = troubled("", |command| {
        command.env("WATCHDOG_USEC", period.as_micros().to_string());
    });
    wait_for_ready(&daemon);
    wait_until("five pings", || (said(&daemon, "WATCHDOG").len() >= 5).then_some(()));
    let pings: Vec<_> =
        daemon.notifications().into_iter().filter(|n| n.text.contains("WATCHDOG=1")).collect();
    for pair in pings.windows(2) {
        let gap = pair[1].at - pair[0].at;
        // Half the period; the machine's own lateness may use up some of the other half.
        assert!(gap < period * 3 / 4, "{gap:?}");
    }
}

#[test]
fn a_child_that_blocks_its_thread_is_named_and_its_worker_replaced() {
    let daemon = troubled("", |command| {
        command.env("WATCHDOG_USEC", "2000000").env("CHILD", "worker").env("TROUBLE", "blocks");
    });
    let stuck = daemon.worker();
    let named = "no heartbeat from worker";
    daemon.wait_for_notification("its name", |text| text.contains(&format!("STATUS=stuck: {named}")));
    daemon.wait_for_line("its name", |line| line.contains("ERROR") && line.contains("no heartbeat"));
    let replaced = format!("worker {stuck} was ended by signal 6; starting another");
    daemon.wait_for_line(&replaced, |line| line.contains("ERROR") && line.contains(&replaced));
    // The service itself is well: systemd is to leave it alone.
    assert!(said(&daemon, "WATCHDOG").iter().all(|v| v == "1"), "{:?}", daemon.notifications());
}

#[test]
fn a_worker_that_stands_still_is_replaced_although_no_watchdog_is_fed_from_it() {
    let daemon = troubled("", |command| {
        command.env("WATCHDOG_USEC", "6000000");
    });
    wait_for_ready(&daemon);
    let stuck = daemon.worker();
    daemon.signal_worker(Signal::STOP);
    let named = format!("worker {stuck} is stuck: no heartbeat for 6s");
    daemon.wait_for_line(&named, |line| line.contains("ERROR") && line.contains(&named));
    daemon.wait_for_line("another", |line| line.contains(&format!("worker {stuck} was ended by signal")));
    wait_until("another worker", || (daemon.workers() != [stuck]).then_some(()));
    assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 200);
    let pings = daemon.notifications().into_iter().filter(|n| n.text.contains("WATCHDOG=1"));
    for pair in pings.collect::<Vec<_>>().windows(2) {
        assert!(pair[1].at - pair[0].at < Duration::from_millis(4500), "the main process goes on");
    }
}

#[test]
fn a_daemon_that_stood_still_as_a_whole_is_not_stuck() {
    let period = Duration::from_secs(6);
    let daemon = troubled("", |command| {
        command.env("WATCHDOG_USEC", period.as_micros().to_string());
    });
    wait_for_ready(&daemon);
    for _ in 0..3 {
        // Longer than a child may go without a heartbeat, so time itself is the test.
        daemon.signal_all(Signal::STOP);
        std::thread::sleep(period * 3 / 4);
        let continued = std::time::Instant::now();
        daemon.signal_all(Signal::CONT);
        let pings = || {
            let all = daemon.notifications();
            let later = all.into_iter().filter(|n| n.at > continued && n.text.contains("WATCHDOG="));
            later.collect::<Vec<_>>()
        };
        wait_until("two pings", || (pings().len() >= 2).then_some(()));
        assert!(pings().iter().all(|n| n.text.contains("WATCHDOG=1")), "{}", daemon.stderr());
        let first = pings()[0].at - continued;
        // The manager's patience is almost at its end: the ping comes with the first look, not with the next turn, a third
        // of the period later.
        assert!(first < period / 4, "{first:?}");
    }
    assert!(!daemon.stderr().to_string().contains("stuck"), "{}", daemon.stderr());
}

#[test]
fn listeners_that_the_store_has_no_room_for_are_said_with_the_number_and_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let listen = ["a", "b", "c"].map(|name| format!("\"unix:{}\"", folder.path().join(name).display()));
    let config = format!("http.listen = [{}]\nadmin.listen = []\n", listen.join(", "));
    // The mailbox's two ends, three listeners, the control socket, the last good config, the worker and its successor.
    for (room, warned) in [("8", true), ("9", false), ("1", false), ("FDSTORE=4", true)] {
        let daemon = Daemon::spawn_with(BINARY, &config, |command| match room.split_once('=') {
            Some((name, room)) => drop(command.env(name, room)),
            None => drop(command.env("STEADFAST_FDSTORE", room)),
        });
        // By then the main process has counted.
        wait_for_ready(&daemon);
        if warned {
            daemon.wait_for_line("the number", |line| {
                line.contains("WARN") && line.contains("FileDescriptorStoreMax=9")
            });
        }
        let log = daemon.stderr().to_string();
        assert_eq!(log.contains("FileDescriptorStoreMax"), warned, "{room}: {log}");
    }
}

#[test]
fn a_childs_name_cannot_speak_to_the_manager() {
    let daemon = troubled("", |command| {
        command
            .env("WATCHDOG_USEC", "2000000")
            .env("CHILD", "worker\nMAINPID=1\r\nX_INJECTED=1")
            .env("TROUBLE", "blocks");
    });
    daemon.wait_for_notification("its name", |text| text.contains("STATUS=stuck: no heartbeat from worker"));
    for name in ["MAINPID", "X_INJECTED"] {
        assert_eq!(said(&daemon, name), Vec::<String>::new());
    }
}

#[test]
fn without_a_manager_it_runs_and_says_nothing_of_one() {
    let mut daemon = troubled("", |command| {
        command.env_remove("NOTIFY_SOCKET");
    });
    assert_eq!(connect(&daemon, "http").get("/").unwrap().text(), "hello");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(daemon.notifications().len(), 0);
    assert!(!daemon.stderr().to_string().contains("WARN"), "{}", daemon.stderr());
}

// ---------------------------------------------------------------------------
// Type=notify-reload
// ---------------------------------------------------------------------------

/// Microseconds of the clock that systemd compares with.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).expect("it counts from the boot")
}

/// Sends SIGHUP, as systemd does, and returns once it is answered as systemd waits for (systemd.service(5), "notify-reload"):
/// with RELOADING=1 and, in the same message, a time that is not before the signal's; and then with READY=1.
fn assert_reload_is_told_of(daemon: &Daemon) {
    let (before, asked) = (daemon.notifications().len(), monotonic());
    daemon.signal(Signal::HUP);
    let is_begun = |text: &str| {
        let usec = text.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse::<u64>().ok());
        text.lines().any(|line| line == "RELOADING=1") && usec.is_some_and(|usec| usec >= asked)
    };
    wait_with(
        || {
            let since = &daemon.notifications()[before..];
            let begun = since.iter().position(|n| is_begun(&n.text))?;
            since[begun + 1..].iter().any(|n| n.text.lines().any(|line| line == "READY=1")).then_some(())
        },
        || format!("RELOADING=1 and READY=1 in {:#?}\n{}", daemon.notifications(), daemon.stderr()),
    );
}

#[test]
fn what_ends_one_reload_is_not_taken_for_the_end_of_the_next() {
    let daemon = troubled("", |_| {});
    wait_for_ready(&daemon);
    // The second begins as soon as the first has ended: its worker is about to say that it serves.
    for begun in 1..=2 {
        daemon.signal(Signal::HUP);
        wait_until("a reload to begin", || (said(&daemon, "RELOADING").len() >= begun).then_some(()));
    }
    daemon.signal(Signal::HUP);
    wait_until("three reloads to end", || {
        let log = daemon.stderr().to_string();
        (log.matches("takes over from worker").count() == 3).then_some(())
    });
    serving(&daemon);
    // The main process's own word is READY alone; a worker's comes with its status.
    let states: Vec<_> = daemon
        .notifications()
        .iter()
        .filter_map(|n| match (n.text.contains("RELOADING=1"), n.text.as_str()) {
            (true, _) => Some("reloading"),
            (false, "READY=1\n") => Some("reloaded"),
            (false, text) => text.contains("READY=1").then_some("serving"),
        })
        .collect();
    for pair in states.windows(2).filter(|pair| pair[0] == "reloading") {
        assert_eq!(pair[1], "reloaded", "{states:?}");
    }
}

#[test]
fn a_sighup_is_answered_as_type_notify_reload_asks_for_however_it_goes() {
    // The second worker that crashes is not replaced while this test looks on.
    let daemon = troubled("supervision.backoff = \"60s\"\nsupervision.backoff_max = \"60s\"\n", |_| {});
    wait_for_ready(&daemon);
    assert_reload_is_told_of(&daemon);

    let config = daemon.folder().join("config.toml");
    let valid = std::fs::read(&config).unwrap();
    std::fs::write(&config, "nonsense").unwrap();
    assert_reload_is_told_of(&daemon);
    daemon.wait_for_line("the refusal", |line| line.contains("the reload failed, nothing has changed"));
    std::fs::write(&config, valid).unwrap();

    for wait in ["starting another in 0 ms", "starting another in 60000 ms"] {
        wait_until("one worker that serves", || (daemon.workers().len() == 1).then_some(()));
        let serving = connect(&daemon, "http").get("/").unwrap();
        assert_eq!(serving.status, 200);
        daemon.signal_worker(Signal::KILL);
        daemon.wait_for_line(wait, |line| line.contains(wait));
    }
    assert_reload_is_told_of(&daemon);
    daemon.wait_for_line("the refusal", |line| line.contains("no reload: no worker serves yet"));
}
