//! Stopping: what was begun is finished, and what cannot be is named.

use std::thread;
use std::time::Duration;

use steadfast_harness::{Failure, print_figure, wait_until};

use crate::service::{PROXY, Service, UNIT};

/// The time that a stop may take beyond its own on a busy machine before a test
/// calls it wrong.
const LENIENCE: Duration = Duration::from_secs(10);

/// Larger than what the kernel takes off a server's hands for one connection.
const LARGE: usize = 64 * 1024 * 1024;

const FILES: &str = "[[route]]\npath = \"/files/*\"\nfiles = \"/srv/www\"\n";

fn add_large_file(service: &Service) {
    service.ok(["mkdir", "-p", "/srv/www"]);
    service.ok(["truncate", "--size", &LARGE.to_string(), "/srv/www/large.bin"]);
}

// ---------------------------------------------------------------------------
// Requests in flight finish
// ---------------------------------------------------------------------------

#[test]
fn a_proxied_request_in_flight_at_systemctl_stop_finishes_with_200() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");

    service.stop_meanwhile(|| {
        exchange.answer(200, "worth the wait");
        let response = client.receive().unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "worth the wait"));
        // Nobody comes after a stop for whom the connection could wait.
        assert_eq!(response.header("connection"), Some("close"));
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_large_file_on_a_slow_reader_arrives_whole_although_systemctl_stop_came() {
    let Some(service) = Service::install(file!(), FILES) else {
        return;
    };
    add_large_file(&service);
    service.ok(["systemctl", "start", UNIT]);
    let mut client = service.connect();
    client.ask("/files/large.bin").unwrap();
    let head = client.receive_head().unwrap();
    assert_eq!(head.status, 200);

    service.stop_meanwhile(|| {
        let body = client.receive_body(&head).unwrap();
        assert_eq!(body.len(), LARGE);
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_streaming_body_goes_on_to_its_end_although_systemctl_stop_came() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, mut exchange) = service.in_flight(&upstream, "/app/events");
    exchange.begin_chunked();
    exchange.chunk("before");
    let head = client.receive_head().unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(client.receive_chunk().unwrap().unwrap(), b"before");

    service.stop_meanwhile(|| {
        exchange.chunk("after");
        assert_eq!(client.receive_chunk().unwrap().unwrap(), b"after");
        exchange.end_chunked();
        assert!(client.receive_chunk().unwrap().is_none());
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_request_body_still_being_sent_is_received_to_its_end() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    client.send("POST /app/upload HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfirst").unwrap();
    let exchange = upstream.next_request();

    service.stop_meanwhile(|| {
        client.send("later").unwrap();
        let mut stream = exchange.into_stream();
        let mut body = Vec::new();
        wait_until("the whole body upstream", || {
            let mut bytes = [0; 64];
            let count = std::io::Read::read(&mut stream, &mut bytes).unwrap();
            body.extend_from_slice(&bytes[..count]);
            String::from_utf8_lossy(&body).contains("later").then_some(())
        });
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(client.receive().unwrap().status, 201);
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_deadline_longer_than_the_units_timeoutstopsec_is_honoured() {
    let Some(service) = Service::start_with_unit(
        file!(),
        &format!("[shutdown]\ndeadline = \"30s\"\n{PROXY}"),
        "TimeoutStopSec=4s",
    ) else {
        return;
    };
    let upstream = service.upstream();
    let (mut client, exchange) = service.in_flight(&upstream, "/app/slow");

    let stop = service.stop_meanwhile(|| {
        // More than twice what systemd would wait: time itself is the test.
        thread::sleep(Duration::from_secs(9));
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().status, 200);
    });
    assert!(stop.took >= Duration::from_secs(9), "{:?}", stop.took);
    service.assert_stopped_with(0);
}

// ---------------------------------------------------------------------------
// Requests that are not finished are cut at the deadline, by name
// ---------------------------------------------------------------------------

#[test]
fn a_request_longer_than_the_deadline_is_cut_then_and_the_journal_names_it() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"4s\"\n")
    else {
        return;
    };
    let (mut client, _unanswered) = service.in_flight(&upstream, "/app/export?all=1");

    let stop = service.stop();
    print_figure(
        "stop with deadline = 4s and a 30 s request",
        format_args!("{:.2} s (aim: 4 to 5)", stop.took.as_secs_f64()),
    );
    assert!(stop.took >= Duration::from_secs(4), "{:?}", stop.took);
    assert!(stop.took < Duration::from_secs(4) + LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(3);
    assert_ne!(service.show(UNIT, "ActiveState"), "failed");
    assert!(matches!(client.receive(), Err(Failure::Closed)));

    let warnings = service.journal(UNIT, &["-p", "warning"]);
    let peer = client.local_address().unwrap().to_string();
    let cut: Vec<&str> = warnings.lines().filter(|line| line.contains("/app/export")).collect();
    assert_eq!(cut.len(), 1, "one warning per request cut:\n{warnings}");
    for expected in ["GET", "/app/export", &peer] {
        assert!(cut[0].contains(expected), "{expected} in: {}", cut[0]);
    }
    let age = cut[0].split_once(" after ").and_then(|(_, age)| age.split_once(" s, ")?.0.parse().ok());
    let age = Duration::from_secs_f64(age.unwrap_or_else(|| panic!("no age in: {}", cut[0])));
    assert!(age >= Duration::from_secs(4) && age < Duration::from_secs(4) + LENIENCE, "{}", cut[0]);
}

#[test]
fn a_tunnel_that_is_not_carried_is_waited_for_and_cut_at_the_deadline_by_name() {
    let Some((service, upstream)) =
        Service::start_with_upstream(file!(), "[shutdown]\ndeadline = \"5s\"\n[handover]\ntunnels = false\n")
    else {
        return;
    };
    let mut client = service.connect();
    client
        .send("GET /app/socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .unwrap();
    let mut exchange = upstream.next_request();
    exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.receive_head().unwrap().status, 101);
    exchange.send("hello");
    assert_eq!(client.take(5).unwrap(), b"hello");

    let stop = service.stop_meanwhile(|| {
        exchange.send("still");
        assert_eq!(client.take(5).unwrap(), b"still");
    });
    assert!(stop.took >= Duration::from_secs(5), "{:?}", stop.took);
    assert!(stop.took < Duration::from_secs(5) + LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(3);
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("/app/socket"), "{warnings}");
}

#[test]
fn the_same_signal_again_cuts_at_once_and_names_what_it_cut() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (_client, _unanswered) = service.in_flight(&upstream, "/app/export");

    let stop = service.stop_meanwhile(|| {
        service.ok(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT]);
    });
    assert!(stop.took < LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(3);
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("/app/export"), "{warnings}");
}

// ---------------------------------------------------------------------------
// Nobody holds up a stop
// ---------------------------------------------------------------------------

#[test]
fn an_idle_stop_waits_for_nothing() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let stop = service.stop();
    print_figure("an idle stop", format_args!("{} ms (aim: under 100)", stop.took.as_millis()));
    assert!(stop.took < LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(0);
}

#[test]
fn a_thousand_idle_keep_alives_do_not_hold_up_a_stop_that_does_not_linger() {
    let Some(service) = Service::start(file!(), "[shutdown]\nlinger = \"0s\"\n") else {
        return;
    };
    let mut clients: Vec<_> = (0..1000).map(|_| service.answered()).collect();
    let stop = service.stop();
    print_figure(
        "a stop with 1,000 idle keep-alive connections, linger = 0s",
        format_args!("{} ms (aim: under 100)", stop.took.as_millis()),
    );
    assert!(stop.took < LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(0);
    for client in &mut clients {
        client.wait_for_close().unwrap();
    }
}

#[test]
fn a_client_that_connects_and_says_nothing_cannot_hold_the_stop_beyond_the_deadline() {
    let Some(service) = Service::start(file!(), "[shutdown]\ndeadline = \"2s\"\n") else {
        return;
    };
    let silent = service.connect();
    let mut halfway = service.connect();
    halfway.send("GET /half HTTP/1.1\r\nHost: te").unwrap();
    let stop = service.stop();
    assert!(stop.took < Duration::from_secs(2) + LENIENCE, "{:?}", stop.took);
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
    drop((silent, halfway));
}

#[test]
fn a_client_that_stops_reading_cannot_hold_the_stop_beyond_the_deadline() {
    let Some(service) = Service::install(file!(), &format!("[shutdown]\ndeadline = \"2s\"\n{FILES}")) else {
        return;
    };
    add_large_file(&service);
    service.ok(["systemctl", "start", UNIT]);
    let mut client = service.connect();
    client.ask("/files/large.bin").unwrap();
    assert_eq!(client.receive_head().unwrap().status, 200);

    let stop = service.stop();
    assert!(stop.took >= Duration::from_secs(2), "{:?}", stop.took);
    assert!(stop.took < Duration::from_secs(2) + LENIENCE, "{:?}", stop.took);
    service.assert_stopped_with(3);
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    assert!(warnings.contains("/files/large.bin"), "{warnings}");
    drop(client);
}

// ---------------------------------------------------------------------------
// The stop can be watched
// ---------------------------------------------------------------------------

#[test]
fn readiness_fails_from_the_first_moment_and_the_admin_child_answers_to_the_end() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/export");
    assert_eq!(service.admin("/readyz").status, 200);

    service.stop_meanwhile(|| {
        assert_eq!(service.admin("/readyz").status, 503);
        assert_eq!(service.admin("/livez").status, 200);
        assert!(service.admin("/status").text().contains("/app/export"));
        // It drains, and says of what.
        let status = service.show(UNIT, "StatusText");
        assert!(status.contains("1 request"), "{status}");
        assert_eq!(service.show(UNIT, "ActiveState"), "deactivating");
        exchange.answer(200, "");
        assert_eq!(client.receive().unwrap().status, 200);
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_stop_leaves_exactly_one_report_in_the_journal() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    service.stop();
    let journal = service.journal_json(UNIT, &[]);
    let reports: Vec<&str> = journal
        .lines()
        .filter(|line| {
            line.contains("\"_COMM\":\"steadfast\"") && line.contains("7f1c8a0f1e1f4c6a9b6f6c3f5d2f4a10")
        })
        .collect();
    assert_eq!(reports.len(), 1, "{journal}");
    assert!(reports[0].contains("SIGTERM"), "{}", reports[0]);
}

// ---------------------------------------------------------------------------
// Nobody follows
// ---------------------------------------------------------------------------

#[test]
fn a_client_that_keeps_asking_is_told_of_a_stop_and_loses_nothing() {
    // However long a client of this machine takes to ask again.
    let Some(service) = Service::start(file!(), "[shutdown]\nlinger = \"20s\"\n") else {
        return;
    };
    let clients: Vec<_> = (0..20).map(|_| service.connect()).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    // Asks until it is told that this was the last answer.
                    loop {
                        let answer = client.get("/")?;
                        if answer.header("connection") == Some("close") {
                            return Ok::<_, Failure>(answer.status);
                        }
                    }
                })
            })
            .collect();
        assert_eq!(service.connect().get("/").unwrap().status, 200);
        assert!(service.stop().output.status.success());
        for client in clients {
            let told = client.join().unwrap();
            assert_eq!(
                told.unwrap_or_else(|failure| panic!("{failure}\n{}", service.journal(UNIT, &[]))),
                200
            );
        }
    });
    service.assert_stopped_with(0);
    assert!(matches!(service.try_connect(), Err(Failure::Refused(_))));
}

// ---------------------------------------------------------------------------
// systemd's own limit
// ---------------------------------------------------------------------------

#[test]
fn a_daemon_reload_during_a_drain_gets_nobody_killed() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    let mut client = service.connect();
    client.ask("/app/slow").unwrap();
    let exchange = upstream.next_request();
    thread::scope(|scope| {
        let stop = service.begin_stop(scope);
        // systemd forgets what it was asked for and counts its own limit from the stop's beginning. Within the
        // deadline of the config as shipped, so time itself is the test.
        thread::sleep(Duration::from_secs(20));
        service.ok(["systemctl", "daemon-reload"]);
        thread::sleep(Duration::from_secs(1));
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().text(), "worth the wait");
        assert!(stop.join().unwrap().output.status.success());
    });
    service.assert_stopped_with(0);
}

#[test]
fn check_warns_where_the_units_limit_is_shorter_than_the_configs() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let check = || {
        let check = service.run(["steadfast", "check"]);
        assert!(check.status.success(), "{check:?}");
        check.stderr
    };
    assert_eq!(check(), "", "as shipped the unit's is longer");
    for (keys, stop) in [
        ("[shutdown]\ndelay = \"20s\"\ndeadline = \"30s\"\n", "50s"),
        ("[shutdown]\ndeadline = \"never\"\n", "without end"),
    ] {
        service.configure(keys);
        let warned = check();
        for expected in ["warning", "TimeoutStopSec=", stop] {
            assert!(warned.contains(expected), "{expected} in {warned:?}");
        }
        service.edit_unit("TimeoutStopSec=infinity");
        assert_eq!(check(), "");
        service.edit_unit("TimeoutStopSec=45s");
    }
    service.edit_unit("TimeoutStopSec=1min 30s");
    service.configure("[shutdown]\ndeadline = \"1m\"\n");
    assert_eq!(check(), "");
}
