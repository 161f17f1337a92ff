//! Another program at the path that the service was started by, and reloads at once.

use std::path::Path;
use std::thread;

use steadfast_harness::wait_until;

use super::CLIENTS;
use crate::service::{BINARY, Service, UNIT};

/// Where the versions are, and the link to the one that is deployed.
const VERSIONS: &str = "/opt/steadfast";
const DEPLOYED: &str = "/opt/steadfast/current/steadfast";

/// Installs a service whose program is behind a link, and starts it.
fn start_behind_a_link(file: &str) -> Option<Service> {
    let service = Service::install(file, "")?;
    deploy(&service, "1");
    service.edit_unit(&format!("ExecStart=\nExecStart={DEPLOYED} run --config /etc/steadfast/config.toml"));
    service.ok(["systemctl", "start", UNIT]);
    Some(service)
}

/// Installs a version beside the others, and moves the link to it.
fn deploy(service: &Service, version: &str) {
    service.copy(Path::new(BINARY), format!("{VERSIONS}/{version}/steadfast"), "0755");
    service.ok(["ln", "-sfn", version, &format!("{VERSIONS}/current")]);
}

/// The file of the program that a process runs.
fn program(service: &Service, process: impl std::fmt::Display) -> String {
    service.run(["readlink", &format!("/proc/{process}/exe")]).stdout.trim().to_owned()
}

#[test]
fn a_reload_takes_the_program_that_a_link_has_moved_to_also_when_the_old_one_was_deleted() {
    let Some(service) = start_behind_a_link(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let main = service.main_pid();
    for (old, new) in [("1", "2"), ("2", "3")] {
        deploy(&service, new);
        service.ok(["rm", "-r", &format!("{VERSIONS}/{old}")]);
        service.reload();
        load.advance(500);
        let expected = format!("{VERSIONS}/{new}/steadfast");
        assert_eq!(program(&service, service.worker()), expected);
        // It has kept its number.
        wait_until("the main process to be the new program", || {
            (program(&service, &main) == expected).then_some(())
        });
        assert_eq!(service.main_pid(), main);
    }
    // It has kept all that it had as well.
    let worker = service.worker();
    service.signal("KILL", worker);
    service.wait_for_another_worker(worker);
    assert_eq!(load.account().refused, 0);
    let lost_with_the_worker = load.account().dropped;
    service.restart();
    load.advance(500);
    let account = load.finish();
    assert_eq!((account.refused, account.closed), (0, 0), "{account}\n{}", service.journal(UNIT, &[]));
    assert!(lost_with_the_worker <= CLIENTS as u64 && account.dropped <= CLIENTS as u64, "{account}");
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    service.stop();
    service.assert_stopped_with(0);
}

#[test]
fn the_main_process_takes_another_program_under_load_and_loses_nothing() {
    let Some(service) = start_behind_a_link(file!()) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let main = service.main_pid();
    for version in ["2", "3", "4", "5", "6"] {
        deploy(&service, version);
        service.reload();
        load.advance(500);
    }
    let account = load.finish();
    service.assert_nothing_lost(&account);
    wait_until("the main process to be the last program", || {
        (program(&service, &main) == format!("{VERSIONS}/6/steadfast")).then_some(())
    });
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
}

#[test]
fn a_deployment_while_a_predecessor_drains_loses_neither_it_nor_its_answer() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (client, exchange) = service.in_flight(&upstream, "/app/slow");
    let predecessor = service.worker();
    // As a package does: the running file stays what it is.
    service.ok([
        "sh",
        "-ec",
        "cp /usr/bin/steadfast /usr/bin/steadfast.new; mv /usr/bin/steadfast.new /usr/bin/steadfast",
    ]);
    service.reload();
    service.wait_for_journal("going on as the program that is now at /usr/bin/steadfast", 1);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    wait_until("the status to name the predecessor", || {
        service.status().predecessors.iter().any(|other| other.pid == predecessor).then_some(())
    });
    service.assert_finishes(predecessor, client, exchange);
}

#[test]
fn of_several_reloads_at_once_each_succeeds() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let (main, first) = (service.main_pid(), service.worker());
    thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| service.run(["steadfast", "reload"]))).collect();
        for reload in reloads {
            let output = reload.join().unwrap();
            assert!(output.status.success(), "{output:?}\n{}", service.journal(UNIT, &[]));
        }
    });
    load.advance(500);
    service.assert_nothing_lost(&load.finish());
    let worker = service.worker();
    assert_ne!(worker, first);
    wait_until("the others to end", || {
        (service.processes() == [main.parse().unwrap(), worker].into()).then_some(())
    });
    assert_eq!(service.main_pid(), main);
}
