//! Requests of which two servers might make something different: what is refused, and what of the rest reaches the
//! upstream.

use std::thread;

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy};
use crate::wire::{connect, read_to_end, say, statuses};

/// The bytes that a client sends, and their outcome.
struct Shape {
    name: &'static str,
    /// `{n}` is the shape's number.
    sent: &'static [u8],
    /// The answer before the connection is closed.
    answered: &'static [u16],
    /// Method, path and body of what the upstream gets.
    passed: &'static [&'static str],
}

const fn refused(name: &'static str, sent: &'static [u8]) -> Shape {
    Shape { name, sent, answered: &[400], passed: &[] }
}

const fn not_understood(name: &'static str, sent: &'static [u8]) -> Shape {
    Shape { name, sent, answered: &[501], passed: &[] }
}

const fn passed_once(name: &'static str, sent: &'static [u8], passed: &'static [&'static str]) -> Shape {
    Shape { name, sent, answered: &[200], passed }
}

/// Sends every shape on a connection of its own, through the proxy. Afterwards the upstream has what is expected of
/// each shape, and nothing else.
fn try_all(shapes: &[Shape]) {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let numbered = |text: &str, n: usize| text.replace("{n}", &n.to_string());
    let answers: Vec<_> = thread::scope(|scope| {
        let say = |(n, shape): (usize, &Shape)| {
            let sent: String = shape.sent.iter().copied().map(char::from).collect();
            let sent: Vec<u8> = numbered(&sent, n).chars().map(|c| u8::try_from(c).unwrap()).collect();
            let http = site.http;
            scope.spawn(move || say(http, &sent))
        };
        let talks: Vec<_> = shapes.iter().enumerate().map(say).collect();
        talks.into_iter().map(|talk| talk.join().unwrap()).collect()
    });

    let mut wrong = Vec::new();
    let requests = recorder.requests();
    for (n, (shape, answer)) in shapes.iter().zip(&answers).enumerate() {
        let mut passed = Vec::new();
        for request in &requests {
            let mut words = request.start.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if path.rsplit('/').next() == Some(&n.to_string()) {
                passed.push(format!("{method} {path} {}", request.body.escape_ascii()).trim_end().to_owned());
            }
        }
        let expected: Vec<_> = shape.passed.iter().map(|request| numbered(request, n)).collect();
        let answered = statuses(answer);
        if answered != shape.answered || passed != expected {
            wrong.push(format!("{}: answered {answered:?}, passed {passed:?}", shape.name));
        }
    }
    assert_eq!(wrong, [""; 0], "\n{}", site.stderr());
    assert_eq!(requests.len(), shapes.iter().map(|shape| shape.passed.len()).sum::<usize>());
    assert_eq!(recorder.malformed(), [""; 0]);
    site.assert_available("/still/there");
}

#[test]
fn a_length_that_can_be_read_in_two_ways_is_refused() {
    try_all(&[
        refused("two", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        refused("a list", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello"),
        refused("a sign", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
        refused("negative", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nhello"),
        refused("hexadecimal", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello"),
        refused("a space within", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello"),
        refused("nothing", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello"),
        refused(
            "more than 64 bits",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
        ),
        refused("quoted", b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: \"5\"\r\n\r\nhello"),
        // Two that agree are one (RFC 9110, section 8.6), and one is passed on.
        Shape {
            name: "twice the same",
            sent: b"POST /{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            answered: &[200],
            passed: &["POST /{n} hello"],
        },
    ]);
}

#[test]
fn a_coding_that_is_not_exactly_chunked_is_not_passed_on() {
    try_all(&[
        refused("xchunked", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        refused("quoted", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
        refused("not last", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        refused("identity", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        refused("nothing", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n"),
        refused(
            "chunked, then another field",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        ),
        refused("a vertical tab", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        refused("HTTP/1.0", b"POST /{n} HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        refused("a space before the colon", b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        not_understood(
            "identity first",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        ),
        not_understood(
            "doubled",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        ),
        not_understood(
            "in two fields",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        not_understood(
            "compressed",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        passed_once(
            "in capitals, behind a tab",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding:\tCHUNKED \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["POST /{n} hello"],
        ),
    ]);
}

#[test]
fn a_line_that_does_not_end_or_begin_as_a_line_should_is_refused() {
    try_all(&[
        refused(
            "a bare CR in a value",
            b"GET /{n} HTTP/1.1\r\nHost: a\r\nX: a\rGET /smuggled/{n} HTTP/1.1\r\n\r\n",
        ),
        refused("a bare CR for a line's end", b"GET /{n} HTTP/1.1\rHost: a\r\r"),
        refused("a folded line", b"GET /{n} HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        refused(
            "a folded coding",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        ),
        refused("a first field that is indented", b"GET /{n} HTTP/1.1\r\n Host: a\r\n\r\n"),
        refused("a space before a colon", b"GET /{n} HTTP/1.1\r\nHost : a\r\n\r\n"),
        refused("a space in a name", b"GET /{n} HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n"),
        refused("no name", b"GET /{n} HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n"),
        refused("no colon", b"GET /{n} HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        refused("NUL in a value", b"GET /{n} HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        refused("NUL in a name", b"GET /{n} HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n"),
        refused("NUL in the path", b"GET /{n}\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("two spaces", b"GET  /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("a tab", b"GET\t/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("a space in the path", b"GET /a /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("no version", b"GET /{n}\r\nHost: a\r\n\r\n"),
        refused("another version", b"GET /{n} HTTP/1.2\r\nHost: a\r\n\r\n"),
        refused("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        refused("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        // Each line's end may be recognised by its LF alone (RFC 9112, section 2.2). What is passed on has CR LF.
        passed_once("a bare LF", b"GET /{n} HTTP/1.1\nHost: a\nConnection: close\n\n", &["GET /{n}"]),
    ]);
}

#[test]
fn a_chunk_is_as_long_as_it_says_or_the_request_is_refused() {
    const HEAD: &str = "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    macro_rules! refused_chunks {
        ($($name:literal: $chunks:literal,)*) => {
            [$(refused($name, concat!("POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", $chunks).as_bytes()),)*]
        };
    }
    let bad = refused_chunks! {
        "a sign": "+5\r\nhello\r\n0\r\n\r\n",
        "negative": "-5\r\nhello\r\n0\r\n\r\n",
        "a prefix": "0x5\r\nhello\r\n0\r\n\r\n",
        "an underscore": "0_5\r\nhello\r\n0\r\n\r\n",
        "a space before it": " 5\r\nhello\r\n0\r\n\r\n",
        "no size": "\r\nhello\r\n0\r\n\r\n",
        "more than 64 bits": "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "a bare LF after the size": "5\nhello\r\n0\r\n\r\n",
        "a bare CR after the size": "5\rhello\r\n0\r\n\r\n",
        "a bare LF within an extension": "5;a\nhello\r\n0\r\n\r\n",
        "a bare LF after the data": "5\r\nhello\n0\r\n\r\n",
        "longer than it says": "5\r\nhello!\r\n0\r\n\r\n",
        "shorter than it says": "6\r\nhello\r\n0\r\n\r\n",
        "a request behind it": "5\r\nhelloGET /smuggled/{n} HTTP/1.1\r\n\r\n",
    };
    assert!(bad.iter().all(|shape| shape.sent.starts_with(HEAD.as_bytes())));
    try_all(&bad);
    try_all(&[
        // Extensions are of one hop: they are not passed on.
        passed_once(
            "extensions",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n",
            &["POST /{n} hello"],
        ),
        passed_once(
            "zeros before it",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0000005\r\nhello\r\n000\r\n\r\n",
            &["POST /{n} hello"],
        ),
    ]);
}

#[test]
fn a_request_for_no_host_for_two_or_for_what_is_none_is_refused() {
    try_all(&[
        refused("none", b"GET /{n} HTTP/1.1\r\n\r\n"),
        refused("two", b"GET /{n} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        refused("twice the same", b"GET /{n} HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        refused("two in HTTP/1.0", b"GET /{n} HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        refused("a list", b"GET /{n} HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        refused("a path", b"GET /{n} HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        refused("a user", b"GET /{n} HTTP/1.1\r\nHost: b@a\r\n\r\n"),
        refused("a space", b"GET /{n} HTTP/1.1\r\nHost: a b\r\n\r\n"),
        refused("no text", b"GET /{n} HTTP/1.1\r\nHost: \xff\r\n\r\n"),
        refused("two ports", b"GET /{n} HTTP/1.1\r\nHost: a:80:90\r\n\r\n"),
        refused("a port that is no number", b"GET /{n} HTTP/1.1\r\nHost: a:x\r\n\r\n"),
        refused("a port with a sign", b"GET /{n} HTTP/1.1\r\nHost: a:+80\r\n\r\n"),
        refused("an open bracket", b"GET /{n} HTTP/1.1\r\nHost: [::1\r\n\r\n"),
        refused("a bracket that nothing opens", b"GET /{n} HTTP/1.1\r\nHost: ::1]\r\n\r\n"),
        refused("brackets within a name", b"GET /{n} HTTP/1.1\r\nHost: a[::1]\r\n\r\n"),
        refused("a name behind brackets", b"GET /{n} HTTP/1.1\r\nHost: [::1]a\r\n\r\n"),
        refused("a name in brackets", b"GET /{n} HTTP/1.1\r\nHost: [a]\r\n\r\n"),
        refused("an address of IPv4 in brackets", b"GET /{n} HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n"),
        refused("empty brackets", b"GET /{n} HTTP/1.1\r\nHost: []\r\n\r\n"),
        refused("an address of IPv6 without brackets", b"GET /{n} HTTP/1.1\r\nHost: ::1\r\n\r\n"),
        refused("a zone", b"GET /{n} HTTP/1.1\r\nHost: [fe80::1%eth0]\r\n\r\n"),
        refused("a percent that encodes nothing", b"GET /{n} HTTP/1.1\r\nHost: a%4\r\n\r\n"),
        refused("in the target, two ports", b"GET http://a:80:90/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("in the target, no port", b"GET http://a:x/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("in the target, no host", b"GET http://a\"b/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("in the target, a name in brackets", b"GET http://[a]/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        passed_once("HTTP/1.0 needs none", b"GET /{n} HTTP/1.0\r\n\r\n", &["GET /{n}"]),
        passed_once(
            "an empty one",
            b"GET /{n} HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
            &["GET /{n}"],
        ),
        passed_once(
            "a port, and brackets",
            b"GET /{n} HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\nConnection: close\r\n\r\n",
            &["GET /{n}"],
        ),
        passed_once(
            "a port without digits",
            b"GET /{n} HTTP/1.1\r\nHost: a.example:\r\nConnection: close\r\n\r\n",
            &["GET /{n}"],
        ),
        passed_once(
            "an encoded letter, and marks",
            b"GET /{n} HTTP/1.1\r\nHost: a_b-c.~%41!$&'()*+,;=:80\r\nConnection: close\r\n\r\n",
            &["GET /{n}"],
        ),
        passed_once(
            "in the target, brackets, a port and a user",
            b"GET http://me@[::1]:80/{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            &["GET /{n}"],
        ),
    ]);
}

#[test]
fn a_length_beside_chunks_does_not_count_and_the_connection_ends() {
    // RFC 9112, section 6.1: whoever goes by the length sees a second request in the body.
    try_all(&[
        passed_once(
            "the length first",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: a\r\n\r\n",
            &["POST /{n}"],
        ),
        passed_once(
            "the chunks first",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: a\r\n\r\n",
            &["POST /{n}"],
        ),
        passed_once(
            "kept alive in so many words",
            b"POST /{n} HTTP/1.1\ncontent-LENGTH:6\nhost: a\nconnection: keep-alive\ntransfer-encoding: chunked\n\n0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: a\r\n\r\n",
            &["POST /{n}"],
        ),
        passed_once(
            "a length that covers the rest",
            b"POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["POST /{n} hello"],
        ),
        Shape {
            name: "behind another request",
            sent: b"GET /first/{n} HTTP/1.1\r\nHost: a\r\n\r\nPOST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: a\r\n\r\n",
            answered: &[200, 200],
            passed: &["GET /first/{n}", "POST /{n}"],
        },
        // Nothing of this is ambiguous: the connection goes on.
        Shape {
            name: "each in a request of its own",
            sent: b"POST /a/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPOST /b/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /c/{n} HTTP/1.1\r\nHost: a\r\n\r\n",
            answered: &[200, 200, 200],
            passed: &["POST /a/{n} hello", "POST /b/{n} hello", "GET /c/{n}"],
        },
    ]);
}

#[test]
fn what_follows_a_refused_request_is_not_taken_for_the_next_one() {
    const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let recorder = Recorder::start();
    let site = Site::start(&format!("{IMPATIENT}body_limit = \"1KiB\""), &proxy("/*", recorder.address, ""));
    for (head, status) in [
        ("POST /a HTTP/1.1\r\nContent-Length: 36\r\n\r\n", 400),
        ("POST /a HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 36\r\n\r\n", 400),
        ("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", 413),
        ("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    ] {
        let answers = say(site.http, &[head.as_bytes(), SMUGGLED].concat());
        assert_eq!(statuses(&answers), [status], "{head}");
    }
    assert_eq!(recorder.requests(), []);
}

#[test]
fn a_request_that_breaks_off_is_not_whole_for_the_upstream_either() {
    use std::io::Write;
    use std::net::Shutdown;

    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    for request in [
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\n",
    ] {
        for shutdown in [Shutdown::Write, Shutdown::Both] {
            let mut client = connect(site.http);
            client.write_all(request.as_bytes()).unwrap();
            let _ = client.shutdown(shutdown);
            let _ = read_to_end(&mut client);
        }
    }
    site.assert_available("/whole");
    let requests = recorder.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(recorder.malformed(), [""; 0]);
}
