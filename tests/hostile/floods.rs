//! More of everything than anyone needs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use steadfast_harness::{raise_descriptor_limit, wait_until};

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy, respond};
use crate::wire::{connect, read_to_end, statuses};

#[test]
fn a_flood_of_connections_is_held_at_the_limit_and_passes() {
    raise_descriptor_limit(8192);
    let limits = "max_connections = 200\nheader_timeout = \"1s\"\nkeepalive_timeout = \"30s\"";
    let site = Site::start(limits, &respond("/hello", "hello"));
    let mut kept = site.client();
    assert_eq!(kept.get("/hello").unwrap().status, 200);
    let flood: Vec<TcpStream> = (0..1000).map(|_| connect(site.http)).collect();
    // In the queue behind all of them.
    let mut late = site.client();
    late.ask("/hello").unwrap();
    wait_until("the limit to be reached", || (site.connections() >= 200).then_some(()));
    // Whoever is in has nothing to fear, and whoever waits gets his turn.
    for _ in 0..10 {
        assert_eq!(kept.get("/hello").unwrap().status, 200);
        let count = site.connections();
        assert!(count <= 200, "{count}");
    }
    assert_eq!(late.receive().unwrap().status, 200);
    drop(flood);
    site.assert_available("/hello");
}

#[test]
fn a_flood_of_connections_that_are_closed_at_once_leaves_nothing_behind() {
    let site = Site::start("", &respond("/hello", "hello"));
    site.assert_available("/hello");
    let before = site.resident();
    for _ in 0..5000 {
        drop(connect(site.http));
    }
    site.assert_available("/hello");
    // The client that asked is still there, perhaps.
    wait_until("the connections to be gone", || (site.connections() <= 1).then_some(()));
    assert!(site.resident() < before + (16 << 20), "{before} became {}", site.resident());
}

#[test]
fn a_flood_of_pipelined_requests_is_answered_in_order_one_by_one() {
    const COUNT: usize = 5000;
    let recorder = Recorder::start();
    let tables = proxy("/app/*", recorder.address, "") + "[[route]]\npath = \"/*\"\nstatus = true\n";
    let site = Site::start("", &tables);
    let mut sender = connect(site.http);
    let mut client = sender.try_clone().unwrap();
    let requests: Vec<String> = (0..COUNT)
        .map(|n| {
            let path = if n % 10 == 0 { "/app/" } else { "/" };
            let last = if n + 1 == COUNT { "Connection: close\r\n" } else { "" };
            format!("GET {path}{n} HTTP/1.1\r\nHost: a\r\n{last}\r\n")
        })
        .collect();
    let writer = std::thread::spawn(move || sender.write_all(requests.concat().as_bytes()));
    let answers = read_to_end(&mut client);
    writer.join().unwrap().unwrap();
    assert_eq!(statuses(&answers), vec![200; COUNT]);
    let text = String::from_utf8(answers).unwrap();
    let order: Vec<usize> = text
        .split("\"uri\":\"/")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
        .collect();
    assert!(order.is_sorted() && order.len() == COUNT - COUNT / 10, "{}", order.len());
    let paths: Vec<_> = recorder.requests().iter().map(|r| r.start.clone()).collect();
    let expected: Vec<_> = (0..COUNT).step_by(10).map(|n| format!("GET /app/{n} HTTP/1.1")).collect();
    assert_eq!(paths, expected);
}

#[test]
fn a_client_that_pipelines_and_never_reads_is_stopped_and_then_dropped() {
    // After the last request that a connection may make the rest is thrown away as fast as it comes.
    let limits = "write_timeout = \"1s\"\nrequests_per_connection = 2000000000";
    let site = Site::start(limits, &respond("/hello", "hello"));
    site.assert_available("/hello");
    let before = site.resident();
    let mut client = connect(site.http);
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let requests = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let mut sent = 0;
    // The kernel's buffers are full on both ways, and the daemon reads no more.
    while client.write_all(&requests).is_ok() {
        sent += requests.len();
        assert!(sent < 256 << 20, "somebody reads all this");
    }
    wait_until("the connection to be dropped", || (site.connections() == 0).then_some(()));
    assert!(site.resident() < before + (8 << 20), "{before} became {}", site.resident());
    site.assert_available("/hello");
}

#[test]
fn the_last_request_that_a_connection_may_make_is_answered_with_a_close() {
    let site = Site::start(&format!("{IMPATIENT}requests_per_connection = 3"), &respond("/hello", "hello"));
    let mut client = site.client();
    for last in [None, None, Some("close")] {
        let answer = client.get("/hello").unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, last));
    }
    client.wait_for_close().unwrap();

    // Those that were sent behind it get no answer: they may be sent again.
    let mut client = connect(site.http);
    client.write_all(&b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10)).unwrap();
    assert_eq!(statuses(&read_to_end(&mut client)), [200; 3]);
    let mut byte = [0];
    assert!(!matches!(client.read(&mut byte), Ok(1)));
}
