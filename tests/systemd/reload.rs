//! A reload: another worker takes over, and its clients do not even wait.

use steadfast_harness::print_figure;

use crate::service::{Service, UNIT};

#[test]
fn ten_reloads_under_load_refuse_drop_and_close_nothing() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let load = service.load(50);
    load.advance(5000);
    let usual = load.longest_wait();
    let main = service.main_pid();
    let mut worker = service.worker_pid();
    for _ in 0..10 {
        service.reload();
        load.advance(500);
        let next = service.worker_pid();
        assert_ne!(std::mem::replace(&mut worker, next), worker);
    }
    assert_eq!(service.main_pid(), main);
    let longest = load.longest_wait();
    let account = load.finish();
    print_figure(
        "longest wait of 50 busy clients over ten reloads",
        format_args!("{} ms (aim: that without a reload, {} ms)", longest.as_millis(), usual.as_millis()),
    );
    print_figure("ten reloads under load", &account);
    let lost = (account.refused, account.dropped, account.closed);
    assert_eq!(lost, (0, 0, 0), "{account}\n{}", service.journal(UNIT, &[]));
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
}

#[test]
fn a_request_in_flight_finishes_over_a_reload_while_others_are_answered_at_once() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");
    let mut idle = service.answered();

    service.reload();
    // Nobody has answered the first request yet: these are the new worker's.
    assert_eq!(idle.get("/").unwrap().status, 200);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    exchange.answer(200, "worth the wait");
    let answer = client.receive().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "worth the wait"));
    assert_eq!(answer.header("connection"), None);
    // By now it has followed the others.
    assert_eq!(client.get("/").unwrap().status, 200);
}

#[test]
fn whoever_comes_after_a_reload_or_a_restart_has_returned_is_answered_by_the_new_worker() {
    const EACH: usize = 5;
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for (what, next) in [("reload", Service::reload as fn(&Service) -> _), ("restart", Service::restart)] {
        service.reset_failed();
        for number in 0..EACH {
            let body = format!("{what} {number}");
            service.configure(&format!("[[route]]\npath = \"/body\"\nrespond = \"{body}\"\n"));
            next(&service);
            assert_eq!(service.connect().get("/body").unwrap().text(), body);
            let status = service.admin("/status").text();
            assert!(status.contains(r#""phase":"serving""#), "after {body}: {status}");
        }
    }
    // That could be so by luck.
    let late = service.journal(UNIT, &[]).matches("may still answer new ones").count();
    assert!(late < EACH, "{late} of {} were not waited for", 2 * EACH);
}
