//! A restart: its clients wait a moment and lose nothing.

use std::thread;

use steadfast_harness::print_figure;

use crate::service::{PROXY, Service, UNIT};

#[test]
fn ten_restarts_under_load_refuse_drop_and_close_nothing() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let load = service.load(50);
    load.advance(2000);
    let usual = load.longest_wait();
    for _ in 0..10 {
        service.restart();
        // Every client has surely been answered by the new process.
        load.advance(500);
    }
    let longest = load.longest_wait();
    let account = load.finish();
    print_figure(
        "longest wait of 50 busy clients over ten restarts",
        format_args!(
            "{} ms (aim: under 100; without a restart {} ms)",
            longest.as_millis(),
            usual.as_millis()
        ),
    );
    print_figure("ten restarts under load", &account);
    let lost = (account.refused, account.dropped, account.closed);
    assert_eq!(lost, (0, 0, 0), "{account}\n{}", service.journal(UNIT, &[]));
    assert_eq!(service.metric("steadfast_http_connections_accepted_total"), 0, "no client came anew");
}

#[test]
fn a_request_in_flight_finishes_over_a_restart_on_a_connection_that_goes_on() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    let mut client = service.connect();
    client.ask("/app/slow").unwrap();
    let exchange = upstream.next_request();

    thread::scope(|scope| {
        let restart = scope.spawn(|| service.restart());
        service.wait_for_drain();
        // In the gap: the kernel takes it, the next process answers.
        let mut late = service.connect();
        late.ask("/").unwrap();
        exchange.answer(200, "worth the wait");
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "worth the wait"));
        assert_eq!(answer.header("connection"), None);
        assert_eq!(late.receive().unwrap().status, 200);
        restart.join().unwrap();
    });
    assert_eq!(client.get("/").unwrap().status, 200);
}

#[test]
fn the_report_and_the_next_start_agree_on_what_was_carried() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    let mut clients: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    let mut tunnel = service.tunnel(&upstream, 0);
    service.restart();
    tunnel.settle().unwrap();

    let journal = service.journal(UNIT, &[]);
    for expected in ["; handed over 3 connections and 1 tunnel", "took over 3 connections and 1 tunnel"] {
        assert!(journal.contains(expected), "{expected} in:\n{journal}");
    }
    for (kind, count) in [("connection", 3), ("tunnel", 1), ("refused", 0)] {
        let series = format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}");
        assert_eq!(service.metric(&series), count, "{kind}");
    }
}

#[test]
fn twenty_restarts_leave_no_more_in_the_store_than_one() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    let stored = || service.show(UNIT, "NFileDescriptorStore");
    service.restart();
    // Two listeners, the control socket, the mailbox's two ends.
    assert_eq!(stored(), "5");
    for restart in 1..=20 {
        // So many in a minute look like a failure to systemd.
        service.ok(["systemctl", "reset-failed", UNIT]);
        service.restart();
        assert_eq!(client.get("/").unwrap().status, 200, "after restart {restart}");
    }
    assert_eq!(stored(), "5");
    service.stop();
    assert_eq!(stored(), "0");
}
