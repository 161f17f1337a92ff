//! Counters over restarts: clients that count as well come to the same, and nobody who scrapes sees one go down.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use steadfast_harness::{print_figure, wait_with};

use crate::service::{PROXY, Service, UNIT};

const REQUESTS: &str = "steadfast_http_requests_total";

/// The series of a scrape that only grow, from one process to the next.
fn counters(scrape: &str) -> BTreeMap<String, f64> {
    let types: BTreeMap<_, _> =
        scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let is_counter = |series: &str| {
        let name = series.split('{').next().unwrap_or(series);
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        // What is of a process has no such prefix.
        name.starts_with("steadfast_")
            && (types.get(name) == Some(&"counter")
                || of_histogram.is_some_and(|name| types.get(name) == Some(&"histogram")))
    };
    let samples =
        scrape.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    samples
        .filter(|(series, _)| is_counter(series))
        .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// Scrapes one time after the other, each on a new connection, until it is told to stop. Returns how often, and each
/// counter that was seen to go down.
fn watch(service: &Service, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut scrapes, mut fallen) = (0, Vec::new());
    let mut before = BTreeMap::new();
    while !stop.load(Relaxed) {
        let now = counters(&service.admin("/metrics").text());
        scrapes += 1;
        // A worker that has not heard yet what the one before has counted leaves the counters out, all of them.
        if now.keys().all(|series| !series.starts_with(REQUESTS)) {
            continue;
        }
        for (series, value) in &before {
            let now = now.get(series);
            if now.is_none_or(|now| now < value) {
                fallen.push(format!("{series} from {value} to {now:?} in scrape {scrapes}"));
            }
        }
        before = now;
    }
    (scrapes, fallen)
}

fn sum(counters: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of_name = |series: &String| series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    counters.iter().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
}

/// Waits until the requests that were counted are this number. Returns the counters.
fn wait_for_requests(service: &Service, expected: u64) -> BTreeMap<String, f64> {
    let now = || counters(&service.admin("/metrics").text());
    wait_with(
        || Some(now()).filter(|counters| sum(counters, REQUESTS).to_string() == expected.to_string()),
        || format!("{expected} requests in {:#?}\n{}", now(), service.journal(UNIT, &[])),
    )
}

#[test]
fn over_twenty_restarts_and_reloads_under_load_the_counters_are_what_clients_count_and_never_go_down() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    upstream.answer_all("hello");
    let stop = AtomicBool::new(false);
    let (answered, scrapes, fallen) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&service, &stop));
        let loads = [service.load(10), service.load_of(10, "GET /app/ HTTP/1.1\r\nHost: test\r\n\r\n", 1)];
        for load in &loads {
            load.advance(300);
        }
        for _ in 0..10 {
            for next in [Service::restart, Service::reload] {
                service.reset_failed();
                next(&service);
                loads[0].advance(200);
            }
        }
        let accounts = loads.map(steadfast_harness::Load::finish);
        stop.store(true, Relaxed);
        let (scrapes, fallen) = watching.join().expect("every scrape is answered");
        for account in &accounts {
            assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
        }
        (accounts.map(|account| account.answered), scrapes, fallen)
    });
    assert!(fallen.is_empty(), "{} scrapes\n{}", scrapes, fallen.join("\n"));
    service.wait_for_one_worker();
    let counters = wait_for_requests(&service, answered.iter().sum());
    for (route, answered) in ["/", "/app/*"].iter().zip(answered) {
        let series = format!("{REQUESTS}{{route=\"{route}\",method=\"GET\",code=\"200\"}}");
        assert_eq!(counters[&series].to_string(), answered.to_string(), "{series}");
    }
    assert_eq!(
        counters["steadfast_http_request_duration_seconds_count"].to_string(),
        answered.iter().sum::<u64>().to_string()
    );
    let expected = [
        ("steadfast_reloads_total{outcome=\"succeeded\"}", 10.0),
        ("steadfast_http_connections_accepted_total", 20.0),
        (
            "steadfast_upstream_requests_total{upstream=\"http://127.0.0.1:3000\"}",
            counters[&format!("{REQUESTS}{{route=\"/app/*\",method=\"GET\",code=\"200\"}}")],
        ),
    ];
    for (series, value) in expected {
        assert_eq!(counters.get(series), Some(&value), "{series}");
    }
    print_figure(
        "counters over ten restarts and ten reloads",
        format_args!(
            "{} requests as the clients count; {scrapes} scrapes, none saw one go down",
            answered.iter().sum::<u64>()
        ),
    );
}

#[test]
fn what_a_predecessor_finishes_late_is_counted_once_its_successor_has_a_successor() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.answered();
    service.reload();
    service.answered();
    service.restart();
    wait_for_requests(&service, 2);
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().status, 200);
    let counters = wait_for_requests(&service, 3);
    assert_eq!(
        counters.get(&format!("{REQUESTS}{{route=\"/app/*\",method=\"GET\",code=\"200\"}}")),
        Some(&1.0)
    );
}

#[test]
fn a_request_that_is_cut_in_a_predecessor_is_counted_by_the_one_that_serves() {
    let deadline = format!("[handover]\ndeadline = \"1s\"\n{PROXY}");
    let Some(service) = Service::start(file!(), &deadline) else {
        return;
    };
    let upstream = service.upstream();
    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    assert!(client.receive().is_err());
    let counters = wait_for_requests(&service, 1);
    assert_eq!(counters.get("steadfast_http_requests_cut_total"), Some(&1.0), "{counters:#?}");
}

#[test]
fn counters_go_on_after_a_crash_of_the_main_process_and_begin_anew_after_that_of_a_worker_and_after_a_stop() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.answered();
    let main = service.main_pid();
    service.kill_main();
    service.wait_for_another_main(&main);
    service.answered();
    wait_for_requests(&service, 2);
    for crashes in [1.0, 2.0] {
        let worker = service.worker_pid();
        service.kill_worker();
        service.wait_for_another_worker(&worker);
        service.answered();
        let counters = wait_for_requests(&service, 1);
        // This one goes on: the main process knows.
        assert_eq!(counters.get("steadfast_worker_restarts_total"), Some(&crashes), "{counters:#?}");
    }
    service.reload();
    service.answered();
    let counters = wait_for_requests(&service, 2);
    assert_eq!(counters.get("steadfast_worker_restarts_total"), Some(&2.0), "{counters:#?}");
    service.stop();
    service.ok(["systemctl", "start", UNIT]);
    service.answered();
    let counters = wait_for_requests(&service, 1);
    assert_eq!(counters.get("steadfast_worker_restarts_total"), Some(&0.0), "{counters:#?}");
}

/// Freezes the worker, and reloads: its successor serves, and has not been told anything. Returns the process, and the
/// counters before.
fn replace_frozen_worker(service: &Service) -> (String, BTreeMap<String, f64>) {
    service.answered();
    let before = counters(&service.admin("/metrics").text());
    let worker = service.worker_pid();
    service.ok(["kill", "-STOP", &worker]);
    service.ok(["systemctl", "kill", "--signal=HUP", "--kill-whom=main", UNIT]);
    service.wait_for_journal(&format!("takes over from worker {worker}"), 1);
    service.answered();
    let scrape = service.admin("/metrics").text();
    assert!(scrape.contains("steadfast_predecessors 1"), "{scrape}");
    assert!(!scrape.contains(REQUESTS), "what the predecessor has counted is not known yet: {scrape}");
    (worker, before)
}

#[test]
fn while_a_predecessor_says_nothing_a_scrape_has_no_counters_so_that_none_is_seen_to_go_down() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let (worker, before) = replace_frozen_worker(&service);
    service.ok(["kill", "-CONT", &worker]);
    let now = || counters(&service.admin("/metrics").text());
    wait_with(
        || {
            let now = now();
            for (series, before) in &before {
                assert!(now.get(series).is_none_or(|now| now >= before), "{series} was {before}: {now:#?}");
            }
            Some(()).filter(|()| sum(&now, REQUESTS).to_string() == "2")
        },
        || format!("2 requests in {:#?}\n{}", now(), service.journal(UNIT, &[])),
    );
    let journal = service.journal(UNIT, &[]);
    assert!(!journal.contains("the counters begin anew"), "{journal}");
}

#[test]
fn counters_begin_anew_after_a_predecessor_that_was_killed_before_it_had_told() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let (worker, _) = replace_frozen_worker(&service);
    service.ok(["kill", "-KILL", &worker]);
    service.wait_for_the_end_of(&worker);
    wait_for_requests(&service, 1);
    service.wait_for_journal("no predecessor has told what it has counted", 1);
}

#[test]
fn after_a_crash_beside_a_lingering_predecessor_no_scrape_waits_for_what_cannot_come() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    service.reload();
    service.answered();
    wait_for_requests(&service, 1);
    let worker = service.worker_pid();
    service.kill_worker();
    service.wait_for_another_worker(&worker);
    service.answered();
    wait_for_requests(&service, 1);
    let scrape = service.admin("/metrics").text();
    assert!(scrape.contains("steadfast_predecessors 1"), "{scrape}");
    let journal = service.journal(UNIT, &[]);
    assert!(!journal.contains("no predecessor has told"), "it was waited for: {journal}");
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().status, 200);
    wait_for_requests(&service, 2);
}
