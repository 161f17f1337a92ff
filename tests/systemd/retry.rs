//! A start before its time: what is not there yet is waited for.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use steadfast_harness::{Client, wait_until};

use crate::service::{CONFIG, ROUTES, Service, UNIT};

/// Longer than systemd's own patience for a unit that fails at once, twenty times (`StartLimitBurst=` of old).
const LATE: Duration = Duration::from_secs(6);

#[test]
fn an_address_that_comes_late_is_served_when_it_is_there_and_the_others_before() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let http = "[http]\nlisten = [\"127.0.0.1:8080\", \"192.0.2.1:8080\"]\n[admin]\nlisten = []\n";
    service.write(CONFIG, format!("{http}{ROUTES}"));
    service.ok(["systemctl", "start", "--no-block", UNIT]);
    let ask = |address: &str| {
        let address = address.parse().unwrap();
        service.enter_network(|| Client::connect(address)?.get("/")).map(|answer| answer.status)
    };
    wait_until("the address that is there to be served", || ask("127.0.0.1:8080").ok());
    thread::sleep(LATE);
    let warnings = service.journal(UNIT, &["-p", "warning", "_COMM=steadfast"]);
    assert!(warnings.contains("192.0.2.1:8080 is not an address of this machine"), "{warnings}");
    service.ok(["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]);
    wait_until("the late address to be served", || ask("192.0.2.1:8080").ok());
    assert_eq!(service.show(UNIT, "ActiveState"), "active");
}

#[test]
fn a_reload_to_an_address_that_is_not_there_fails() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.write(CONFIG, format!("[http]\nlisten = [\"192.0.2.1:8080\"]\n[admin]\nlisten = []\n{ROUTES}"));
    let reload = service.run(["steadfast", "reload"]);
    assert!(!reload.status.success());
    assert!(reload.stderr.contains("cannot listen on 192.0.2.1:8080"), "{}", reload.stderr);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
}

#[test]
fn a_port_that_another_holds_for_a_while_is_served_when_it_is_free() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let taken = service.enter_network(|| TcpListener::bind("127.0.0.1:8080").unwrap());
    let start = service.run(["systemctl", "start", UNIT]);
    assert!(!start.status.success(), "{start:?}");
    thread::sleep(LATE);
    assert_ne!(service.show(UNIT, "ActiveState"), "failed", "{}", service.journal(UNIT, &[]));
    drop(taken);
    wait_until("the port to be served", || (service.show(UNIT, "ActiveState") == "active").then_some(()));
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // Minutes of waiting must not be a flood in the journal.
    let restarts: u32 = service.show(UNIT, "NRestarts").parse().unwrap();
    assert!(restarts < 10, "{restarts} restarts in {LATE:?}");
}

#[test]
fn a_folder_of_files_that_comes_late_is_served_when_it_is_there() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.ok(["rm", "-rf", "/srv/late"]);
    service.configure("[[route]]\npath = \"/files/*\"\nfiles = \"/srv/late\"\n");
    let check = service.run(["steadfast", "check"]);
    assert_eq!(check.status.code(), Some(78), "{check:?}");
    assert!(check.stderr.contains("`files` is not there"), "{}", check.stderr);

    service.ok(["systemctl", "start", UNIT]);
    wait_until("the journal to warn of it", || {
        let warnings = service.journal(UNIT, &["-p", "warning", "_COMM=steadfast"]);
        warnings.contains("/srv/late").then_some(())
    });
    let mut client = service.connect();
    assert_eq!(client.get("/files/late.txt").unwrap().status, 404);
    assert_eq!(client.get("/").unwrap().status, 200);
    service.write("/srv/late/late.txt", "better late");
    assert_eq!(client.get("/files/late.txt").unwrap().text(), "better late");
    service.ok(["steadfast", "check"]);
}
