//! Requests that are too large.

use std::io::Write;

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy, respond};
use crate::wire::{Message, connect, read_to_end, say, statuses};

#[test]
fn a_head_over_the_limit_is_answered_with_431() {
    let limits = format!("{IMPATIENT}header_limit = \"8KiB\"");
    let site = Site::start(&limits, &respond("/*", "hello"));
    let with = |field: &str| format!("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{field}\r\n");
    let many: Vec<String> = (0..99).map(|n| format!("X-{n}: {}\r\n", "x".repeat(10))).collect();
    for (fields, status) in [
        (format!("X: {}\r\n", "x".repeat(7 << 10)), 200),
        (format!("X: {}\r\n", "x".repeat(8 << 10)), 431),
        (format!("X: {}\r\n", "x".repeat(1 << 20)), 431),
        (format!("{}: x\r\n", "x".repeat(1 << 20)), 431),
        (format!("Cookie: {}\r\n", "a=b; ".repeat(100_000)), 431),
        (many.concat().repeat(10), 431),
    ] {
        assert_eq!(statuses(&say(site.http, with(&fields).as_bytes())), [status], "{} bytes", fields.len());
    }
    site.assert_available("/a");
}

#[test]
fn more_fields_than_any_request_needs_are_answered_with_431() {
    let site = Site::start(IMPATIENT, &respond("/*", "hello"));
    let with = |count: usize| {
        format!("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n", "X: y\r\n".repeat(count))
    };
    // With Host and Connection, 100 fields are taken.
    assert_eq!(statuses(&say(site.http, with(98).as_bytes())), [200]);
    for count in [99, 10_000] {
        let refused = say(site.http, with(count).as_bytes());
        let refused = Message::parse(&mut &refused[..]).expect("an answer");
        assert!(refused.start.starts_with("HTTP/1.1 431 "), "{refused:?}");
        assert_eq!(refused.field("connection"), Some("close"), "{refused:?}");
    }
}

#[test]
fn a_path_over_64_kib_is_answered_with_414() {
    let site = Site::start(&format!("{IMPATIENT}header_limit = \"256KiB\""), &respond("/*", "hello"));
    let with = |length: usize| {
        format!("GET /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "a".repeat(length - 1))
    };
    assert_eq!(statuses(&say(site.http, with(65_000).as_bytes())), [200]);
    assert_eq!(statuses(&say(site.http, with(70_000).as_bytes())), [414]);
}

#[test]
fn a_head_without_an_end_costs_its_limit_and_no_more() {
    let site = Site::start("", &respond("/*", "hello"));
    site.assert_available("/a");
    let before = site.resident();
    let endless = [b"GET /a HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 16 << 20]].concat();
    for _ in 0..10 {
        assert_eq!(statuses(&say(site.http, &endless)), [431]);
    }
    assert!(site.resident() < before + (8 << 20), "{before} became {}", site.resident());
}

#[test]
fn a_body_over_the_limit_is_answered_with_413_and_is_never_whole_for_the_upstream() {
    let recorder = Recorder::start();
    let site = Site::start(&format!("{IMPATIENT}body_limit = \"64KiB\""), &proxy("/*", recorder.address, ""));
    let announced = [
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1 << 20).into_bytes(),
        vec![b'x'; 1 << 20],
    ]
    .concat();
    assert_eq!(statuses(&say(site.http, &announced)), [413]);
    let chunk = [b"1000\r\n".as_slice(), &vec![b'x'; 0x1000], b"\r\n"].concat();
    let mut client = connect(site.http);
    client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..32 {
        let _ = client.write_all(&chunk);
    }
    let _ = client.write_all(b"0\r\n\r\n");
    assert_eq!(statuses(&read_to_end(&mut client)), [413]);
    assert_eq!(recorder.requests(), []);
    assert_eq!(recorder.malformed(), [""; 0]);
}

#[test]
fn chunk_extensions_and_trailers_without_an_end_are_refused() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for endless in [
        [head.as_slice(), b"5;", &vec![b'x'; 1 << 20]].concat(),
        [head.as_slice(), &b"1;xxxxxxxx\r\na\r\n".repeat(100_000)].concat(),
        [head.as_slice(), b"0\r\nX: ", &vec![b'x'; 1 << 20]].concat(),
        [head.as_slice(), b"0\r\n", &b"X: y\r\n".repeat(100_000)].concat(),
    ] {
        assert_eq!(statuses(&say(site.http, &endless)), [400]);
    }
    assert_eq!(recorder.requests(), []);
    site.assert_available("/a");
}
