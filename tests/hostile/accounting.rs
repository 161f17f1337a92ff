//! Every request that was begun is ended, counted and logged, whatever its answer looks like and however late its
//! client reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use steadfast_harness::{Client, Signal, wait_until};

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, files, metric_in, proxy, respond};
use crate::wire::{answer, connect, read_to_end};

/// In `[log]`.
const ACCESS: &str = "access = \"all\"\n";

const IN_FLIGHT: &str = "steadfast_http_requests_in_flight";

/// The number of lines of the access log that tell of this request, answered.
fn logged(site: &Site, request: &str) -> usize {
    site.lines(|line| line.contains(&format!("{request} 200 answered")))
}

#[test]
fn an_empty_file_is_answered_counted_and_logged_and_its_connection_is_idle_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::write(folder.path().join("full"), "full").unwrap();
    let mut site = Site::start("", &(ACCESS.to_owned() + &files("/*", folder.path())));
    let mut client = site.client();
    for path in ["/empty", "/full", "/empty"] {
        let answer = client.get(path).unwrap();
        let length = if path == "/full" { "4" } else { "0" };
        assert_eq!((answer.status, answer.header("content-length")), (200, Some(length)));
    }
    wait_until("all of them to be ended", || (site.metric(IN_FLIGHT) == 0).then_some(()));
    assert_eq!(site.requests('2'), 3);

    // Nothing is left to wait for, the client that stays included.
    site.signal(Signal::TERM);
    assert_eq!(site.wait(), 0, "{}", site.stderr());
    assert_eq!((logged(&site, "GET /empty"), logged(&site, "GET /full")), (2, 1), "{}", site.stderr());
}

const BROKEN_OFF: &str = "steadfast_http_requests_broken_off_total";

#[test]
fn an_answer_that_breaks_off_on_this_side_is_logged_as_that_and_no_client_is_blamed() {
    // Too little in the time that the upstream has, and a file that is no longer what it was.
    let recorder = Recorder::answering("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("large")).unwrap();
    file.set_len(64 << 20).unwrap();
    let tables = proxy("/proxy", recorder.address, ", timeout = \"1s\"") + &files("/files/*", folder.path());
    let site = Site::start("", &tables);

    let mut client = connect(site.http);
    client.write_all(b"GET /proxy HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(read_to_end(&mut client).ends_with(b"hello"));

    let mut client = narrow(site.http);
    client.write_all(b"GET /files/large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the answer to begin", || at_a_standstill(&site, "/files/large").filter(|sent| *sent > 0));
    file.set_len(1000).unwrap();
    assert!(read_to_end(&mut client).len() < 64 << 20);

    for path in ["/proxy", "/files/large"] {
        // As it is by default, with the errors alone.
        site.wait_for_line("of it", |line| line.contains(&format!("GET {path} 200 broken off")));
    }
    assert_eq!(site.metric(BROKEN_OFF), 2);
    assert_eq!(site.metric("steadfast_http_requests_client_gone_total"), 0);
}

/// A request at an upstream that answers as soon as it has its head.
struct Early {
    address: SocketAddr,
    /// Its head is there, and the answer on its way.
    begun: mpsc::Receiver<()>,
    /// Its body is there.
    whole: mpsc::Receiver<()>,
}

impl Early {
    /// Answers one request with a body of so many bytes.
    fn answering(length: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (has_head, begun) = mpsc::channel();
        let (has_body, whole) = mpsc::channel();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut received = read_until(&stream, Vec::new(), b"\r\n\r\n");
            has_head.send(()).unwrap();
            let writer = thread::spawn(move || {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                writer.write_all(&[head.as_bytes(), &vec![b'x'; length]].concat()).unwrap();
            });
            received = read_until(&stream, received, BODY.as_bytes());
            assert!(received.ends_with(BODY.as_bytes()), "{}", received.escape_ascii());
            has_body.send(()).unwrap();
            writer.join().unwrap();
        });
        Self { address, begun, whole }
    }
}

const BODY: &str = "hello world";

fn read_until(mut stream: &TcpStream, mut received: Vec<u8>, end: &[u8]) -> Vec<u8> {
    let mut bytes = [0; 16 * 1024];
    while !received.windows(end.len()).any(|window| window == end) {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "ended after {}", received.escape_ascii());
        received.extend_from_slice(&bytes[..count]);
    }
    received
}

/// A client whose socket takes little that it has not read.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// The bytes of its answer that a request at a standstill has been sent; `None` if it is ended.
fn at_a_standstill(site: &Site, path: &str) -> Option<usize> {
    let mut before = None;
    wait_until("an answer to come to a standstill", || {
        let status = Client::connect(site.admin).unwrap().get("/status").unwrap();
        let status: Value = serde_json::from_slice(&status.body).unwrap();
        let request = status["requests"].as_array().unwrap().iter().find(|request| request["path"] == path);
        let sent = request.map(|request| usize::try_from(request["sent"].as_u64().unwrap()).unwrap());
        thread::sleep(Duration::from_millis(100));
        (before.replace(sent) == Some(sent)).then_some(sent)
    })
}

#[test]
fn a_request_behind_an_answer_that_its_client_reads_late_is_answered_and_both_are_counted() {
    // The bytes that the sockets between the daemon and a client that does not read hold: the last bytes of an
    // answer that is a little longer stay with the daemon.
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join("large")).unwrap().set_len(64 << 20).unwrap();
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = narrow(site.http);
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until("the answer to begin", || at_a_standstill(&site, "/large").filter(|sent| *sent > 0));
    let room = at_a_standstill(&site, "/large").unwrap();
    drop((client, site));

    let lengths: Vec<usize> = (0..8).map(|n| room - (32 << 10) + n * (16 << 10)).collect();
    let upstreams: Vec<Early> = lengths.iter().map(|&length| Early::answering(length)).collect();
    let mut tables = ACCESS.to_owned() + &respond("/hello", "hello");
    for (length, early) in lengths.iter().zip(&upstreams) {
        tables += &proxy(&format!("/early/{length}"), early.address, "");
    }
    let mut site = Site::start("", &tables);
    let late = |site: &Site, length: &usize, early: Early| {
        let path = format!("/early/{length}");
        let mut client = narrow(site.http);
        let (now, later) = BODY.split_at(5);
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{now}", BODY.len());
        client.write_all(request.as_bytes()).unwrap();
        early.begun.recv().unwrap();
        at_a_standstill(site, &path);
        client.write_all(format!("{later}GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        early.whole.recv().unwrap();
        at_a_standstill(site, &path);
        let mut received = Vec::new();
        for expected in [*length, 5] {
            let answer =
                answer(&mut client, &mut received, false).map_err(|lost| format!("{length}: {lost:.80}"))?;
            assert_eq!((answer.status(), answer.body.len()), (200, expected));
        }
        Ok(())
    };
    let lost: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = lengths
            .iter()
            .zip(upstreams)
            .map(|(length, early)| scope.spawn(|| late(&site, length, early)))
            .collect();
        clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect()
    });
    assert!(lost.is_empty(), "{} in flight for ever, {lost:#?}", site.metric(IN_FLIGHT));
    wait_until("all of them to be ended", || (site.metric(IN_FLIGHT) == 0).then_some(()));
    assert_eq!(site.requests('2'), 2 * lengths.len() as u64);
    site.signal(Signal::TERM);
    assert_eq!(site.wait(), 0, "{}", site.stderr());
    for length in &lengths {
        assert_eq!(logged(&site, &format!("POST /early/{length}")), 1, "{}", site.stderr());
    }
    assert_eq!(logged(&site, "GET /hello"), lengths.len(), "{}", site.stderr());
}

#[test]
fn each_client_that_is_not_served_to_the_end_is_counted_by_the_reason() {
    let recorder = Recorder::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let limits = format!("{IMPATIENT}body_limit = \"1KiB\"\n");
    let site = Site::start(&limits, &proxy("/*", recorder.address, ""));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let requests: [(&str, &str, &str); 8] = [
        ("bad_request", "nonsense\r\n\r\n", "400"),
        ("bad_request", "GET / HTTP/1.1\r\n\r\n", "400"),
        ("bad_request", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        ("head_too_large", &large, "431"),
        ("header_timeout", "GET / HTTP/1.1\r\nHo", "408"),
        ("body_too_large", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n", "413"),
        (
            "body_too_large",
            &format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n",
                "x".repeat(2000)
            ),
            "413",
        ),
        ("slow_body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", "408"),
    ];
    let mut expected = BTreeMap::<_, u64>::new();
    for (reason, request, status) in requests {
        let mut client = connect(site.http);
        // A server that refuses it early may close before all of it is sent.
        let _ = client.write_all(request.as_bytes());
        let answer = String::from_utf8_lossy(&read_to_end(&mut client)).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.60}: {answer}");
        *expected.entry(reason).or_default() += 1;
    }
    for (reason, number) in expected {
        let series = format!("steadfast_http_refused_total{{reason=\"{reason}\"}}");
        // Each was counted before its client was told.
        assert_eq!(site.metric(&series), number, "{reason}");
    }
}

#[test]
fn bytes_are_counted_while_their_connection_is_open_and_once_after_it_has_closed() {
    let site = Site::start("", &respond("/*", "hello"));
    let moved = || {
        let metrics = site.metrics();
        ["received", "sent"].map(|way| metric_in(&metrics, &format!("steadfast_http_{way}_bytes_total")))
    };
    assert_eq!(moved(), [0, 0]);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answers: u64 = (0..2)
        .map(|_| {
            let mut client = connect(site.http);
            client.write_all(request).unwrap();
            read_to_end(&mut client).len() as u64
        })
        .sum();
    assert_eq!(moved(), [2 * request.len() as u64, answers]);
    wait_until("the connections to be closed", || (site.connections() == 0).then_some(()));
    assert_eq!(moved(), [2 * request.len() as u64, answers]);
}
