//! Crashes: the daemon comes back.

use std::time::Duration;

use steadfast_harness::{print_figure, wait_until};

use crate::service::{Service, UNIT};

#[test]
fn ten_crashes_in_a_row_come_back() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for crash in 1..=10 {
        let pid = service.main_pid();
        service.kill();
        service.wait_for_another(&pid);
        assert_eq!(service.connect().get("/").unwrap().status, 200, "after crash {crash}");
    }
    assert_eq!(service.show(UNIT, "NRestarts"), "10");
}

#[test]
fn ten_crashes_under_load_refuse_nobody_and_lose_what_is_in_flight_alone() {
    const CLIENTS: usize = 50;
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(1000);
    for crash in 1..=10 {
        let pid = service.main_pid();
        service.kill();
        service.wait_for_another(&pid);
        load.advance(500);
        // A client has one request in flight, or none and loses the next one to the dead connection.
        let account = load.account();
        assert!(account.dropped <= crash * CLIENTS as u64, "crash {crash}: {account}");
    }
    let longest = load.longest_wait();
    let account = load.finish();
    print_figure("ten crashes under load of 50 clients", &account);
    print_figure("longest wait over ten crashes", format_args!("{} ms", longest.as_millis()));
    assert_eq!((account.refused, account.closed), (0, 0), "{account}");
}

#[test]
fn a_frozen_daemon_is_replaced_by_the_watchdog() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=1s\nTimeoutStopSec=1s") else {
        return;
    };
    service.ok(["systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT]);
    wait_until("the watchdog to replace the frozen daemon", || {
        let back = service.show(UNIT, "NRestarts") == "1" && service.show(UNIT, "ActiveState") == "active";
        back.then_some(())
    });
    assert_eq!(service.connect().get("/").unwrap().status, 200);
}

#[test]
fn a_daemon_that_was_frozen_for_less_than_the_watchdogs_period_lives_on() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=6s") else {
        return;
    };
    let pid = service.main_pid();
    // The effect of `systemctl freeze`, which needs D-Bus.
    let freezer = format!("/sys/fs/cgroup{}/cgroup.freeze", service.show(UNIT, "ControlGroup"));
    let freeze = |on: u8| service.ok(["sh", "-c", &format!("echo {on} > {freezer}")]);
    for _ in 0..2 {
        freeze(1);
        // Less than is left after the last ping, and more than a child may go without a heartbeat: time itself is the
        // test.
        std::thread::sleep(Duration::from_millis(3700));
        freeze(0);
        let thawed = service.show(UNIT, "WatchdogTimestampMonotonic");
        wait_until("the next ping", || {
            (service.show(UNIT, "WatchdogTimestampMonotonic") != thawed).then_some(())
        });
        assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (pid.clone(), "0".into()));
    }
}

#[test]
fn a_graceful_stop_is_no_failure_and_is_not_undone() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
    wait_until("the unit to be inactive", || (service.show(UNIT, "ActiveState") == "inactive").then_some(()));
    // Longer than RestartSec: a restart would have begun.
    std::thread::sleep(Duration::from_millis(500));
    service.assert_stopped_with(0);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}
