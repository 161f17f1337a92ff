//! Stops, restarts and reloads beside predecessors: these are told, finish within their time, and none is left.

use std::time::Duration;

use steadfast_harness::{Client, Exchange, Upstream, print_figure, wait_with};

use crate::service::{PROXY, Service, UNIT};

/// The time that the main process allows a worker beyond its own deadline, and what a busy machine needs.
const BOUND: Duration = Duration::from_secs(25);

#[test]
fn a_stop_reaches_predecessors_of_two_earlier_main_processes_and_leaves_nothing() {
    let Some((service, upstream)) =
        Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"8s\"\nlinger = \"8s\"\n")
    else {
        return;
    };
    let (mut answered, exchange) = service.in_flight(&upstream, "/app/answered");
    let first = service.worker();
    service.restart();
    let (mut cut, _unanswered) = service.in_flight(&upstream, "/app/cut");
    let second = service.worker();
    service.restart();
    let mut idle = service.answered();
    assert!(service.runs(first) && service.runs(second));
    service.wait_for_predecessors(2);
    assert_eq!(service.status().predecessors.iter().map(|p| p.pid).collect::<Vec<_>>(), [first, second]);

    let stop = service.stop_meanwhile(|| {
        let told = idle.get("/").unwrap();
        assert_eq!((told.status, told.header("connection")), (200, Some("close")));
        exchange.answer(200, "worth the wait");
        let told = answered.receive().unwrap();
        assert_eq!((&*told.text(), told.header("connection")), ("worth the wait", Some("close")));
        assert!(cut.receive().is_err());
    });
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cut by the deadline: GET /app/cut"), "{warnings}");
    assert!(!warnings.contains("GET /app/answered"), "{warnings}");
    print_figure("a stop with two predecessors, one of them cut at 8 s", format_args!("{:?}", stop.took));
    assert!(stop.took >= Duration::from_secs(7) && stop.took < BOUND, "{:?}", stop.took);
    service.assert_stopped_with(0);
    assert_eq!(service.processes(), [].into());
    assert_eq!(service.show(UNIT, "NFileDescriptorStore"), "0");
}

/// A worker with a request that nobody answers.
struct Busy {
    worker: u32,
    client: Client,
    _unanswered: (Upstream, Exchange),
}

impl Busy {
    fn start(config: &str) -> Option<(Self, Service)> {
        let (service, upstream) = Service::start_with_upstream(file!(), config)?;
        let (client, exchange) = service.in_flight(&upstream, "/app/slow");
        Some((Self { worker: service.worker(), client, _unanswered: (upstream, exchange) }, service))
    }
}

/// Returns when the journal has a warning with this text.
fn wait_for_warning(service: &Service, text: &str) {
    let warnings = || service.journal(UNIT, &["-p", "warning"]);
    wait_with(|| warnings().contains(text).then_some(()), || format!("{text:?} in:\n{}", warnings()));
}

/// A predecessor that hangs is killed at its deadline, and named.
fn assert_killed(service: &Service, busy: &mut Busy) {
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    service.wait_for_the_end_of(busy.worker);
    assert!(busy.client.receive().is_err());
    wait_for_warning(service, &format!("worker {} does not end: killing it", busy.worker));
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}

#[test]
fn a_predecessor_that_hangs_after_a_restart_is_killed_at_its_deadline_by_the_next_main_process() {
    let Some((mut busy, service)) = Busy::start("[handover]\ndeadline = \"5s\"\n") else {
        return;
    };
    service.restart();
    service.signal("STOP", busy.worker);
    assert_killed(&service, &mut busy);
}

#[test]
fn a_reload_does_not_wait_for_a_worker_that_hangs_which_is_killed_at_its_deadline() {
    let Some((mut busy, service)) = Busy::start("[handover]\ndeadline = \"2s\"\n") else {
        return;
    };
    service.signal("STOP", busy.worker);
    // To the main process: `steadfast reload` would ask the worker.
    service.ok(["systemctl", "kill", "--signal=HUP", "--kill-whom=main", UNIT]);
    service.wait_for_journal("takes over from worker", 1);
    assert_killed(&service, &mut busy);
}

#[test]
fn a_restart_does_not_wait_for_a_worker_that_hangs_nor_does_its_sighup_reload_anything() {
    let Some((mut busy, service)) = Busy::start("[handover]\ndeadline = \"2s\"\n") else {
        return;
    };
    service.signal("STOP", busy.worker);
    let took = service.restart();
    assert!(took < BOUND, "{took:?}");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    // The kernel wakes it: its main process was its last tie to a session (`setpgid(2)`).
    assert!(busy.client.receive().is_err());
    service.wait_for_the_end_of(busy.worker);
    let journal = service.journal(UNIT, &[]);
    assert!(journal.contains("cut by the deadline: GET /app/slow"), "{journal}");
    assert!(!journal.contains("reload"), "{journal}");
}

#[test]
fn a_stop_does_not_wait_for_a_predecessor_that_hangs_beyond_its_deadline() {
    let Some((busy, service)) = Busy::start("[shutdown]\ndeadline = \"2s\"\n") else {
        return;
    };
    service.restart();
    service.signal("STOP", busy.worker);
    // Neither does a further restart.
    let took = service.restart();
    assert!(took < BOUND, "{took:?}");
    let stop = service.stop();
    assert!(stop.output.status.success() && stop.took < BOUND, "{:?}", stop.output);
    print_figure("a stop with a predecessor that hangs, deadline 2 s", format_args!("{:?}", stop.took));
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    let expected = format!("worker {} does not end: killing it", busy.worker);
    assert!(warnings.contains(&expected), "{expected} in:\n{warnings}");
    service.assert_stopped_with(0);
    assert_eq!(service.processes(), [].into());
}

#[test]
fn a_predecessor_is_cut_at_the_handovers_deadline_by_name_and_the_service_goes_on() {
    for next in [Service::restart, Service::reload] {
        let Some(service) = Service::start(file!(), &format!("[handover]\ndeadline = \"2s\"\n{PROXY}"))
        else {
            return;
        };
        let upstream = service.upstream();
        let (mut client, _unanswered) = service.in_flight(&upstream, "/app/slow");
        let predecessor = service.worker();
        next(&service);
        assert!(client.receive().is_err());
        service.wait_for_the_end_of(predecessor);
        let warnings = service.journal(UNIT, &["-p", "warning"]);
        assert!(warnings.contains("cut by the deadline: GET /app/slow"), "{warnings}");
        assert_eq!(service.connect().get("/").unwrap().status, 200);
    }
}

#[test]
fn of_too_many_predecessors_the_oldest_is_cut_by_name() {
    for next in [Service::restart, Service::reload] {
        let Some(service) = Service::start(file!(), &format!("[handover]\npredecessors = 2\n{PROXY}")) else {
            return;
        };
        let upstream = service.upstream();
        let mut clients = Vec::new();
        for path in ["/app/oldest", "/app/middle", "/app/latest"] {
            clients.push(service.in_flight(&upstream, path));
            next(&service);
        }
        assert!(clients.remove(0).0.receive().is_err());
        wait_for_warning(&service, "more than `handover.predecessors` are finishing");
        wait_for_warning(&service, "cut by `handover.predecessors`: GET /app/oldest");
        for (mut client, exchange) in clients {
            exchange.answer(200, "worth the wait");
            assert_eq!(client.receive().unwrap().text(), "worth the wait");
        }
    }
}

#[test]
fn a_stop_that_nobody_announced_reaches_the_worker_once_systemd_keeps_nothing_for_a_next_process() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"5s\"\n")
    else {
        return;
    };
    let (mut answered, exchange) = service.in_flight(&upstream, "/app/answered");
    let (mut cut, _unanswered) = service.in_flight(&upstream, "/app/cut");
    let worker = service.worker();
    service.ok(["systemctl", "kill", "--kill-whom=main", "--signal=TERM", UNIT]);
    // Until then it hands over to a next process.
    service.wait_for_journal("nothing is kept for a next process", 1);
    exchange.answer(200, "");
    let told = answered.receive().unwrap();
    assert_eq!((told.status, told.header("connection")), (200, Some("close")));
    assert!(cut.receive().is_err());
    service.wait_for_the_end_of(worker);
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("cut by the deadline: GET /app/cut"), "{warnings}");
    assert_eq!(service.processes(), [].into());
}
