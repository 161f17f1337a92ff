//! The announcement of a stop: it finds the daemon wherever the unit puts its control socket, and does not fail unheard.

use crate::service::{Service, UNIT};

/// The daemon's log line when a stop is announced.
const ANNOUNCED: &str = "the service is being stopped";

#[test]
fn with_a_second_runtime_directory_a_reload_works_and_a_stop_is_announced() {
    let Some(service) = Service::start_with_unit(file!(), "", "RuntimeDirectory=more") else {
        return;
    };
    service.reload();
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // The operator's shell has no such variable.
    assert!(service.ok(["steadfast", "status"]).contains("serving"));
    service.stop();
    let journal = service.journal(UNIT, &[]);
    assert!(journal.contains(ANNOUNCED), "{journal}");
    service.assert_stopped_with(0);
}

#[test]
fn a_stop_that_cannot_be_announced_is_a_warning_in_the_journal() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.ok(["rm", "/run/steadfast/control.sock"]);
    service.stop();
    // Without _COMM=: the command may have ended before the journal looks whose words these are.
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cannot announce the stop"), "{}", service.journal(UNIT, &[]));
    assert!(warnings.contains("no daemon listens on /run/steadfast/control.sock"), "{warnings}");
    service.assert_stopped_with(0);
}

#[test]
fn a_stop_and_a_restart_that_go_well_warn_of_nothing() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.restart();
    assert!(!service.journal(UNIT, &[]).contains(ANNOUNCED));
    service.stop();
    let journal = service.journal(UNIT, &[]);
    assert!(journal.contains(ANNOUNCED), "{journal}");
    // systemd itself warns of the worker that a restart leaves to finish.
    assert_eq!(service.journal(UNIT, &["-p", "warning", "_COMM=steadfast"]), "");
}
