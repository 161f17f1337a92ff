//! After a reload: systemd supervises the new process in full, and the old one is allowed to finish.

use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::wait_until;

use crate::service::{PROXY, Service, UNIT};

#[test]
fn a_successor_that_crashes_is_restarted_and_one_that_is_stopped_stops() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.reload();
    let successor = service.main_pid();
    service.kill();
    service.wait_for_another(&successor);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "NRestarts"), "1");
    service.reload();
    service.stop();
    service.assert_stopped_with(0);
}

#[test]
fn a_successor_that_crashes_is_replaced_at_once_while_the_old_process_finishes() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let successor = service.main_pid();
    let began = Instant::now();
    service.kill();
    service.wait_for_another(&successor);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // Not even the unit's TimeoutStopSec was waited for.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().status, 200);
    // The predecessor hands over to whoever is there.
    assert_eq!(client.get("/").unwrap().status, 200);
}

#[test]
fn the_new_process_tells_what_it_took_over_when_the_old_one_has_ended() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let _clients: Vec<_> = (0..3).map(|_| service.answered()).collect();
    let mut tunnel = service.tunnel(&upstream, 0);
    let first = service.main_pid();
    service.reload();
    tunnel.settle().unwrap();
    let expected = format!("process {first} has ended; took over 3 connections and 1 tunnel");
    let journal = wait_until("the old process to end", || {
        Some(service.journal(UNIT, &[])).filter(|journal| journal.contains("has ended"))
    });
    assert!(journal.contains(&expected), "{journal}");
    assert!(journal.contains("handed over 3 connections and 1 tunnel"), "{journal}");
}

#[test]
fn a_stop_waits_for_a_predecessor_beyond_the_units_timeoutstopsec() {
    let Some(service) = Service::start_with_unit(file!(), PROXY, "TimeoutStopSec=2s") else {
        return;
    };
    let upstream = service.upstream();
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    let stop = service.stop_meanwhile(|| {
        // Time itself is the test: the unit's own limit passes.
        thread::sleep(Duration::from_secs(4));
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().status, 200);
    });
    assert!((4..20).contains(&stop.took.as_secs()), "{:?}", stop.took);
    service.assert_stopped_with(0);
}

#[test]
fn a_predecessor_cuts_at_its_own_deadline() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"2s\"\n")
    else {
        return;
    };
    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    assert!(client.receive().is_err());
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cut by the deadline: GET /app/slow"), "{warnings}");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "ActiveState"), "active");
}

#[test]
fn a_second_signal_cuts_what_a_predecessor_still_has_in_flight() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    service.stop_meanwhile(|| {
        // The first one was systemd's, to both processes.
        assert!(client.is_open());
        service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
        assert!(client.receive().is_err());
    });
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cut by the second signal: GET /app/slow"), "{warnings}");
}

#[test]
fn a_predecessor_that_hangs_ends_with_the_second_signal() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (_client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    let first = service.main_pid();
    service.reload();
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
fn of_many_reloads_at_once_each_succeeds_or_is_refused_with_the_reason() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    let outputs = thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| service.run(["steadfast", "reload"]))).collect();
        reloads.into_iter().map(|reload| reload.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(outputs.iter().any(|output| output.status.success()), "{outputs:?}");
    for output in &outputs {
        assert!(
            output.status.success() || output.stderr.contains("another process has taken over"),
            "{output:?}"
        );
    }
    assert_eq!(client.get("/").unwrap().status, 200);
    // One after the other, without a pause: each reaches the process that the one before has made the main one.
    service.ok(["sh", "-ec", "for n in 1 2 3 4 5; do steadfast reload; done"]);
    assert_eq!(client.get("/").unwrap().status, 200);
    wait_until("all but the last process to end", || {
        let group = service.show(UNIT, "ControlGroup");
        let processes = service.ok(["cat", &format!("/sys/fs/cgroup{group}/cgroup.procs")]);
        (processes.trim() == service.main_pid()).then_some(())
    });
    assert_eq!(service.show(UNIT, "NFileDescriptorStore"), "5");
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
        assert!(reload.stderr.contains("the daemon is stopping"), "{}", reload.stderr);
        exchange.answer(200, "");
        assert_eq!(client.receive().unwrap().status, 200);
    });
    service.assert_stopped_with(0);
}
