//! A broken config takes nobody down: the last good one is served until it is mended.

use steadfast_harness::{print_figure, wait_until};

use super::CLIENTS;
use crate::service::{CONFIG, Service, UNIT};

/// A typing error, and a part of its diagnostic.
const BROKEN: &str = "[http]\nlisen = [\"127.0.0.1:8080\"]\n";
const DIAGNOSTIC: &str = "lisen";

const STALE: &str = "steadfast_config_stale";

#[test]
fn a_restart_with_a_broken_config_serves_the_last_good_one_until_a_reload_with_the_mended_file() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    assert_eq!(service.metric(STALE), 0);
    let load = service.load(CLIENTS);
    load.advance(1000);
    service.write(CONFIG, BROKEN);
    for _ in 0..2 {
        service.restart();
        load.advance(500);
        let errors = service.journal(UNIT, &["-p", "err"]);
        assert!(errors.contains("serving the last good one until a reload succeeds"), "{errors}");
        // All of it: the line that is wrong, and the marker below.
        assert!(errors.contains(DIAGNOSTIC) && errors.contains('^'), "{errors}");
        wait_until("STATUS to tell", || {
            service.show(UNIT, "StatusText").contains("serving the last good config").then_some(())
        });
        assert_eq!(service.metric(STALE), 1);
        assert!(service.status().stale_config.is_some_and(|reason| reason.contains(DIAGNOSTIC)));
        let told = service.ok(["env", "RUNTIME_DIRECTORY=/run/steadfast", "steadfast", "status"]);
        assert!(told.contains("serving the last good config"), "{told}");
    }

    // A reload says what is wrong, and changes nothing.
    assert!(!service.run(["systemctl", "reload", UNIT]).status.success());
    assert_eq!(service.metric(STALE), 1);

    service.configure("");
    service.reload();
    assert_eq!((service.metric(STALE), service.status().stale_config), (0, None));
    wait_until("STATUS to tell", || {
        (!service.show(UNIT, "StatusText").contains("last good config")).then_some(())
    });
    load.advance(500);
    let account = load.finish();
    print_figure("two restarts with a broken config, and a reload with the mended one", &account);
    service.assert_nothing_lost(&account);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}

#[test]
fn a_crash_while_the_config_is_broken_is_served_by_the_last_good_one() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    service.write(CONFIG, BROKEN);
    // The main process, then a worker.
    let main = service.main_pid();
    service.kill();
    service.wait_for_another(&main);
    load.advance(500);
    assert_eq!(service.metric(STALE), 1);
    let account = load.account();
    service.assert_nothing_lost(&account);
    let worker = service.worker();
    service.signal("KILL", worker);
    service.wait_for_another_worker(worker);
    load.advance(500);
    assert_eq!(service.metric(STALE), 1);
    assert_eq!(load.finish().refused, 0);
}

#[test]
fn a_restart_with_a_broken_config_fails_where_last_good_is_switched_off() {
    let Some(service) = Service::start(file!(), "[handover]\nlast_good = false\n") else {
        return;
    };
    service.write(CONFIG, BROKEN);
    assert!(!service.run(["systemctl", "restart", UNIT]).status.success());
    assert_failed_for_the_config(&service);
}

#[test]
fn a_start_with_a_broken_config_after_a_stop_for_good_fails() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.stop();
    service.assert_stopped_with(0);
    service.write(CONFIG, BROKEN);
    assert!(!service.run(["systemctl", "start", UNIT]).status.success());
    assert_failed_for_the_config(&service);
}

fn assert_failed_for_the_config(service: &Service) {
    let state = ["ActiveState", "Result", "ExecMainStatus"].map(|name| service.show(UNIT, name));
    assert_eq!(state, ["failed", "exit-code", "78"], "\n{}", service.journal(UNIT, &[]));
    let journal = service.journal(UNIT, &[]);
    assert!(journal.contains(DIAGNOSTIC), "{journal}");
    assert_eq!(service.processes(), [].into());
}
