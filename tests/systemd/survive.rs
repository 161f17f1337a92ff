//! Crashes: of the worker, which the main process replaces, and of the main process, which systemd does.

use std::time::Duration;

use steadfast_harness::wait_until;

use crate::service::{Service, UNIT};

/// More crashes of a worker than the config allows as shipped.
const PATIENT: &str = "[supervision]\nmax_restarts = 20\nbackoff_max = \"100ms\"\n";

#[test]
fn ten_crashes_of_the_main_process_in_a_row_come_back() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for crash in 1..=10 {
        let pid = service.main_pid();
        service.kill_main();
        service.wait_for_another_main(&pid);
        assert_eq!(service.connect().get("/").unwrap().status, 200, "after crash {crash}");
    }
    assert_eq!(service.show(UNIT, "NRestarts"), "10");
    service.wait_for_one_worker();
}

#[test]
fn ten_crashes_of_a_worker_in_a_row_come_back_without_a_restart_of_the_service() {
    let Some(service) = Service::start(file!(), PATIENT) else {
        return;
    };
    let main = service.main_pid();
    for crash in 1..=10 {
        let pid = service.worker_pid();
        service.kill_worker();
        service.wait_for_another_worker(&pid);
        assert_eq!(service.connect().get("/").unwrap().status, 200, "after crash {crash}");
    }
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
    service.wait_for_one_worker();
    service.wait_for_store(3);
}

#[test]
fn a_worker_that_crashes_more_often_than_it_may_is_systemds_turn() {
    let Some(service) = Service::start(file!(), "[supervision]\nmax_restarts = 2\n") else {
        return;
    };
    let main = service.main_pid();
    for _ in 0..2 {
        let pid = service.worker_pid();
        service.kill_worker();
        service.wait_for_another_worker(&pid);
    }
    service.kill_worker();
    service.wait_for_another_main(&main);
    assert_eq!(service.show(UNIT, "NRestarts"), "1");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert!(service.journal(UNIT, &[]).contains("giving up"));
}

#[test]
fn a_frozen_main_process_is_replaced_by_the_watchdog() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=4s\nTimeoutStopSec=1s") else {
        return;
    };
    let mut client = service.answered();
    service.ok(["systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT]);
    wait_until("the watchdog to replace the frozen main process", || {
        let back = service.show(UNIT, "NRestarts") != "0" && service.show(UNIT, "ActiveState") == "active";
        back.then_some(())
    });
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // The worker was not frozen, and its successor has taken over from it.
    assert_eq!(client.get("/").unwrap().status, 200);
    service.wait_for_one_worker();
}

#[test]
fn a_frozen_worker_is_replaced_by_the_main_process() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=6s") else {
        return;
    };
    let [main, worker] = [service.main_pid(), service.worker_pid()];
    service.ok(["kill", "-STOP", &worker]);
    service.wait_for_journal(&format!("worker {worker} is stuck: no heartbeat for 6s"), 1);
    wait_until("the frozen worker to end", || {
        (!service.path(format!("/proc/{worker}")).exists()).then_some(())
    });
    service.wait_for_another_worker(&worker);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
    let scrape = service.admin("/metrics").text();
    assert!(scrape.contains("\nsteadfast_worker_restarts_total 1\n"), "{scrape}");
}

#[test]
fn a_daemon_that_was_frozen_for_less_than_the_watchdogs_period_lives_on() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=12s") else {
        return;
    };
    let processes = || [service.main_pid(), service.worker_pid()];
    let before = processes();
    // The effect of `systemctl freeze`, which needs D-Bus.
    let freezer = format!("/sys/fs/cgroup{}/cgroup.freeze", service.show(UNIT, "ControlGroup"));
    let freeze = |on: u8| service.ok(["sh", "-c", &format!("echo {on} > {freezer}")]);
    let last_ping = || service.show(UNIT, "WatchdogTimestampMonotonic");
    let wait_for_ping = || {
        let last = last_ping();
        wait_until("the next ping", || (last_ping() != last).then_some(()));
    };
    wait_for_ping();
    for _ in 0..2 {
        freeze(1);
        // Less than is left after the last ping, and more than a child may go without a heartbeat: time itself is the
        // test.
        std::thread::sleep(Duration::from_secs(7));
        freeze(0);
        wait_for_ping();
    }
    assert_eq!((processes(), service.show(UNIT, "NRestarts")), (before, "0".into()));
}

#[test]
fn a_graceful_stop_is_no_failure_and_is_not_undone() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let worker = service.worker_pid();
    service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
    wait_until("the unit to be inactive", || (service.show(UNIT, "ActiveState") == "inactive").then_some(()));
    // Longer than RestartSec: a restart would have begun.
    std::thread::sleep(Duration::from_millis(500));
    service.assert_stopped_with(0);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    wait_until("the worker to end", || (!service.path(format!("/proc/{worker}")).exists()).then_some(()));
}

/// A program in the place of the daemon's, which is that of a later version but for this: a SIGHUP comes as the main process
/// begins to run it, and finds no handler.
const HUNG_UP: &str = r#"#!/bin/bash
if [[ $1 = run && -z ${STEADFAST_WORKER-} && ! -e $RUNTIME_DIRECTORY/hung-up ]]; then
    touch "$RUNTIME_DIRECTORY/hung-up"
    # systemd has heard of the end of the reload.
    sleep 1
    kill -HUP $$
fi
exec /usr/bin/steadfast.real "$@"
"#;

#[test]
fn a_hangup_while_the_main_process_becomes_another_program_ends_neither_the_service_nor_a_connection() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.answered();
    let main = service.main_pid();
    service.ok(["cp", "/usr/bin/steadfast", "/usr/bin/steadfast.real"]);
    service.write("/usr/bin/steadfast.new", HUNG_UP);
    service.ok(["chmod", "0755", "/usr/bin/steadfast.new"]);
    service.ok(["mv", "/usr/bin/steadfast.new", "/usr/bin/steadfast"]);
    service.reload();
    service.wait_for_another_main(&main);
    assert!(service.path("/run/steadfast/hung-up").exists());
    assert_eq!(client.get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "NRestarts"), "1");
    service.wait_for_one_worker();
}
