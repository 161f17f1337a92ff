//! Beside a successor: the one that serves is supervised in full, and the ones before it are allowed to finish.

use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::{Failure, wait_until};

use crate::service::{PROXY, Service, UNIT};

/// The longest that a kill may take on a busy machine beyond the deadline and the main process's own patience of 5 s.
const LENIENCE: Duration = Duration::from_secs(15);

#[test]
fn after_a_reload_a_crash_is_replaced_and_a_stop_stops() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.reload();
    let [main, worker] = [service.main_pid(), service.worker_pid()];
    service.kill_worker();
    service.wait_for_another_worker(&worker);
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main.clone(), "0".into()));
    service.kill_main();
    service.wait_for_another_main(&main);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "NRestarts"), "1");
    service.reload();
    service.stop();
    service.assert_stopped_with(0);
}

#[test]
fn a_worker_that_crashes_is_replaced_at_once_while_the_one_before_it_finishes() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let [main, worker] = [service.main_pid(), service.worker_pid()];
    let began = Instant::now();
    service.kill_worker();
    service.wait_for_another_worker(&worker);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().status, 200);
    // The predecessor hands over to whoever is there.
    assert_eq!(client.get("/").unwrap().status, 200);
}

#[test]
fn a_main_process_that_crashes_is_replaced_at_once_while_every_worker_finishes() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let mut first = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let mut second = service.in_flight(&upstream, "/app/slow");
    let main = service.main_pid();
    let began = Instant::now();
    service.kill_main();
    service.wait_for_another_main(&main);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // Not even the unit's TimeoutStopSec was waited for.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    service.wait_for_predecessors(2);
    for (client, exchange) in [&mut second, &mut first] {
        exchange.send(ANSWER);
        assert_eq!(client.receive().unwrap().status, 200);
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    service.wait_for_one_worker();
}

/// The whole of an answer.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn the_journal_tells_who_took_over_from_whom_what_went_along_and_when_the_predecessor_has_ended() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let _clients: Vec<_> = (0..3).map(|_| service.answered()).collect();
    let mut tunnel = service.tunnel(&upstream, 0);
    let first = service.worker_pid();
    service.reload();
    tunnel.settle().unwrap();
    let second = service.worker_pid();
    let journal = service.wait_for_journal(&format!("worker {first} exited with code 0: it has finished"), 1);
    assert!(journal.contains("handed over 3 connections and 1 tunnel"), "{journal}");
    let took_over = format!("worker {second} takes over from worker {first}");
    assert_eq!(journal.matches(&took_over).count(), 1, "{journal}");
}

#[test]
fn a_stop_waits_for_a_predecessor_beyond_the_units_timeoutstopsec_and_the_status_says_so() {
    let Some(service) = Service::start_with_unit(file!(), PROXY, "TimeoutStopSec=4s") else {
        return;
    };
    let upstream = service.upstream();
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let stop = service.stop_meanwhile(|| {
        // The worker that served has nothing left to do.
        wait_until("the status text to name what is waited for", || {
            service.show(UNIT, "StatusText").contains("oldest GET /app/slow").then_some(())
        });
        // Time itself is the test: the unit's own limit passes.
        thread::sleep(Duration::from_secs(6));
        exchange.answer(200, "worth the wait");
        let answer = client.receive().unwrap();
        // It is told that nobody comes after it.
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    });
    assert!((6..25).contains(&stop.took.as_secs()), "{:?}", stop.took);
    service.assert_stopped_with(0);
}

#[test]
fn a_stop_cuts_predecessors_of_earlier_main_processes_at_the_deadline_of_the_stop() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"2s\"\n")
    else {
        return;
    };
    let [mut first, mut second] = [(); 2].map(|()| {
        let in_flight = service.in_flight(&upstream, "/app/slow");
        service.restart();
        in_flight
    });
    service.wait_for_predecessors(2);
    let stop = service.stop();
    assert!(stop.took >= Duration::from_secs(2), "{:?}", stop.took);
    assert!(stop.took < Duration::from_secs(2) + LENIENCE, "{:?}", stop.took);
    for (client, _) in [&mut first, &mut second] {
        assert!(matches!(client.receive(), Err(Failure::Closed)));
    }
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert_eq!(warnings.matches("cut by the deadline: GET /app/slow").count(), 2, "{warnings}");
    assert_eq!(service.ok(["sh", "-c", "pgrep -f ^steadfast: || true"]), "");
}

#[test]
fn a_second_signal_cuts_what_a_predecessor_still_has_in_flight() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    service.stop_meanwhile(|| {
        assert!(client.is_open());
        service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
        assert!(client.receive().is_err());
    });
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cut by the second signal: GET /app/slow"), "{warnings}");
}

#[test]
fn a_predecessor_that_hangs_is_killed_after_the_second_signal() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (_client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    let first = service.worker_pid();
    service.reload();
    service.wait_for_predecessors(1);
    service.ok(["kill", "-STOP", &first]);
    service.stop_meanwhile(|| {
        service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
    });
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
    assert!(!service.path(format!("/proc/{first}")).exists());
}

#[test]
fn reloads_one_after_the_other_while_every_predecessor_still_drains() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut first, exchange_of_first) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let (mut second, exchange_of_second) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    service.stop_meanwhile(|| {
        for (exchange, client) in [(exchange_of_second, &mut second), (exchange_of_first, &mut first)] {
            assert_eq!(service.show(UNIT, "ActiveState"), "deactivating");
            exchange.answer(200, "");
            assert_eq!(client.receive().unwrap().status, 200);
        }
    });
    service.assert_stopped_with(0);
}

#[test]
fn of_many_reloads_at_once_and_one_after_the_other_each_succeeds() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    let main = service.main_pid();
    let outputs = thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| service.run(["steadfast", "reload"]))).collect();
        reloads.into_iter().map(|reload| reload.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    assert_eq!(client.get("/").unwrap().status, 200);
    // One after the other, without a pause: each reaches the worker that the one before has made the current one.
    service.ok(["sh", "-ec", "for n in 1 2 3 4 5; do steadfast reload; done"]);
    assert_eq!(client.get("/").unwrap().status, 200);
    service.wait_for_one_worker();
    service.wait_for_store(3);
    assert_eq!(service.main_pid(), main);
}

#[test]
fn a_reload_while_stopping_is_refused() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.stop_meanwhile(|| {
        let reload = service.run(["steadfast", "reload"]);
        assert!(!reload.status.success());
        assert!(reload.stderr.contains("the service is stopping"), "{}", reload.stderr);
        exchange.answer(200, "");
        assert_eq!(client.receive().unwrap().status, 200);
    });
    service.assert_stopped_with(0);
}
