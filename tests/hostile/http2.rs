//! Clients that speak HTTP/2 and mean no good: each holds little, for not too long, and nobody else waits for it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, cancel, frame, get, get_head,
    hello, post, window_update,
};
use steadfast_harness::{print_figure, wait_until};
use tempfile::TempDir;

use crate::recorder::Recorder;
use crate::site::{Site, files, proxy, respond, sum_in};
use crate::wire::{connect, say};

/// The number of such clients at a time.
const CLIENTS: usize = 20;

/// The memory that one of them may have the daemon hold, in bytes: 128 streams with 64 KiB of an answer each; or frames and a
/// head, of 64 KiB each, and what the allocator makes of these.
const WITH_ANSWERS: u64 = 8 << 20;
const WITH_NONE: u64 = 1 << 20;

/// All limits are of three seconds at most; the sweep is not far behind, on a machine that is not too busy.
const SOON: Duration = Duration::from_secs(30);

/// Longer than a good client may ever wait, on such a machine.
const TOO_LONG: Duration = Duration::from_secs(10);

/// Those that end bad clients soon. A good one has all the time that it needs for its head.
const LIMITS: &str = r#"
    h2c = true
    keepalive_timeout = "1s"
    read_timeout = "1s"
    write_timeout = "1s"
    min_rate_grace = "3s"
"#;

/// The numbers of so many streams.
fn streams(number: u32) -> impl Iterator<Item = u32> {
    (0..number).map(|stream| 2 * stream + 1)
}

/// Writes until the daemon has had enough.
fn pour(stream: &mut TcpStream, mut more: impl FnMut() -> Vec<u8>) {
    while stream.write_all(&more()).is_ok() {}
}

/// Reads, so that the daemon is never held up, until it has closed.
fn drain(stream: &TcpStream) {
    let mut stream = stream.try_clone().expect("a descriptor");
    let mut waste = [0; 16 << 10];
    while stream.read(&mut waste).is_ok_and(|n| n > 0) {}
}

/// A site of everything that can be asked for, and what is behind it.
fn serving(limits: &str) -> (Site, (TempDir, Recorder)) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("large"), vec![7; 8 << 20]).expect("it can be written");
    let recorder = Recorder::start();
    let tables = respond("/hello", "hello")
        + &files("/files/*", folder.path())
        // Some tests open thousands of connections to it at once.
        + &proxy("/app/*", recorder.address, ", connect_timeout = \"60s\"");
    (Site::start(limits, &tables), (folder, recorder))
}

/// Has many clients do their worst beside a good one, until the limits of time have ended all of them, for this reason alone.
/// Returns the number of times that it was one.
fn endures(what: &str, bound: u64, reason: &str, client: impl Fn(TcpStream) + Sync) -> u64 {
    endures_with(LIMITS, what, bound, reason, client)
}

/// The same with clients of whom each is ended by what it does, and not by the time that it takes, of which it has enough.
fn endures_flood(what: &str, bound: u64, client: impl Fn(TcpStream) + Sync) {
    assert_eq!(endures_with("h2c = true", what, bound, "flood", client), CLIENTS as u64, "{what}");
}

fn endures_with(
    limits: &str,
    what: &str,
    bound: u64,
    reason: &str,
    client: impl Fn(TcpStream) + Sync,
) -> u64 {
    let (site, _behind) = serving(limits);
    site.assert_available("/hello");
    let before = site.resident();
    let (mut most, mut longest) = (before, Duration::ZERO);
    let began = Instant::now();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(connect(site.http)))).collect();
        while clients.iter().any(|client| !client.is_finished()) {
            let asked = Instant::now();
            site.assert_available("/hello");
            longest = longest.max(asked.elapsed());
            most = most.max(site.resident());
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(longest < TOO_LONG, "{longest:?}");
    wait_until("the connections to be gone", || (site.connections() == 0).then_some(()));
    print_figure(&format!("{what}: longest wait of a good client, ms"), longest.as_millis());
    let each = most.saturating_sub(before) / CLIENTS as u64;
    print_figure(&format!("{what}: KiB of each"), each >> 10);
    assert!(each < bound, "{what}: {each}");
    let number = refused(&site, reason);
    let metrics = site.metrics();
    assert_eq!(number, sum_in(&metrics, REFUSED), "{what}: others than {reason} in:\n{metrics}");
    number
}

/// Reads, until so many heads of answers have come. False if the daemon has closed before.
fn read_heads(stream: &mut TcpStream, number: u32) -> bool {
    let mut heads = 0;
    while heads < number {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return false;
        }
        let [a, b, c, kind, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if stream.read_exact(&mut payload).is_err() {
            return false;
        }
        heads += u32::from(kind == HEADERS);
    }
    true
}

const REFUSED: &str = "steadfast_http_refused_total";

/// The number of clients, or of their requests, that were refused for this reason.
fn refused(site: &Site, reason: &str) -> u64 {
    site.metric(&format!("{REFUSED}{{reason=\"{reason}\"}}"))
}

// ---- what they do --------------------------------------------------------------------------------------------

#[test]
fn requests_that_are_taken_back_at_once() {
    // h2 itself ends those whose resets come before it has looked at the requests.
    endures_flood("rapid reset", WITH_ANSWERS, |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        thread::scope(|scope| {
            let reader = stream.try_clone().unwrap();
            scope.spawn(move || drain(&reader));
            let mut numbers = streams(u32::MAX >> 2);
            pour(&mut stream, || {
                let number = numbers.next().unwrap();
                [get(number, "/files/large"), cancel(number)].concat()
            });
        });
    });
}

#[test]
fn answers_that_are_taken_back_before_they_are_written() {
    let (site, _behind) = serving("h2c = true");
    for (number, path) in (1..).zip(["/files/large", "/hello", "/app/"]) {
        let mut stream = connect(site.http);
        stream.write_all(&hello(0)).unwrap();
        // The whole answer to each is there, or made at once, and there is no room for any.
        let was_refused = (0..100).any(|round| {
            let numbers = || (0..100).map(|n| 2 * (100 * round + n) + 1);
            let asks: Vec<u8> = numbers().flat_map(|number| get(number, path)).collect();
            let resets = numbers().flat_map(cancel);
            stream.write_all(&asks).is_err()
                || !read_heads(&mut stream, 100)
                || stream.write_all(&resets.collect::<Vec<_>>()).is_err()
        });
        assert!(was_refused, "{path}: ten thousand answers for nobody");
        site.assert_available("/hello");
        assert_eq!(refused(&site, "flood"), number, "{path}");
    }
}

#[test]
fn a_head_that_goes_on_for_ever() {
    endures_flood("continuation flood", WITH_NONE, |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        let _ = stream.write_all(&frame(HEADERS, 0, 1, &get_head("/hello")));
        // A field of 16,000 bytes in each.
        let field = [&[0x00, 1, b'x', 0x7f, 0x81, 0x7c][..], &[b'y'; 16_000]].concat();
        pour(&mut stream, || frame(CONTINUATION, 0, 1, &field));
    });
    endures_flood("continuation flood, of empty ones", WITH_NONE, |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        let _ = stream.write_all(&frame(HEADERS, 0, 1, &get_head("/hello")));
        pour(&mut stream, || frame(CONTINUATION, 0, 1, &[]));
    });
}

#[test]
fn a_head_that_unpacks_to_much_more() {
    endures_flood("a bomb of indexed fields", WITH_NONE, |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        // One field of 4,000 bytes goes into the table, and each byte that follows stands for it again.
        let field = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
        let block = [get_head("/hello"), field, vec![0xbe; 10_000]].concat();
        for number in streams(1000) {
            if stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number, &block)).is_err() {
                break;
            }
        }
        // It may be closed by now.
        stream.shutdown(Shutdown::Write).unwrap_or_default();
        drain(&stream);
    });
}

#[test]
fn settings_and_pings_without_end() {
    for (what, kind) in [
        ("ping flood", frame(PING, 0, 0, &[0; 8])),
        ("settings flood", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
    ] {
        let many = kind.repeat(1000);
        endures_flood(what, WITH_NONE, |mut stream| {
            stream.write_all(&hello(65_535)).unwrap();
            pour(&mut stream, || many.clone());
        });
    }
}

#[test]
fn answers_that_are_never_read() {
    const EACH: u64 = 128;
    for (what, path) in [("zero windows, files", "/files/large"), ("zero windows, short answers", "/hello")] {
        let ended = endures(what, WITH_ANSWERS, "slow_reader", |mut stream| {
            stream.write_all(&hello(0)).unwrap();
            stream.write_all(&streams(128).flat_map(|number| get(number, path)).collect::<Vec<_>>()).unwrap();
            drain(&stream);
        });
        assert_eq!(ended, EACH * CLIENTS as u64, "{what}");
    }
    // With the first of these streams, or the socket, ends the connection, which takes the others along.
    let by_bytes = endures("windows of a byte", WITH_ANSWERS, "slow_reader", |mut stream| {
        stream.write_all(&hello(1)).unwrap();
        stream.write_all(&streams(128).flat_map(|number| get(number, "/hello")).collect::<Vec<_>>()).unwrap();
        drain(&stream);
    });
    let unread = endures("a socket that is not read", WITH_ANSWERS, "slow_reader", |mut stream| {
        stream.write_all(&hello((1 << 31) - 1)).unwrap();
        stream.write_all(&window_update(0, 0x7fff_0000)).unwrap();
        stream.write_all(&streams(128).flat_map(|n| get(n, "/files/large")).collect::<Vec<_>>()).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // It is closed by a reset, which only a write sees.
        while stream.write_all(&window_update(1, 1)).is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    for ended in [by_bytes, unread] {
        assert!((CLIENTS as u64..=EACH * CLIENTS as u64).contains(&ended), "{by_bytes}, {unread}");
    }
}

#[test]
fn windows_that_grow_byte_by_byte() {
    let ended = endures("windows of a byte at a time", WITH_ANSWERS, "slow_reader", |mut stream| {
        stream.write_all(&hello(0)).unwrap();
        stream.write_all(&streams(20).flat_map(|n| get(n, "/files/large")).collect::<Vec<_>>()).unwrap();
        thread::scope(|scope| {
            let reader = stream.try_clone().unwrap();
            scope.spawn(move || drain(&reader));
            let updates: Vec<u8> = streams(20).flat_map(|n| window_update(n, 1)).collect();
            while stream.write_all(&updates).is_ok() {
                thread::sleep(Duration::from_millis(200));
            }
        });
    });
    assert_eq!(ended, 20 * CLIENTS as u64);
}

#[test]
fn heads_and_bodies_that_take_their_time() {
    // Shorter than it takes a bad client, and longer than it takes a good one.
    let limits = format!("{LIMITS}header_timeout = \"3s\"");
    let ended = endures_with(&limits, "slow heads", WITH_NONE, "header_timeout", |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        thread::scope(|scope| {
            let reader = stream.try_clone().unwrap();
            scope.spawn(move || drain(&reader));
            for byte in get(1, &format!("/hello?{}", "x".repeat(110))) {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(200));
            }
            panic!("the daemon has waited for the head of a request");
        });
    });
    assert_eq!(ended, CLIENTS as u64);
    let ended = endures("bodies that never end", WITH_ANSWERS, "slow_body", |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        stream
            .write_all(&streams(128).flat_map(|number| post(number, "/app/", &[])).collect::<Vec<_>>())
            .unwrap();
        let _ =
            stream.write_all(&streams(16).flat_map(|n| frame(DATA, 0, n, &[0; 8000])).collect::<Vec<_>>());
        drain(&stream);
    });
    assert_eq!(ended, 128 * CLIENTS as u64);
    let ended = endures("bodies in single bytes", WITH_ANSWERS, "slow_body", |mut stream| {
        stream.write_all(&hello(65_535)).unwrap();
        stream.write_all(&post(1, "/app/", &[])).unwrap();
        thread::scope(|scope| {
            let reader = stream.try_clone().unwrap();
            scope.spawn(move || drain(&reader));
            while stream.write_all(&frame(DATA, 0, 1, &[0])).is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
    });
    assert_eq!(ended, CLIENTS as u64);
}

#[test]
fn streams_beyond_the_limit() {
    endures_flood("two thousand streams", WITH_ANSWERS, |mut stream| {
        stream.write_all(&hello(0)).unwrap();
        let _ = stream.write_all(&streams(2000).flat_map(|n| get(n, "/files/large")).collect::<Vec<_>>());
        drain(&stream);
    });
}

// ---- what they are told --------------------------------------------------------------------------------------

/// The status of the answer to a `HEAD`, and its length if it says one: with HTTP/2, and with HTTP/1.
fn heads(site: &Site, path: &str, field: (&str, &str)) -> [(u16, Option<String>); 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let with_http2 = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(site.http).await.expect("it listens");
        let (mut requests, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        let request = axum::http::Request::head(format!("http://a{path}")).header(field.0, field.1);
        let (answer, _) =
            requests.send_request(request.body(()).expect("a request"), true).expect("it takes requests");
        let answer = tokio::select! {
            answer = answer => answer.expect("an answer"),
            ended = connection => panic!("the connection has ended: {ended:?}"),
        };
        let length = answer.headers().get("content-length");
        (answer.status().as_u16(), length.map(|length| length.to_str().expect("text").to_owned()))
    });
    let request =
        format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}: {}\r\n\r\n", field.0, field.1);
    let answer = String::from_utf8(say(site.http, request.as_bytes())).expect("text");
    let status = answer.split(' ').nth(1).expect("a status").parse().expect("a number");
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
    [with_http2, (status, length.map(str::to_owned))]
}

#[test]
fn a_head_has_the_same_length_in_http2_as_in_http1_and_none_that_nobody_has_said() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "hello").expect("it can be written");
    let chunked = Recorder::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let sized = Recorder::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let unmodified = Recorder::answering("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n");
    let empty = Recorder::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let tables = respond("/hello", "hello")
        + &files("/files/*", folder.path())
        + &proxy("/chunked", chunked.address, "")
        + &proxy("/sized", sized.address, "")
        + &proxy("/unmodified", unmodified.address, "")
        + &proxy("/empty", empty.address, "");
    let site = Site::start(LIMITS, &tables);
    let condition = ("if-modified-since", "Fri, 31 Dec 2060 23:59:59 GMT");
    let none = ("accept", "*/*");
    for (path, field, status, length) in [
        ("/hello", none, 200, Some("5")),
        ("/files/file", none, 200, Some("5")),
        ("/files/file", condition, 304, None),
        ("/chunked", none, 200, None),
        ("/sized", none, 200, Some("5")),
        ("/unmodified", ("if-none-match", "\"a\""), 304, None),
        ("/empty", none, 204, None),
    ] {
        let expected = (status, length.map(str::to_owned));
        assert_eq!(heads(&site, path, field), [expected.clone(), expected], "{path}");
    }
}
