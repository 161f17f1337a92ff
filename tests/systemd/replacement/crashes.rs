//! Crashes: another is there at once, and only what a worker itself had in flight goes with it.

use steadfast_harness::{print_figure, wait_until};

use super::CLIENTS;
use super::lasting::Stream;
use crate::service::{PROXY, Service, UNIT};

#[test]
fn ten_crashes_of_the_main_process_under_load_lose_nothing() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(1000);
    let stream = Stream::begin(&service, &upstream);
    for _ in 0..10 {
        let main = service.main_pid();
        service.kill_main();
        service.wait_for_another_main(&main);
        load.advance(500);
    }
    let longest = load.longest_wait();
    let events = stream.end();
    let account = load.finish();
    print_figure(
        "ten crashes of the main process under load",
        format_args!("{account}; longest wait {} ms; {events} events, none missing", longest.as_millis()),
    );
    service.assert_nothing_lost(&account);
    assert_eq!(service.show(UNIT, "NRestarts"), "10");
}

#[test]
fn ten_crashes_of_the_worker_under_load_refuse_nobody_and_lose_what_it_had_in_flight_alone() {
    let config = "[supervision]\nmax_restarts = 20\nbackoff = \"10ms\"\nbackoff_max = \"10ms\"\n";
    let Some(service) = Service::start(file!(), &format!("{config}{PROXY}")) else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(1000);
    let main = service.main_pid();
    for crash in 1..=10 {
        let worker = service.worker();
        service.signal("KILL", worker);
        service.wait_for_another_worker(worker);
        load.advance(500);
        // A client has one request in flight, or none and loses the next one to the dead connection.
        let account = load.account();
        assert!(account.dropped <= crash * CLIENTS as u64, "crash {crash}: {account}");
    }
    let longest = load.longest_wait();
    let account = load.finish();
    print_figure(
        "ten crashes of the worker under load",
        format_args!("{account}; longest wait {} ms", longest.as_millis()),
    );
    assert_eq!((account.refused, account.closed), (0, 0), "{account}\n{}", service.journal(UNIT, &[]));
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
}

#[test]
fn a_crash_of_the_main_process_beside_a_predecessor_leaves_no_orphan_and_loses_nothing() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (client, exchange) = service.in_flight(&upstream, "/app/slow");
    let predecessor = service.worker();
    service.reload();
    let main = service.main_pid();
    service.kill_main();
    service.wait_for_another_main(&main);
    service.assert_finishes(predecessor, client, exchange);
}

#[test]
fn a_worker_that_hangs_is_replaced_by_the_main_process_and_the_service_does_not_restart() {
    let Some(service) = Service::start_with_unit(file!(), "", "WatchdogSec=6s") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(500);
    let (main, worker) = (service.main_pid(), service.worker());
    service.signal("STOP", worker);
    service.wait_for_another_worker(worker);
    load.advance(500);
    let longest = load.longest_wait();
    let account = load.finish();
    print_figure(
        "a worker that hangs under load, with a watchdog of 6 s",
        format_args!("{account}; longest wait {} ms", longest.as_millis()),
    );
    let errors = service.journal(UNIT, &["-p", "err"]);
    assert!(errors.contains(&format!("worker {worker} is stuck: no heartbeat")), "{errors}");
    assert_eq!((account.refused, account.closed), (0, 0), "{account}");
    assert!(account.dropped <= CLIENTS as u64, "{account}");
    assert_eq!((service.main_pid(), service.show(UNIT, "NRestarts")), (main, "0".into()));
}

#[test]
fn a_worker_that_crashes_beside_a_predecessor_is_replaced_and_the_predecessor_finishes() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    for next in [Service::restart, Service::reload] {
        let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
        let predecessor = service.worker();
        next(&service);
        let worker = service.worker();
        service.signal("KILL", worker);
        service.wait_for_another_worker(worker);
        assert!(service.runs(predecessor));
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().text(), "worth the wait");
        assert_eq!(client.get("/").unwrap().status, 200);
        service.wait_for_the_end_of(predecessor);
    }
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}

#[test]
fn systemctl_shows_which_process_is_which_and_the_journal_who_took_over_from_whom() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    let first = service.worker();
    service.reload();
    let second = service.worker();
    let status = service.run(["systemctl", "status", "--no-pager", UNIT]).stdout;
    assert!(status.contains(&format!("{} \"steadfast: main process\"", service.main_pid())), "{status}");
    for worker in [first, second] {
        assert!(status.contains(&format!("{worker} \"steadfast: worker\"")), "{status}");
    }
    wait_until("STATUS to name the predecessor", || {
        service.show(UNIT, "StatusText").contains("; 1 predecessor: draining: 1 request").then_some(())
    });
    let told = service.ok(["steadfast", "status"]);
    assert!(told.contains(&first.to_string()), "{told}");
    exchange.answer(200, "");
    assert_eq!(client.receive().unwrap().status, 200);
    service.wait_for_the_end_of(first);
    let journal = service.wait_for_journal(&format!("worker {first} exited with code 0: it has finished"), 1);
    let expected = format!("worker {second} takes over from worker {first}");
    assert_eq!(journal.matches(&expected).count(), 1, "{journal}");
}
