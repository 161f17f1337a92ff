//! Clients that send and read just enough not to be silent: a minimum rate ends what no silence limit does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::recorder::Recorder;
use crate::site::{Site, proxy, respond};
use crate::wire::{answer, connect};

/// Silence is allowed for so long that it ends nothing here.
const PATIENT: &str = "read_timeout = \"1h\"\nwrite_timeout = \"1h\"\n";

/// Later than any grace of these tests, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// Sends a byte every 100 ms until the daemon answers, and returns the answer's status.
fn trickle_a_body(site: &Site, length: usize) -> u16 {
    let mut client = connect(site.http);
    client
        .write_all(format!("POST /app/ HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes())
        .unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let began = Instant::now();
    let mut received = Vec::new();
    let mut sent = 0;
    loop {
        assert!(began.elapsed() < SOON, "it is still waited for after {:?}", began.elapsed());
        if sent < length {
            let _ = client.write(b"x");
            sent += 1;
        }
        match answer(&mut client, &mut received, false) {
            Ok(answer) => return answer.status(),
            Err(lost) => assert!(!lost.starts_with("closed"), "{lost}"),
        }
    }
}

#[test]
fn a_body_that_comes_more_slowly_than_min_rate_is_answered_with_408_after_the_grace() {
    let recorder = Recorder::start();
    let limits = format!("{PATIENT}min_rate = \"240B\"\nmin_rate_grace = \"1s\"\n");
    let site = Site::start(&limits, &proxy("/app/*", recorder.address, ""));
    let began = Instant::now();
    assert_eq!(trickle_a_body(&site, 1000), 408);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(recorder.requests(), []);
}

#[test]
fn a_body_that_comes_within_the_grace_or_faster_than_min_rate_is_taken() {
    let recorder = Recorder::start();
    let tables = proxy("/app/*", recorder.address, "");
    let graceful = Site::start(&format!("{PATIENT}min_rate = \"240B\"\nmin_rate_grace = \"1m\"\n"), &tables);
    assert_eq!(trickle_a_body(&graceful, 30), 200);
    // Ten bytes a second.
    let slow = Site::start(&format!("{PATIENT}min_rate = \"2B\"\nmin_rate_grace = \"1s\"\n"), &tables);
    assert_eq!(trickle_a_body(&slow, 30), 200);
    assert_eq!(recorder.requests().len(), 2);
}

#[test]
fn a_min_rate_of_0_waits_for_every_byte() {
    let recorder = Recorder::start();
    let limits = format!("{PATIENT}min_rate = \"0B\"\nmin_rate_grace = \"1s\"\n");
    let site = Site::start(&limits, &proxy("/app/*", recorder.address, ""));
    assert_eq!(trickle_a_body(&site, 30), 200);
    assert_eq!(recorder.requests()[0].body, [b'x'; 30]);
}

#[test]
fn a_body_that_nobody_asked_for_and_that_comes_more_slowly_than_min_rate_holds_no_place() {
    let limits = format!("{PATIENT}min_rate = \"240B\"\nmin_rate_grace = \"1s\"\n");
    let site = Site::start(&limits, &respond("/hello", "hello"));
    let mut client = connect(site.http);
    client.write_all(b"POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").unwrap();
    assert_eq!(answer(&mut client, &mut Vec::new(), false).unwrap().status(), 200);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) || site.connections() > 0 {
        assert!(began.elapsed() < SOON, "it is still read after {:?}", began.elapsed());
        let _ = client.write(b"x");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The part of an answer that is read before anything else happens, in bytes.
const BEGINNING: usize = 1024;

/// Asks for more than the sockets hold, and reads the beginning of it.
fn ask_for_much(site: &Site) -> TcpStream {
    let mut client = connect(site.http);
    client.write_all(b"GET /app/ HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.read_exact(&mut [0; BEGINNING]).unwrap();
    client
}

#[test]
fn an_answer_that_is_read_more_slowly_than_min_rate_is_dropped_after_the_grace_and_a_faster_reader_gets_all()
{
    const LENGTH: usize = 32 << 20;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").into_bytes();
    let large = Recorder::answering([head, vec![b'x'; LENGTH]].concat());
    let limits = format!("{PATIENT}min_rate = \"1MiB\"\nmin_rate_grace = \"2s\"\n");
    let site = Site::start(&limits, &proxy("/app/*", large.address, ""));
    let mut slow = ask_for_much(&site);
    let mut fast = ask_for_much(&site);
    let mut received = BEGINNING;
    let mut bytes = vec![0; 1 << 20];
    while received < LENGTH {
        let count = fast.read(&mut bytes).expect("a fast reader is served");
        assert!(count > 0, "it was dropped after {received} bytes");
        received += count;
    }
    // 10 KiB a second. What the sockets on the way took at once counts for it, but not for long.
    let began = Instant::now();
    while site.metric("steadfast_http_requests_in_flight") > 0 {
        assert!(began.elapsed() < SOON, "it is still served after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(100));
        let _ = slow.read(&mut [0; 1024]);
    }
}
