//! Crashes: the daemon comes back.

use std::time::Duration;

use steadfast_harness::wait_until;

use crate::service::{Service, UNIT};

#[test]
fn ten_crashes_in_a_row_come_back() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for crash in 1..=10 {
        let pid = service.show(UNIT, "MainPID");
        service.ok(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT]);
        wait_until(&format!("the restart after crash {crash}"), || {
            let back = service.show(UNIT, "ActiveState") == "active" && service.show(UNIT, "MainPID") != pid;
            back.then_some(())
        });
        assert_eq!(service.connect().get("/").unwrap().status, 200, "after crash {crash}");
    }
    assert_eq!(service.show(UNIT, "NRestarts"), "10");
}

#[test]
fn a_frozen_daemon_is_replaced_by_the_watchdog() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.edit_unit("WatchdogSec=1s\nTimeoutStopSec=1s");
    service.ok(["systemctl", "start", UNIT]);
    service.ok(["systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT]);
    wait_until("the watchdog to replace the frozen daemon", || {
        let back = service.show(UNIT, "NRestarts") == "1" && service.show(UNIT, "ActiveState") == "active";
        back.then_some(())
    });
    assert_eq!(service.connect().get("/").unwrap().status, 200);
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
