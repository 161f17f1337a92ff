//! Clients that take their time: each has its limit, and nobody else waits for it.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::{Client, Upstream, print_figure, wait_until};

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, files, metric_in, proxy, requests_in, respond};
use crate::wire::{connect, read_to_end, statuses};

/// Enough at once that each would be noticed if others waited for it.
const MANY: usize = 100;

/// These limits are of few seconds; the sweep is not far behind, on a machine that is not too busy.
const SOON: Duration = Duration::from_secs(20);

/// Runs `client` many times at once, while another client is served all along.
fn many(site: &Site, client: impl Fn() + Sync) {
    let began = Instant::now();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..MANY).map(|_| scope.spawn(&client)).collect();
        let mut strict = site.client();
        while clients.iter().any(|client| !client.is_finished()) {
            assert_eq!(strict.get("/hello").expect("it is served all along").status, 200);
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn a_hundred_slow_heads_are_answered_with_408_and_nobody_waits_for_them() {
    let site = Site::start("header_timeout = \"3s\"", &respond("/hello", "hello"));
    many(&site, || {
        let mut client = connect(site.http);
        let mut sender = client.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let head = b"GET /hello HTTP/1.1\r\nHost: a\r\nX-Slow: ";
                let trickle = head.chunks(1).chain([b"x".as_slice()].into_iter().cycle());
                for byte in trickle {
                    if sender.write_all(byte).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            });
            assert_eq!(statuses(&read_to_end(&mut client)), [408]);
            let _ = client.shutdown(Shutdown::Both);
        });
    });
}

#[test]
fn a_hundred_bodies_that_stop_coming_are_answered_with_408_and_nobody_waits_for_them() {
    let recorder = Recorder::start();
    let tables = respond("/hello", "hello") + &proxy("/app/*", recorder.address, "");
    let site = Site::start("read_timeout = \"1s\"", &tables);
    many(&site, || {
        let mut client = connect(site.http);
        client.write_all(b"POST /app/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello").unwrap();
        assert_eq!(statuses(&read_to_end(&mut client)), [408]);
    });
    assert_eq!(recorder.requests(), []);
}

#[test]
fn a_body_in_chunks_that_stops_between_them_holds_no_place_whatever_answers_it() {
    // What comes first, and what comes later, of which no reader is given anything.
    const BODIES: [(&str, &str); 6] = [
        ("", "5"),
        ("", "5\r\n"),
        ("", "5;extension"),
        ("5\r\nhello", "\r\n"),
        ("5\r\nhello\r\n", "0"),
        ("5\r\nhello\r\n0\r\n", "X"),
    ];
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "a file").unwrap();
    let tables = respond("/hello", "hello")
        + &files("/files/*", folder.path())
        + &proxy("/app/*", upstream.address(), "");
    let site = Site::start(IMPATIENT, &tables);
    for (path, status) in [("/hello", 200), ("/files/file", 405), ("/app/", 408)] {
        let clients = BODIES.map(|(first, later)| {
            let mut client = connect(site.http);
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.write_all((head + first).as_bytes()).unwrap();
            // When the head is there the body was asked for.
            let passed = (status == 408).then(|| upstream.next_request());
            // The answer may have been the last one.
            let _ = client.write_all(later.as_bytes());
            (client, first, later, passed)
        });
        for (mut client, first, later, _passed) in clients {
            assert_eq!(statuses(&read_to_end(&mut client)), [status], "{path} {first:?} {later:?}");
        }
    }
    wait_until("no connection to be left", || (site.connections() == 0).then_some(()));
}

#[test]
fn a_body_that_comes_slowly_but_comes_is_taken() {
    let recorder = Recorder::start();
    let site = Site::start("read_timeout = \"4s\"", &proxy("/app/*", recorder.address, ""));
    let mut client = site.client();
    client.send("POST /app/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n").unwrap();
    for byte in b"patience!!" {
        client.send([*byte]).unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(client.receive().unwrap().status, 200);
    assert_eq!(recorder.requests()[0].body, b"patience!!");
}

#[test]
fn whoever_does_not_read_is_dropped_after_the_write_timeout_and_costs_a_bounded_amount_of_memory() {
    // More than the kernel's buffers take.
    let large = Recorder::answering(
        [
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20).into_bytes(),
            vec![b'x'; 64 << 20],
        ]
        .concat(),
    );
    let tables = respond("/hello", "hello") + &proxy("/app/*", large.address, "");
    let site = Site::start("write_timeout = \"3s\"", &tables);
    let before = site.resident();
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let mut client = connect(site.http);
            client.write_all(b"GET /app/ HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            client
        })
        .collect();
    let in_flight = "steadfast_http_requests_in_flight";
    wait_until("all of them to be answered", || {
        let metrics = site.metrics();
        // The first may have been dropped by then.
        (metric_in(&metrics, in_flight) + requests_in(&metrics, '2') >= 20).then_some(())
    });
    let mut strict = site.client();
    let mut most = 0;
    wait_until("all of them to be dropped", || {
        assert_eq!(strict.get("/hello").unwrap().status, 200);
        most = most.max(site.resident());
        (site.metric(in_flight) == 0).then_some(())
    });
    drop(readers);
    print_figure(
        "memory of a client that does not read a proxied answer",
        format_args!("{} KiB", most.saturating_sub(before) / 20 / 1024),
    );
    // 1 MiB each, where 64 were asked for: hyper's buffers on both sides, and the allocator's leavings.
    assert!(most < before + (20 << 20), "{before} became {most}");
    assert_eq!(site.lines(|line| line.contains("WARN")), 0, "{}", site.stderr());
}

#[test]
fn a_client_that_closes_its_half_gets_its_answer_or_a_close_and_keeps_nothing_open() {
    let site = Site::start(IMPATIENT, &respond("/hello", "hello"));
    for sent in ["", "GET /hello HT", "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = connect(site.http);
        client.write_all(sent.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answered = statuses(&read_to_end(&mut client));
        let whole = sent.ends_with("\r\n\r\n");
        assert!(
            answered == [200] || (!whole && [vec![], vec![400]].contains(&answered)),
            "{sent:?}: {answered:?}"
        );
    }
    wait_until("no connection to be left", || (site.connections() == 0).then_some(()));
}

#[test]
fn clients_that_reset_their_connections_leave_nothing_behind() {
    let site = Site::start("", &respond("/hello", "hello"));
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", site.worker())).expect("the daemon runs").count();
    site.assert_available("/hello");
    let before = descriptors();
    for sent in ["", "GET /hello HT", "POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello"] {
        for _ in 0..MANY {
            let mut client = connect(site.http);
            client.write_all(sent.as_bytes()).unwrap();
            // Bytes that were received and not read make the close a reset; a linger of zero does so for sure.
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
    }
    wait_until("every descriptor to be closed", || (descriptors() <= before).then_some(()));
    let _: Client = site.client();
}

#[test]
fn an_idle_connection_is_closed_in_time_also_after_a_body_that_nobody_read() {
    let site = Site::start(IMPATIENT, &respond("/hello", "hello"));
    for body in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    {
        let mut client = connect(site.http);
        client.write_all(format!("POST /hello HTTP/1.1\r\nHost: a\r\n{body}").as_bytes()).unwrap();
        assert_eq!(statuses(&read_to_end(&mut client)), [200]);
    }
}
