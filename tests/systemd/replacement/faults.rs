//! Faults in the middle of a replacement: what they cost.

use std::path::Path;

use steadfast_harness::{Output, print_figure, wait_until, wait_with};

use crate::service::{BINARY, PROXY, Service, UNIT};

/// The clients that keep the daemon busy.
const CLIENTS: usize = 10;

/// The program of the service; `ExecReload=` stays the one in /usr/bin.
const PROGRAM: &str = "/opt/steadfast";

/// What a new worker may do, as a script in the place of the program, and a part of the reason that the reload gives.
const FAULTS: [(&str, Option<&str>, &str); 6] = [
    ("crashes", Some("kill -ABRT $$"), "was ended by signal 6"),
    ("fails", Some("exit 1"), "exited with code 1"),
    ("fails with words", Some("echo no luck >&2; exit 1"), "no luck"),
    ("refuses its config", Some("echo 'unknown key' >&2; exit 78"), "unknown key"),
    ("hangs", Some("exec sleep 1000"), "not ready within 5s"),
    ("is missing", None, "cannot start /opt/steadfast"),
];

fn start(file: &str) -> Option<Service> {
    let service = Service::install(file, &format!("[handover]\nready_timeout = \"5s\"\n{PROXY}"))?;
    mend(&service);
    service.edit_unit(&format!("ExecStart=\nExecStart={PROGRAM} run --config /etc/steadfast/config.toml"));
    service.ok(["systemctl", "start", UNIT]);
    Some(service)
}

/// Puts the program at its path.
fn mend(service: &Service) {
    service.copy(Path::new(BINARY), format!("{PROGRAM}.new"), "0755");
    service.ok(["mv", &format!("{PROGRAM}.new"), PROGRAM]);
}

/// Puts a script there, or nothing.
fn spoil(service: &Service, script: Option<&str>) {
    let Some(script) = script else {
        service.ok(["rm", PROGRAM]);
        return;
    };
    put(service, &format!("#!/bin/sh\n{script}\n"));
}

/// Puts an interpreter's text there.
fn put(service: &Service, text: &str) {
    service.write(format!("{PROGRAM}.new"), text);
    service.ok(["chmod", "755", &format!("{PROGRAM}.new")]);
    service.ok(["mv", &format!("{PROGRAM}.new"), PROGRAM]);
}

fn hang_up(service: &Service) -> Output {
    service.run(["systemctl", "kill", "--signal=HUP", "--kill-whom=main", UNIT])
}

#[test]
fn a_reload_whose_new_worker_fails_in_any_way_changes_nothing_and_says_why() {
    let Some(service) = start(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let (main, worker) = (service.main_pid(), service.worker());
    let both = [main.parse().unwrap(), worker].into();
    for (fault, script, reason) in FAULTS {
        spoil(&service, script);
        let reload = service.run(["steadfast", "reload"]);
        assert!(!reload.status.success(), "{fault}: {reload:?}");
        assert!(reload.stderr.contains(reason), "{fault}: {reload:?}");
        // The log does not hold up the answer.
        let errors = || service.journal(UNIT, &["-p", "err"]);
        let says_why =
            |line: &str| line.contains("the reload failed, nothing has changed") && line.contains(reason);
        wait_with(|| errors().lines().any(says_why).then_some(()), errors);
        load.advance(200);
        assert_eq!((service.main_pid(), service.worker()), (main.clone(), worker), "{fault}");
        wait_until("the new worker to be gone", || (service.processes() == both).then_some(()));
        assert_eq!(service.show(UNIT, "ActiveState"), "active", "{fault}");
    }
    mend(&service);
    service.reload();
    load.advance(200);
    let account = load.finish();
    print_figure("six reloads whose new worker fails, and one that succeeds", &account);
    service.assert_nothing_lost(&account);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}

#[test]
fn a_worker_that_crashes_while_its_program_is_missing_is_replaced_by_that_of_the_main_process() {
    let Some(service) = start(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    spoil(&service, None);
    let (main, worker) = (service.main_pid(), service.worker());
    service.signal("KILL", worker);
    service.wait_for_another_worker(worker);
    load.advance(500);
    let account = load.finish();
    print_figure("a crash of the worker while its program is missing", &account);
    assert_eq!(account.refused, 0, "{account}");
    assert!(account.dropped <= CLIENTS as u64, "{account}");
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
}

#[test]
fn a_restart_into_a_program_that_fails_loses_nothing_once_that_is_mended() {
    let Some(service) = start(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    // A shell may read the path only once the program is mended, and fail at its first line, with the exit code 2.
    put(&service, "#!/bin/false\n");
    assert!(!service.run(["systemctl", "restart", UNIT]).status.success());
    wait_until("systemd to try again", || (service.show(UNIT, "NRestarts") != "0").then_some(()));
    mend(&service);
    load.advance(500);
    let account = load.finish();
    print_figure("a restart into a program that fails for a while", &account);
    service.assert_nothing_lost(&account);
}

#[test]
fn a_worker_that_hangs_at_a_reload_and_wakes_up_hands_over_and_loses_nothing() {
    let Some(service) = start(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let worker = service.worker();
    service.signal("STOP", worker);
    assert!(hang_up(&service).status.success());
    service.wait_for_journal(&format!("takes over from worker {worker}"), 1);
    // Who comes anew is served.
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    service.signal("CONT", worker);
    load.advance(500);
    let account = load.finish();
    print_figure("a reload while the worker hangs", &account);
    service.assert_nothing_lost(&account);
    service.wait_for_the_end_of(worker);
}

#[test]
fn a_worker_that_crashes_at_a_reload_costs_what_it_had_in_flight_and_leaves_one_successor() {
    let Some(service) = start(file!()) else {
        return;
    };
    let upstream = service.upstream();
    let load = service.load(CLIENTS);
    load.advance(500);
    let (main, worker) = (service.main_pid(), service.worker());
    // A request under way keeps it there, wherever in the reload the kill comes.
    let (mut client, _exchange) = service.in_flight(&upstream, "/app/slow");
    assert!(hang_up(&service).status.success());
    service.wait_for_journal("reloading", 1);
    service.signal("KILL", worker);
    service.wait_for_another_worker(worker);
    assert!(client.receive().is_err(), "its worker was killed");
    load.advance(500);
    let account = load.finish();
    print_figure("a crash of the worker at a reload", &account);
    assert_eq!(account.refused, 0, "{account}");
    assert!(account.dropped <= CLIENTS as u64, "{account}");
    wait_until("one worker to be left", || (service.processes().len() == 2).then_some(()));
    assert_eq!(service.show(UNIT, "ActiveState"), "active", "{}", service.journal(UNIT, &[]));
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
    service.reload();
}

#[test]
fn a_main_process_that_crashes_at_a_reload_loses_nothing() {
    let Some(service) = start(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    for round in 0..5 {
        let main = service.main_pid();
        assert!(hang_up(&service).status.success());
        if round > 0 {
            // At another moment of it each time.
            load.advance(round * 50);
        }
        service.kill_main();
        service.wait_for_another_main(&main);
        load.advance(200);
    }
    let account = load.finish();
    print_figure("five crashes of the main process at a reload", &account);
    service.assert_nothing_lost(&account);
    wait_until("one worker to be left", || (service.processes().len() == 2).then_some(()));
    service.stop();
    service.assert_stopped_with(0);
    assert_eq!(service.processes(), [].into());
}
