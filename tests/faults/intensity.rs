//! A child that fails too often: its worker stops as gracefully as ever, and another takes over; where that happens too
//! often, the service stops, and says with its exit code that it failed.

use steadfast_harness::Load;

use crate::process::{CHILDREN, Child, Kind, Rehearsal, still_waits};

/// Few restarts, of a child and of a worker alike.
const FEW: &str =
    "supervision.max_restarts = 2\nsupervision.backoff = \"20ms\"\nshutdown.linger = \"200ms\"\n";

/// Makes a child fail as often as its worker bears, and once more.
fn wear_out(rehearsal: &Rehearsal, child: Child) {
    for restarts in 1..=2 {
        rehearsal.inject(child, Kind::Panic);
        rehearsal.wait_for_restarts(child, restarts);
    }
    rehearsal.inject(child, Kind::Fail);
}

#[test]
fn a_child_that_fails_too_often_costs_its_worker_which_finishes_what_is_in_flight_beside_another() {
    for child in CHILDREN {
        let rehearsal = Rehearsal::start(FEW, |_| {});
        let worker = rehearsal.daemon.worker();
        let (mut client, mut idle) = (rehearsal.connect(), rehearsal.connect());
        assert_eq!(idle.get("/").unwrap().status, 200);
        client.ask("/app/slow").unwrap();
        let exchange = rehearsal.upstream.next_request();
        let load = Load::start(1, rehearsal.daemon.address("http"), "/");
        load.advance(20);
        wear_out(&rehearsal, child);
        for said in [
            format!("{child} failed: a fault on demand; it was restarted 2 times within 60s"),
            format!("worker {worker} stops by itself; starting another in 0 ms"),
        ] {
            rehearsal.daemon.wait_for_line(&said, |line| line.contains("ERROR") && line.contains(&said));
        }
        load.advance(50);
        still_waits(&mut client);
        exchange.answer(200, "worth the wait");
        let answer = client.receive().unwrap_or_else(|lost| panic!("{child}: {lost}"));
        assert_eq!(answer.text(), "worth the wait", "{child}");
        let ended = format!("worker {worker} exited with code 1: it has finished");
        rehearsal.daemon.wait_for_line(&ended, |line| line.contains(&ended));
        let report = rehearsal.daemon.wait_for_line("the report", |line| line.contains("stopped by"));
        assert!(report.contains(&format!("stopped by the failure of {child}")), "{report}");
        assert!(report.contains(" 0 cut"), "{report}");
        for connection in [&mut client, &mut idle] {
            let answer = connection.get("/").unwrap_or_else(|lost| panic!("{child}: {lost}"));
            assert_eq!(answer.status, 200, "{child}");
        }
        let account = load.finish();
        assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{child}: {account}");
    }
}

#[test]
fn a_worker_that_fails_too_often_stops_the_service_which_finishes_what_is_in_flight() {
    let rehearsal = Rehearsal::start(FEW, |_| {});
    for _ in 0..2 {
        let worker = rehearsal.daemon.worker();
        wear_out(&rehearsal, "worker");
        let ended = format!("worker {worker} exited with code 1: it has finished");
        rehearsal.daemon.wait_for_line(&ended, |line| line.contains(&ended));
    }
    let mut client = rehearsal.connect();
    client.ask("/app/slow").unwrap();
    let exchange = rehearsal.upstream.next_request();
    wear_out(&rehearsal, "worker");
    rehearsal
        .daemon
        .wait_for_line("that it gives up", |line| line.contains("2 were restarted within 60s: giving up"));
    still_waits(&mut client);
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().text(), "worth the wait");
    let Rehearsal { mut daemon, .. } = rehearsal;
    assert_eq!(daemon.wait(), 1);
}
