//! A restart: its clients wait for nothing, whatever is in flight, and lose nothing.

use std::time::{Duration, SystemTime};

use steadfast_harness::{print_figure, wait_until};

use crate::service::{PROXY, Service, UNIT};

/// The longest that a worker serves on by itself without its main process: that of the next one may take longer.
const INTERIM: Duration = Duration::from_secs(1);

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
            "{} ms (aim: under 60; without a restart {} ms)",
            longest.as_millis(),
            usual.as_millis()
        ),
    );
    print_figure("ten restarts under load", &account);
    let lost = (account.refused, account.dropped, account.closed);
    assert_eq!(lost, (0, 0, 0), "{account}\n{}", service.journal(UNIT, &[]));
    assert_eq!(service.total("connections"), 0, "no client came anew");
}

#[test]
fn the_worker_serves_until_that_of_the_next_main_process_does() {
    const SERVES: &str = "serving; took over ";
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    for (round, leaves) in ["a restart", "the end of the main process"].into_iter().enumerate() {
        assert_eq!(client.get("/").unwrap().status, 200);
        let [main, worker] = [service.main_pid(), service.worker_pid()];
        let began = SystemTime::now();
        if round == 0 {
            service.restart();
        } else {
            service.ok(["kill", "-s", "KILL", &main]);
        }
        service.wait_for_another_main(&main);
        let journal = service.wait_for_journal(SERVES, 2 + round);
        let (_, took_over) = journal.rsplit_once(SERVES).expect("it has just been there");
        // What it had was still its own when the next one began to serve, unless that came late.
        if !took_over.starts_with("0 connections and 0 tunnels") {
            let drained = began_to_drain(&service, &worker);
            assert!(drained.duration_since(began).unwrap() >= INTERIM, "{drained:?}, {began:?}:\n{journal}");
        }
        let journal = service.wait_for_journal(&format!("stopped by {leaves}"), 1);
        assert_eq!(journal.matches("handed over 1 connection").count(), 1 + round, "{journal}");
    }
}

/// The moment at which a worker began to drain, as the journal has it.
fn began_to_drain(service: &Service, worker: &str) -> SystemTime {
    let journal = service.journal(UNIT, &["-o", "short-unix"]);
    let said = format!(" steadfast[{worker}]: draining: ");
    let line = journal.lines().find(|line| line.contains(&said)).unwrap_or_else(|| panic!("{journal}"));
    let seconds = line.split(' ').next().and_then(|first| first.parse().ok()).expect("a time");
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

#[test]
fn ten_restarts_and_ten_reloads_lose_no_request_whose_small_body_nobody_reads() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    // The route answers without a look at it.
    let post = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let load = service.load_of(40, post, 1);
    load.advance(1000);
    service.replace_twenty_times(|_| load.advance(400));
    let account = load.finish();
    print_figure("ten restarts and ten reloads under load with bodies that nobody reads", &account);
    let lost = (account.refused, account.dropped, account.closed);
    assert_eq!(lost, (0, 0, 0), "{account}\n{}", service.journal(UNIT, &[]));
}

#[test]
fn a_client_that_pipelines_through_the_proxy_holds_up_no_restart_and_loses_nothing() {
    let Some(service) = Service::start(file!(), &format!("[shutdown]\ndeadline = \"20s\"\n{PROXY}")) else {
        return;
    };
    service.upstream().answer_all("hello");
    let load = service.load_of(4, "GET /app/ HTTP/1.1\r\nHost: test\r\n\r\n", 16);
    load.advance(500);
    for _ in 0..3 {
        let took = service.restart();
        print_figure("a restart with clients that pipeline", format_args!("{} ms", took.as_millis()));
        assert!(took < Duration::from_secs(10), "{took:?}: the deadline is at 20 s");
        load.advance(500);
    }
    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}\n{}", service.journal(UNIT, &[]));
}

#[test]
fn a_connection_that_was_answered_with_an_empty_file_is_carried() {
    let files = "[[route]]\npath = \"/files/*\"\nfiles = \"/srv/www\"\n";
    let Some(service) = Service::install(file!(), files) else {
        return;
    };
    service.write("/srv/www/empty", "");
    service.ok(["systemctl", "start", UNIT]);
    let mut client = service.connect();
    let answer = client.get("/files/empty").unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let took = service.restart();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(client.get("/files/empty").unwrap().status, 200);
    // The old worker may have answered that, too.
    wait_until("the connection to be taken over", || {
        let carried = service.metric("steadfast_handover_taken_over_total{kind=\"connection\"}");
        (carried == 1).then_some(())
    });
}

#[test]
fn a_restart_does_not_wait_for_a_client_that_was_answered_with_408_and_does_not_close() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let impatient = "[http]\nlisten = [\"127.0.0.1:8080\"]\nheader_timeout = \"1s\"\n";
    service.write(crate::service::CONFIG, format!("{impatient}{}", crate::service::ROUTES));
    service.ok(["systemctl", "start", UNIT]);
    let mut rude = service.connect();
    rude.send("GET / HTTP/1.1\r\nHost: te").unwrap();
    assert_eq!(rude.receive().unwrap().status, 408);
    let took = service.restart();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    drop(rude);
}

#[test]
fn a_request_in_flight_finishes_over_a_restart_that_waits_for_nothing_on_a_connection_that_goes_on() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");

    let mut idle = service.answered();
    let [main, worker] = [service.main_pid(), service.worker_pid()];

    service.restart();
    // Nobody has answered the first request yet: these are the next process's.
    assert_eq!(idle.get("/").unwrap().status, 200);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_ne!(service.main_pid(), main);
    assert_ne!(service.worker_pid(), worker);
    // Whoever looks sees that something is still being finished, and what.
    let status = wait_until("the status text to name the predecessor", || {
        Some(service.show(UNIT, "StatusText")).filter(|status| status.contains("; 1 predecessor: draining"))
    });
    assert!(status.starts_with("serving") && status.contains("oldest GET /app/slow"), "{status}");

    exchange.answer(200, "worth the wait");
    let answer = client.receive().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "worth the wait"));
    assert_eq!(answer.header("connection"), None);
    // By now it has followed the others.
    assert_eq!(client.get("/").unwrap().status, 200);
    service.wait_for_journal(&format!("worker {worker} ended: it has finished"), 1);
    service.wait_for_one_worker();
}

#[test]
fn the_report_and_the_successors_figures_agree_on_what_was_carried() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let _clients: Vec<_> = (0..3).map(|_| service.answered()).collect();
    let mut tunnel = service.tunnel(&upstream, 0);
    service.restart();
    tunnel.settle().unwrap();

    service.wait_for_journal("; handed over 3 connections and 1 tunnel", 1);
    for (kind, count) in [("connection", 3), ("tunnel", 1), ("refused", 0)] {
        let series = format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}");
        // Both say so while they are about it: the successor may not have looked yet.
        wait_until(&format!("{series} to be {count}"), || (service.metric(&series) == count).then_some(()));
    }
}

#[test]
fn twenty_restarts_leave_no_more_in_the_store_than_one() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    service.restart();
    // Two listeners and the control socket.
    service.wait_for_store(3);
    for restart in 1..=20 {
        service.reset_failed();
        service.restart();
        assert_eq!(client.get("/").unwrap().status, 200, "after restart {restart}");
    }
    service.wait_for_store(3);
    service.stop();
    assert_eq!(service.show(UNIT, "NFileDescriptorStore"), "0");
}
