//! Starting: when it is ready, what it says, and what it refuses.

use std::thread;
use std::time::Duration;

use steadfast_harness::wait_until;

use crate::service::{CONFIG, Service, UNIT};

#[test]
fn systemctl_start_returns_when_requests_are_answered() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let hello = service.connect().get("/").unwrap();
    assert_eq!(hello.status, 200);
    assert!(hello.text().contains("Hello World"), "{}", hello.text());
    assert_eq!(service.admin("/readyz").status, 200);
}

#[test]
fn the_daemon_runs_as_its_own_user_without_roots_powers() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let uid = service.ok(["id", "-u", "steadfast"]);
    let uid = uid.trim();
    assert_ne!(uid, "0");
    for pid in [service.main_pid(), service.worker_pid()] {
        let status = service.ok(["cat", &format!("/proc/{pid}/status")]);
        assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
        assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
        assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
}

#[test]
fn the_status_knows_that_the_main_process_runs() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let status = service.ok(["steadfast", "status"]);
    let row = format!("main process {}", service.main_pid());
    let line = status.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains("running") && line.contains(", up "), "{line}");
    assert!(!service.admin("/metrics").text().contains("steadfast_main_process_uptime_seconds 0\n"));
}

#[test]
fn the_list_of_processes_tells_the_main_process_from_the_worker_and_both_by_the_programs_name() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for next in [Service::restart, Service::reload] {
        next(&service);
        let processes = [(service.main_pid(), "main process"), (service.worker_pid(), "worker")];
        for (pid, title) in processes {
            let arguments = service.ok(["cat", &format!("/proc/{pid}/cmdline")]);
            assert_eq!(arguments.split('\0').next(), Some(&*format!("steadfast: {title}")), "{arguments:?}");
            // `pgrep`, `top` and the journal's _COMM= go by this one.
            assert_eq!(service.ok(["cat", &format!("/proc/{pid}/comm")]).trim_end(), "steadfast", "{title}");
        }
    }
}

/// A config with a port that not every process may have.
const PORT_80: &str = "[http]\nlisten = [\"127.0.0.1:80\"]\n[admin]\nlisten = []\n";

#[test]
fn a_port_below_1024_is_refused_by_the_unit_as_shipped_with_the_names_of_what_it_takes() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.write(CONFIG, PORT_80);
    service.ok(["systemctl", "start", "--no-block", UNIT]);
    // It waits first, for the right may come yet.
    service.wait_for_journal("cannot listen on 127.0.0.1:80: permission denied; a port below 1024 needs", 1);
    let journal = service.journal(UNIT, &["-p", "err", "_COMM=steadfast"]);
    for file in ["privileged-ports.conf", "steadfast.socket"] {
        assert!(journal.contains(file), "{file} in {journal}");
    }
}

#[test]
fn a_port_below_1024_can_be_served() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.add_drop_in("privileged-ports.conf");
    service.write(CONFIG, PORT_80);
    service.ok(["systemctl", "start", UNIT]);
    let pid = service.main_pid();
    let status = service.ok(["cat", &format!("/proc/{pid}/status")]);
    // And nothing else that root may do.
    assert!(status.contains("CapEff:\t0000000000000400\n"), "{status}");
}

#[test]
fn systemctl_status_and_the_journal_say_that_it_serves_and_where() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    wait_until("the status text to say that it serves", || {
        service.show(UNIT, "StatusText").starts_with("serving").then_some(())
    });
    let journal = service.journal(UNIT, &["-p", "info"]);
    for address in ["127.0.0.1:8080", "127.0.0.1:9090"] {
        let fields = service.journal_json(UNIT, &["-p", "info"]);
        assert!(journal.contains(address) || fields.contains(address), "{address} in:\n{journal}\n{fields}");
    }
    assert_eq!(
        service.journal(UNIT, &["-p", "notice", "_COMM=steadfast"]),
        "",
        "a start that goes well is worth no more than info"
    );
}

#[test]
fn a_wrong_config_is_exit_78_with_the_line_in_the_journal_and_no_restart() {
    let Some(service) = Service::install(file!(), "[shutdown]\ndeadlin = \"4s\"\n") else {
        return;
    };
    let start = service.run(["systemctl", "start", UNIT]);
    assert!(!start.status.success(), "{start:?}");
    assert_eq!(service.show(UNIT, "ExecMainStatus"), "78");
    assert_eq!(service.show(UNIT, "ActiveState"), "failed");
    assert_eq!(service.show(UNIT, "NRestarts"), "0");

    let journal = service.journal(UNIT, &[]);
    for expected in ["config.toml:8:1", "deadlin", "deadline"] {
        assert!(journal.contains(expected), "{expected} in:\n{journal}");
    }

    service.configure("[shutdown]\ndeadline = \"4s\"\n");
    service.ok(["systemctl", "start", UNIT]);
}

#[test]
fn the_watchdog_of_the_unit_is_satisfied() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    assert_eq!(service.show(UNIT, "WatchdogUSec"), "30s");
    service.edit_unit("WatchdogSec=6s");
    service.ok(["systemctl", "restart", UNIT]);
    let processes = || [service.main_pid(), service.worker_pid()];
    let before = processes();
    let first = service.show(UNIT, "WatchdogTimestampMonotonic");
    // More than twice what the watchdog allows: time itself is the test.
    thread::sleep(Duration::from_secs(13));
    assert_eq!(service.show(UNIT, "ActiveState"), "active");
    assert_eq!(processes(), before);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    assert_ne!(service.show(UNIT, "WatchdogTimestampMonotonic"), first);
}
