//! The faults under a real systemd: it keeps its main process, whatever becomes of a worker, and what a restart or a
//! reload carries is carried although a child is at fault.

use std::thread;

use steadfast_harness::{Client, print_figure, wait_until};

use crate::process::{CHILDREN, Child, Kind, doing, inject, post, program};
use crate::service::{CONFIG, PROXY, ROUTES, Service, UNIT};

/// The number of clients that make the load.
const CLIENTS: usize = 4;

/// The rehearsal, installed in place of the binary, with this watchdog on it.
fn rehearsal(watchdog: &str, rest: &str) -> Option<Service> {
    let service = Service::install(file!(), "")?;
    // No connection is to be closed but for a fault.
    let http = "[http]\nlisten = [\"127.0.0.1:8080\"]\nrequests_per_connection = 1000000000\n";
    let admin = "[admin]\nlisten = [\"127.0.0.1:9090\"]\n";
    service.write(CONFIG, format!("{http}{admin}{rest}\n{PROXY}{ROUTES}"));
    service.copy(program(), "/usr/bin/rehearsal", "0755");
    service.edit_unit(&format!(
        "ExecStart=\nExecStart=/usr/bin/rehearsal run --config /etc/steadfast/config.toml\n\
         WatchdogSec={watchdog}\nLimitCORE=0"
    ));
    service.ok(["systemctl", "start", UNIT]);
    Some(service)
}

impl Service {
    fn control(&self) -> Client {
        let socket = self.path("/run/steadfast/control.sock");
        Client::connect_unix(socket).expect("the control socket is there")
    }

    /// The process that serves, as it says itself.
    fn worker(&self) -> u64 {
        let status = self.control().get("/status").expect("the control socket answers").text();
        let status: serde_json::Value = serde_json::from_str(&status).expect("the status is JSON");
        status["pid"].as_u64().expect("a process number")
    }

    /// systemd counts starts: it is to forget the earlier ones.
    fn forget_starts(&self) {
        self.ok(["systemctl", "reset-failed", UNIT]);
    }
}

#[test]
fn a_child_that_ends_is_restarted_and_no_client_notices() {
    let Some(service) = rehearsal("30s", "") else {
        return;
    };
    let pid = service.main_pid();
    let load = service.load(CLIENTS);
    for child in CHILDREN {
        for kind in [Kind::Panic, Kind::Fail] {
            load.advance(50);
            inject(&mut service.control(), child, kind);
            let said = format!("{child} {}: a fault on demand; restarting it", kind.verb());
            wait_until(&said, || service.journal(UNIT, &[]).contains(&said).then_some(()));
        }
    }
    load.advance(50);
    let account = load.finish();
    print_figure("each child ended twice, under systemd and load", &account);
    assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{account}");
    assert_eq!(service.main_pid(), pid);
    for child in CHILDREN {
        let series = format!("steadfast_child_restarts_total{{child=\"{child}\"}}");
        assert_eq!(service.metric(&series), 2, "{child}");
    }
}

#[test]
fn a_child_that_is_stuck_is_named_and_its_worker_replaced_and_nobody_refused() {
    // As many as there are cells, and without waits between them.
    let supervision = "[supervision]\nmax_restarts = 100\nbackoff = \"20ms\"\nbackoff_max = \"20ms\"\n";
    let Some(service) = rehearsal("2s", supervision) else {
        return;
    };
    let main = service.main_pid();
    let mut lost = Vec::new();
    for child in CHILDREN {
        for kind in [Kind::Hang, Kind::Block] {
            let worker = service.worker();
            let load = service.load(CLIENTS);
            load.advance(50);
            inject(&mut service.control(), child, kind);
            let replaced = format!("worker {worker} was ended by signal 6; starting another");
            wait_until(&replaced, || service.journal(UNIT, &[]).contains(&replaced).then_some(()));
            load.advance(50);
            let account = load.finish();
            lost.push(account.dropped);

            let journal = service.journal(UNIT, &[&format!("_PID={worker}")]);
            let named = format!("{child} is stuck: no heartbeat for 1s; last it was {}", doing(child));
            assert!(journal.contains(&named), "{named} in:\n{journal}");
            // The fault ends the worker: who was being answered, by one request each.
            assert_eq!(account.refused, 0, "{child} {kind}: {account}");
            assert!(account.dropped <= CLIENTS as u64, "{child} {kind}: {account}");
            assert_eq!(account.closed, 0, "{child} {kind}: {account}");
            assert_eq!(service.main_pid(), main, "{child} {kind}\n{}", service.journal(UNIT, &[]));
        }
    }
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    print_figure(
        "requests lost of 4 clients for each child stuck, as its worker was ended",
        format_args!("{lost:?}, refused 0"),
    );
}

#[test]
fn a_restart_carries_everything_although_a_child_is_at_fault() {
    // A watchdog that is patient enough to leave a stuck child to the drain.
    let Some(service) = rehearsal("8s", "[shutdown]\ndeadline = \"6s\"\n[handover]\ndeadline = \"6s\"\n")
    else {
        return;
    };
    let upstream = service.upstream();
    for (child, kind) in at_fault() {
        let what = format!("{child} {kind}");
        let (mut client, mut idle) = (service.connect(), service.connect());
        assert_eq!(idle.get("/").unwrap().status, 200, "{what}");
        client.ask("/app/slow").unwrap();
        let exchange = upstream.next_request();
        let load = service.load(CLIENTS);
        load.advance(50);
        let mut control = service.control();
        assert_eq!(control.get("/livez").unwrap().status, 200);
        let old = format!("_PID={}", service.worker());
        // The admin child is the first to go in a handover: the fault comes right before.
        inject(&mut control, child, kind);
        thread::scope(|scope| {
            let restart = scope.spawn(|| service.restart());
            wait_until("the old worker to drain", || {
                service.journal(UNIT, &[&old]).contains("draining: ").then_some(())
            });
            exchange.answer(200, "worth the wait");
            let answer = client
                .receive()
                .unwrap_or_else(|lost| panic!("{what}: {lost}\n{}", service.journal(UNIT, &["-n", "40"])));
            assert_eq!(answer.text(), "worth the wait");
            let took = restart.join().unwrap();
            print_figure(&format!("a restart while {what}"), format_args!("{} ms", took.as_millis()));
        });
        load.advance(50);
        for connection in [&mut client, &mut idle] {
            let answer = connection.get("/").unwrap_or_else(|lost| panic!("{what}: {lost}"));
            assert_eq!(answer.status, 200, "{what}");
        }
        let account = load.finish();
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{what}: {account}\n{}", service.journal(UNIT, &["-n", "40"]));
        service.forget_starts();
    }
}

#[test]
fn a_reload_carries_everything_although_a_child_is_at_fault() {
    let Some(service) = rehearsal("8s", "[shutdown]\ndeadline = \"6s\"\n[handover]\ndeadline = \"6s\"\n")
    else {
        return;
    };
    let upstream = service.upstream();
    for (child, kind) in at_fault() {
        let what = format!("{child} {kind}");
        let (mut client, mut idle) = (service.connect(), service.connect());
        assert_eq!(idle.get("/").unwrap().status, 200, "{what}");
        client.ask("/app/slow").unwrap();
        let exchange = upstream.next_request();
        let load = service.load(CLIENTS);
        load.advance(50);
        let (mut asking, mut control) = (service.control(), service.control());
        for connection in [&mut asking, &mut control] {
            let answer = connection.get("/livez").unwrap_or_else(|lost| {
                panic!("{what}: {lost}\n{}", service.journal(UNIT, &["-n", "40"]));
            });
            assert_eq!(answer.status, 200);
        }
        let (main, worker) = (service.main_pid(), service.worker());
        post(&mut asking, "/reload");
        inject(&mut control, child, kind);
        let answer = asking.receive().unwrap_or_else(|lost| {
            panic!("{what}: {lost}\n{}", service.journal(UNIT, &["-n", "40"]));
        });
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert_eq!(service.main_pid(), main);
        assert_ne!(service.worker(), worker);
        load.advance(50);
        exchange.answer(200, "worth the wait");
        let answer = client
            .receive()
            .unwrap_or_else(|lost| panic!("{what}: {lost}\n{}", service.journal(UNIT, &["-n", "40"])));
        assert_eq!(answer.text(), "worth the wait");
        for connection in [&mut client, &mut idle] {
            let answer = connection.get("/").unwrap_or_else(|lost| panic!("{what}: {lost}"));
            assert_eq!(answer.status, 200, "{what}");
        }
        let account = load.finish();
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{what}: {account}\n{}", service.journal(UNIT, &["-n", "40"]));
        assert_eq!(service.show(UNIT, "NRestarts"), "0", "{what}");
    }
}

/// The faults that matter where systemd waits: of the child with the connections in each way, of the one that talks
/// to systemd, and of the one with the control socket.
fn at_fault() -> [(Child, Kind); 7] {
    [
        ("http", Kind::Panic),
        ("http", Kind::Fail),
        ("http", Kind::Hang),
        ("http", Kind::Block),
        ("systemd", Kind::Panic),
        ("systemd", Kind::Hang),
        ("admin", Kind::Block),
    ]
}

#[test]
fn a_child_that_fails_too_often_is_replaced_with_its_whole_worker_and_nothing_is_lost() {
    let Some(service) = rehearsal("30s", "[supervision]\nmax_restarts = 2\nbackoff = \"20ms\"\n") else {
        return;
    };
    let mut idle = service.connect();
    assert_eq!(idle.get("/").unwrap().status, 200);
    let (main, worker) = (service.main_pid(), service.worker());
    let load = service.load(CLIENTS);
    for failures in 1..=3 {
        load.advance(50);
        inject(&mut service.control(), "http", Kind::Panic);
        wait_until("the panic", || {
            let journal = service.journal(UNIT, &[&format!("_PID={worker}")]);
            (journal.matches("http panicked: a fault on demand").count() == failures).then_some(())
        });
    }
    wait_until("another worker", || (service.worker() != worker).then_some(()));
    load.advance(50);
    let account = load.finish();
    print_figure("the http child failed too often, under systemd and load", &account);
    let lost = (account.refused, account.dropped, account.closed);
    assert_eq!(lost, (0, 0, 0), "{account}\n{}", service.journal(UNIT, &["-n", "40"]));
    assert_eq!(idle.get("/").unwrap().status, 200);
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts").as_str()), (main, "0"));
}
