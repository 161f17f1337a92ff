//! Upstreams that are down, slow, or break off: the client learns it by the status, the operator by one line.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::site::{IMPATIENT, Site, proxy, respond};
use crate::wire::{Message, Wrong, connect, read_to_end};

/// An upstream that does the same with each connection, and how often it was connected to.
fn upstream(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = std::sync::Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn head(stream: &mut TcpStream) {
    let mut received = Vec::new();
    let mut byte = [0];
    while !received.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        received.push(byte[0]);
    }
}

fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// The answer that a client gets, and true if the daemon logged one line about the upstream. Others are served
/// meanwhile.
fn ask(upstream: SocketAddr, method: &str) -> (Result<Message, Wrong>, Vec<u8>, usize) {
    let tables = respond("/hello", "hello")
        + &proxy("/app/*", upstream, ", timeout = \"1s\", connect_timeout = \"1s\"");
    let site = Site::start(IMPATIENT, &tables);
    let mut client = connect(site.http);
    let request =
        format!("{method} /app/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    site.assert_available("/hello");
    let answer = read_to_end(&mut client);
    let message = Message::parse(&mut &answer[..]);
    site.assert_available("/hello");
    // Lines are written in their order: a later one tells that none is on its way.
    site.signal(steadfast_harness::Signal::TERM);
    site.wait_for_line("of the stop", |line| line.contains("draining:"));
    let lines = site.lines(|line| {
        line.contains("WARN")
            && line.contains("proxied request failed")
            && line.contains(&upstream.to_string())
    });
    (message, answer, lines)
}

fn assert_status(upstream: SocketAddr, status: u16) {
    let (message, answer, lines) = ask(upstream, "POST");
    let start = message.unwrap_or_else(|wrong| panic!("{wrong}: {}", answer.escape_ascii())).start;
    assert!(start.starts_with(&format!("HTTP/1.1 {status} ")), "{start}");
    assert_eq!(lines, 1, "lines about it");
    // The client does not learn where it is.
    assert!(!answer.escape_ascii().to_string().contains(&upstream.to_string()));
}

#[test]
fn an_upstream_that_is_down_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_status(address, 502);
}

#[test]
fn an_upstream_that_resets_or_closes_before_its_answer_is_502() {
    assert_status(upstream(reset), 502);
    assert_status(upstream(drop), 502);
    assert_status(
        upstream(|mut stream| {
            head(&mut stream);
            reset(stream);
        }),
        502,
    );
    assert_status(
        upstream(|mut stream| {
            head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap();
        }),
        502,
    );
}

#[test]
fn an_upstream_that_speaks_no_http_is_502() {
    for rubbish in [
        b"\0\0\0\0\0\0".as_slice(),
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"<html>",
        b"\x15\x03\x01\0\x02\x02\x46",
        &vec![b'x'; 1 << 20],
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ] {
        let rubbish = rubbish.to_vec();
        let address = upstream(move |mut stream| {
            head(&mut stream);
            let _ = stream.write_all(&rubbish);
        });
        assert_status(address, 502);
    }
}

#[test]
fn an_upstreams_head_without_an_end_is_502_and_costs_little() {
    let address = upstream(|mut stream| {
        head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(&b"X: y\r\n".repeat(1000)).is_ok() {}
    });
    let site = Site::start("", &(respond("/hello", "hello") + &proxy("/app/*", address, "")));
    site.assert_available("/hello");
    let before = site.resident();
    assert_eq!(site.client().get("/app/").unwrap().status, 502);
    assert!(site.resident() < before + (8 << 20), "{before} became {}", site.resident());
}

#[test]
fn an_upstream_that_does_not_answer_is_504_in_time() {
    let began = Instant::now();
    assert_status(
        upstream(|mut stream| {
            head(&mut stream);
            let _ = stream.read(&mut [0]);
        }),
        504,
    );
    assert!((1..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
fn an_upstream_whose_queue_is_full_is_504() {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // Nobody accepts; the queue holds one, and the next one's SYN is dropped.
    let _waiting: Vec<_> =
        (0..2).map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(300))).collect();
    assert_status(address, 504);
}

#[test]
fn an_answer_that_the_upstream_breaks_off_is_not_whole_for_the_client_either() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nrubbish\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        for way in [reset, drop::<TcpStream>, |mut stream: TcpStream| {
            // Or it is silent from there on.
            let _ = stream.read(&mut [0]);
        }] {
            let address = upstream(move |mut stream| {
                head(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                // A reset takes along what is still on its way.
                thread::sleep(Duration::from_millis(50));
                way(stream);
            });
            let (message, answer, lines) = ask(address, "GET");
            assert!(
                answer.starts_with(b"HTTP/1.1 200 ") || answer.starts_with(b"HTTP/1.1 502 "),
                "{}",
                answer.escape_ascii()
            );
            if answer.starts_with(b"HTTP/1.1 200 ") {
                assert_eq!(message, Err(Wrong::Short), "{}", answer.escape_ascii());
            }
            assert_eq!(lines, 1, "{}", answer.escape_ascii());
        }
    }
}
