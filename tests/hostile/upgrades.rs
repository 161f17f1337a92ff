//! Upgrades that nobody has agreed to.

use std::io::{Read, Write};

use steadfast_harness::Upstream;

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy};
use crate::wire::{connect, read_to_end, say, statuses};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn what_is_no_upgrade_is_an_ordinary_request() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    for (start, fields) in [
        ("GET /a HTTP/1.1", "Upgrade: websocket\r\nConnection: close\r\n"),
        (
            "GET /a HTTP/1.1",
            "Upgrade: h2c\r\nConnection: close, Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        ),
        ("GET /a HTTP/1.1", "Upgrade: websocket, H2C\r\nConnection: close, upgrade\r\n"),
        ("GET /a HTTP/1.0", "Upgrade: websocket\r\nConnection: upgrade\r\n"),
        ("GET /a HTTP/1.1", "Connection: close, upgrade\r\n"),
    ] {
        let request = format!("{start}\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(statuses(&say(site.http, request.as_bytes())), [200], "{request}");
    }
    let requests = recorder.requests();
    assert_eq!(requests.len(), 5);
    for request in requests {
        for gone in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(request.field(gone), None, "{request:?}");
        }
    }
}

#[test]
fn an_upgrade_that_the_upstream_declines_leaves_what_follows_a_request_of_its_own() {
    let recorder = Recorder::start();
    let tables = proxy("/app/*", recorder.address, "") + "[[route]]\npath = \"/*\"\nstatus = true\n";
    let site = Site::start(IMPATIENT, &tables);
    let request = "GET /app/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n\r\n";
    let answers = say(site.http, [request, SMUGGLED].concat().as_bytes());
    assert_eq!(statuses(&answers), [200, 200]);
    // It went the way that its own path goes.
    assert!(answers.ends_with(b"\"uri\":\"/smuggled\"}"), "{}", answers.escape_ascii());
    assert_eq!(recorder.requests().len(), 1);
}

#[test]
fn bytes_that_come_behind_an_upgrade_wait_for_the_upstreams_word() {
    let upstream = Upstream::start();
    let site = Site::start(IMPATIENT, &proxy("/app/*", upstream.address(), ""));
    let mut client = connect(site.http);
    let request = "GET /app/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    client.write_all([request, SMUGGLED].concat().as_bytes()).unwrap();
    let mut exchange = upstream.next_request();
    assert_eq!(exchange.body, b"", "nothing before the upgrade is agreed upon");
    exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    // Now they are the other protocol's, whatever they look like.
    let mut tunnel = exchange.into_stream();
    let mut bytes = vec![0; SMUGGLED.len()];
    tunnel.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, SMUGGLED.as_bytes());
    tunnel.write_all(b"bye").unwrap();
    drop(tunnel);
    let answer = read_to_end(&mut client);
    assert!(
        answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(b"\r\n\r\nbye"),
        "{}",
        answer.escape_ascii()
    );
    assert!(upstream.try_next_request().is_none());
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_502_and_said_in_the_log() {
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let recorder = Recorder::answering(switching);
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let request = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(statuses(&say(site.http, request.as_bytes())), [502]);
    site.wait_for_line("of the upstream", |line| {
        line.contains("WARN") && line.contains("switched protocols")
    });
}

#[test]
fn an_upgrade_with_a_body_is_passed_on_once() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let request = format!(
        "POST /a HTTP/1.1\r\nHost: a\r\nConnection: close, Upgrade\r\nUpgrade: x\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
        SMUGGLED.len()
    );
    assert_eq!(statuses(&say(site.http, request.as_bytes())), [200]);
    let requests = recorder.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].body, SMUGGLED.as_bytes());
}
