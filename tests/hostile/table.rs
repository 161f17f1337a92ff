//! Framing, bodies and closing: a table of bytes and of what comes of them.
//!
//! Each row is sent on connections of its own to a `respond`, a `files` and a `proxy` route. A connection is either
//! kept, and answers another request, or its last answer says `Connection: close` (RFC 9112, section 9.6), and is
//! followed by the end of the connection: never by silence, never by a reset.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use crate::recorder::Recorder;
use crate::site::{Site, files, proxy, respond};
use crate::wire::{Message, answer, connect};

/// The routes that each row is tried on, in the order of the row's columns.
const ROUTES: [&str; 3] = ["respond", "files", "proxy"];

/// The largest body that is read to its end although nobody asked for it, in bytes.
const READ_TO_ITS_END: usize = 256 << 10;

/// The largest body that is taken at all, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Not sent to this route.
const NOT_HERE: u16 = 0;

/// Timeouts and limits that some rows go beyond.
const LIMITS: &str = r#"
    header_timeout = "3s"
    keepalive_timeout = "30s"
    read_timeout = "3s"
    header_limit = "8KiB"
    body_limit = "1MiB"
"#;

/// The fate of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It answers another request.
    Kept,
    /// The answer says that it closes, and it does.
    Closed,
}

use Then::{Closed, Kept};

/// A row of the table.
struct Case {
    name: &'static str,
    /// The section that asks for it.
    section: &'static str,
    /// `{path}` is a path of the route.
    sent: Vec<u8>,
    /// Sent when the answer is there.
    late: Vec<u8>,
    /// By route.
    answered: [u16; 3],
    then: [Then; 3],
    /// The length of the body that reaches the upstream, if the request does.
    body: usize,
}

fn case(name: &'static str, section: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    let (answered, then) = ([200; 3], [Kept; 3]);
    Case { name, section, sent: sent.into(), late: Vec::new(), answered, then, body: 0 }
}

impl Case {
    fn answered(self, answered: [u16; 3]) -> Self {
        Self { answered, ..self }
    }

    fn then(self, then: [Then; 3]) -> Self {
        Self { then, ..self }
    }

    fn refused(self, status: u16) -> Self {
        self.answered([status; 3]).then([Closed; 3])
    }

    /// A file is for `GET` and `HEAD` alone (RFC 9110, section 15.5.6).
    fn no_file(self) -> Self {
        let [respond, _, proxy] = self.answered;
        self.answered([respond, 405, proxy])
    }

    fn body(self, body: usize) -> Self {
        Self { body, ..self }
    }

    fn late(self, late: impl Into<Vec<u8>>) -> Self {
        Self { late: late.into(), ..self }
    }

    fn is_head(&self) -> bool {
        self.sent.starts_with(b"HEAD ")
    }
}

fn post(fields: &str) -> String {
    format!("POST {{path}} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

fn with_body(length: usize) -> Vec<u8> {
    [post(&format!("Content-Length: {length}\r\n")).into_bytes(), vec![b'x'; length]].concat()
}

/// Requests that are no HTTP, or that two servers might read in two ways.
fn malformed() -> Vec<Case> {
    let get = |fields: &str| format!("GET {{path}} HTTP/1.1\r\n{fields}\r\n");
    vec![
        case("a line that is no request", "RFC 9112, 3", "nonsense\r\n\r\n").refused(400),
        case("a target with a space", "RFC 9112, 3.2", "GET {path} x HTTP/1.1\r\nHost: a\r\n\r\n")
            .refused(400),
        case("a protocol of another kind", "RFC 9112, 2.3", "GET {path} HTCPCP/1.0\r\nHost: a\r\n\r\n")
            .refused(400),
        case("HTTP/2's preface", "RFC 9113, 3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").refused(400),
        case("no Host", "RFC 9112, 3.2", get("")).refused(400),
        case("two Hosts", "RFC 9112, 3.2", get("Host: a\r\nHost: b\r\n")).refused(400),
        case("a Host that is none", "RFC 9112, 3.2", get("Host: a/b\r\n")).refused(400),
        case("no Host, by HEAD", "RFC 9112, 3.2", "HEAD {path} HTTP/1.1\r\n\r\n").refused(400),
        case(
            "no Host, with a small body",
            "RFC 9112, 3.2",
            "POST {path} HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        )
        .refused(400),
        case("a space before the colon", "RFC 9112, 5.1", get("Host: a\r\nX : y\r\n")).refused(400),
        case("a field without a colon", "RFC 9112, 5", get("Host: a\r\nbad header\r\n")).refused(400),
        case("a field without a name", "RFC 9112, 5", get("Host: a\r\n: y\r\n")).refused(400),
        case("a folded field", "RFC 9112, 5.2", get("Host: a\r\nX: y\r\n z\r\n")).refused(400),
        case("a NUL in a value", "RFC 9110, 5.5", get("Host: a\r\nX: y\0z\r\n")).refused(400),
        case("a CR in a value", "RFC 9110, 5.5", get("Host: a\r\nX: y\rz\r\n")).refused(400),
        case("a length that is no number", "RFC 9112, 6.3", post("Content-Length: five\r\n") + "hello")
            .refused(400),
        case("a length with a sign", "RFC 9112, 6.3", post("Content-Length: +5\r\n") + "hello").refused(400),
        case("two lengths", "RFC 9112, 6.3", post("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello!")
            .refused(400),
        case(
            "chunks that are not the last coding",
            "RFC 9112, 6.1",
            post("Transfer-Encoding: chunked, x\r\n") + "0\r\n\r\n",
        )
        .refused(400),
        case(
            "chunks in HTTP/1.0",
            "RFC 9112, 6.1",
            "POST {path} HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
        .refused(400),
        case(
            "a chunk without a size",
            "RFC 9112, 7.1",
            post("Transfer-Encoding: chunked\r\n") + "x\r\nhello\r\n0\r\n\r\n",
        )
        .answered([NOT_HERE, NOT_HERE, 400])
        .then([Closed; 3]),
    ]
}

/// Requests that are too large, or that do not come.
fn beyond_limits() -> Vec<Case> {
    let field = |length| format!("GET {{path}} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(length));
    let fields = "GET {path} HTTP/1.1\r\nHost: a\r\n".to_owned() + &"X: y\r\n".repeat(200) + "\r\n";
    let announced = |fields: &str| post(&format!("{fields}Content-Length: {}\r\n", BODY_LIMIT + 1));
    let chunk = format!("{:x}\r\n{}\r\n", BODY_LIMIT / 4, "x".repeat(BODY_LIMIT / 4));
    vec![
        case("a head as large as it may be", "RFC 6585, 5", field(7 << 10)),
        case("a head over the limit", "RFC 6585, 5", field(9 << 10)).refused(431),
        case("too many fields", "RFC 6585, 5", fields).refused(431),
        case("half a head", "RFC 9110, 15.5.9", "GET {path} HTTP/1.1\r\nHost: a").refused(408),
        case("half a body that is waited for", "RFC 9110, 15.5.9", post("Content-Length: 10\r\n") + "hello")
            .answered([NOT_HERE, NOT_HERE, 408])
            .then([Closed; 3]),
        case(
            "half of a chunked body that is waited for",
            "RFC 9110, 15.5.9",
            post("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n",
        )
        .answered([NOT_HERE, NOT_HERE, 408])
        .then([Closed; 3]),
        case("a body announced over the limit, not sent", "RFC 9110, 15.5.14", announced("")).refused(413),
        case("a body over the limit, sent", "RFC 9110, 15.5.14", with_body(BODY_LIMIT + 1)).refused(413),
        case("a body over the limit, asked about", "RFC 9110, 10.1.1", announced("Expect: 100-continue\r\n"))
            .refused(413),
        case(
            "chunks that grow over the limit",
            "RFC 9110, 15.5.14",
            post("Transfer-Encoding: chunked\r\n") + &chunk.repeat(5) + "0\r\n\r\n",
        )
        .answered([NOT_HERE, NOT_HERE, 413])
        .then([Closed; 3]),
    ]
}

/// Bodies that a route asks for, and those that it does not.
fn bodies() -> Vec<Case> {
    let chunked = post("Transfer-Encoding: chunked\r\n");
    let unread = [Closed, Closed, Kept];
    vec![
        case("no body", "RFC 9112, 6.3", post("Content-Length: 0\r\n")).no_file(),
        case("neither a length nor chunks", "RFC 9112, 6.3", post("")).no_file(),
        case("a small body", "RFC 9112, 9.3", with_body(5)).no_file().body(5),
        case(
            "a small body with GET",
            "RFC 9110, 9.3.1",
            "GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        )
        .body(5),
        case(
            "a small body with HEAD",
            "RFC 9110, 9.3.2",
            "HEAD {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        )
        .body(5),
        case(
            "a small body with another method",
            "RFC 9110, 15.5.6",
            "PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        )
        .no_file()
        .body(5),
        case(
            "a small body whose end comes after the answer",
            "RFC 9112, 9.3",
            post("Content-Length: 10\r\n") + "hello",
        )
        .answered([200, 405, NOT_HERE])
        .late("world"),
        case("a small body that comes after the answer", "RFC 9112, 9.3", post("Content-Length: 5\r\n"))
            .answered([200, 405, NOT_HERE])
            .late("hello"),
        case("a body of 100 KB", "RFC 9112, 9.3", with_body(100_000)).no_file().body(100_000),
        case("the largest body that is read to its end", "RFC 9112, 9.3", with_body(READ_TO_ITS_END))
            .no_file()
            .body(READ_TO_ITS_END),
        case("a body beyond that", "RFC 9112, 9.6", with_body(READ_TO_ITS_END + 1))
            .no_file()
            .then(unread)
            .body(READ_TO_ITS_END + 1),
        case("a body as large as it may be", "RFC 9112, 9.6", with_body(BODY_LIMIT))
            .no_file()
            .then(unread)
            .body(BODY_LIMIT),
        case("chunks that are whole", "RFC 9112, 7.1", chunked.clone() + "5\r\nhello\r\n0\r\n\r\n")
            .no_file()
            .body(5),
        case(
            "chunks with extensions and trailers",
            "RFC 9112, 7.1",
            chunked.clone() + "5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
        )
        .no_file()
        .body(5),
        case("chunks without an end", "RFC 9112, 9.6", chunked.clone() + "5\r\nhello\r\n")
            .answered([200, 405, NOT_HERE])
            .then([Closed; 3]),
        case("chunks of which none comes", "RFC 9112, 9.6", chunked)
            .answered([200, 405, NOT_HERE])
            .then([Closed; 3]),
        case(
            "a body that nobody asks for although its client asks",
            "RFC 9110, 10.1.1",
            post("Content-Length: 5\r\nExpect: 100-continue\r\n"),
        )
        .answered([200, 405, NOT_HERE])
        .then([Closed; 3]),
    ]
}

/// True if a connection is to be kept, as its client sees it.
fn persistence() -> Vec<Case> {
    let get = |version: &str, fields: &str| format!("GET {{path}} {version}\r\nHost: a\r\n{fields}\r\n");
    vec![
        case("nothing said", "RFC 9112, 9.3", get("HTTP/1.1", "")),
        case("a close", "RFC 9112, 9.6", get("HTTP/1.1", "Connection: close\r\n")).then([Closed; 3]),
        case("a close among others", "RFC 9112, 9.6", get("HTTP/1.1", "Connection: x, CLOSE\r\n"))
            .then([Closed; 3]),
        case(
            "a close with a small body",
            "RFC 9112, 9.6",
            post("Connection: close\r\nContent-Length: 5\r\n") + "hello",
        )
        .no_file()
        .then([Closed; 3])
        .body(5),
        case(
            "a close with HEAD",
            "RFC 9112, 9.6",
            "HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .then([Closed; 3]),
        case("HEAD", "RFC 9110, 9.3.2", "HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"),
        case("HTTP/1.0", "RFC 9112, 9.3", get("HTTP/1.0", "")).then([Closed; 3]),
        case("HTTP/1.0 without a Host", "RFC 9112, 3.2", "GET {path} HTTP/1.0\r\n\r\n").then([Closed; 3]),
        case("HTTP/1.0 that asks to be kept", "RFC 9112, 9.3", get("HTTP/1.0", "Connection: keep-alive\r\n")),
        case(
            "empty lines before a request",
            "RFC 9112, 2.2",
            "\r\n\r\nGET {path} HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        case("CONNECT to a host", "RFC 9110, 9.3.6", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
            .answered([501, NOT_HERE, NOT_HERE])
            .then([Closed; 3]),
        case("CONNECT to a path", "RFC 9110, 9.3.6", "CONNECT {path} HTTP/1.1\r\nHost: a:443\r\n\r\n")
            .refused(501),
    ]
}

/// The number of connections that the table makes, counted once more.
const TRIED: usize = 165;

#[test]
fn every_connection_is_kept_or_says_that_it_closes() {
    let folder = tempfile::tempdir().unwrap();
    let cases: Vec<Case> =
        [malformed(), beyond_limits(), bodies(), persistence()].into_iter().flatten().collect();
    for n in 0..cases.len() {
        std::fs::write(folder.path().join(n.to_string()), "ok").unwrap();
    }
    let recorder = Recorder::start();
    let tables = respond("/respond/*", "ok")
        + &files("/files/*", folder.path())
        + &proxy("/proxy/*", recorder.address, "");
    let site = Site::start(LIMITS, &tables);

    let wrong: Vec<_> = thread::scope(|scope| {
        let mut trials = Vec::new();
        for (n, case) in cases.iter().enumerate() {
            for (route, name) in
                ROUTES.iter().enumerate().filter(|(route, _)| case.answered[*route] != NOT_HERE)
            {
                let (http, path) = (site.http, format!("/{name}/{n}"));
                trials.push((case, name, scope.spawn(move || attempt(http, case, route, &path))));
            }
        }
        assert_eq!(trials.len(), TRIED, "rows times routes");
        let told = trials.into_iter().filter_map(|(case, route, trial)| {
            let wrong = trial.join().unwrap().err()?;
            Some(format!("{} ({}), on {route}: {wrong}", case.name, case.section))
        });
        told.collect()
    });
    assert!(wrong.is_empty(), "{} of {TRIED}:\n{}", wrong.len(), wrong.join("\n"));

    let requests = recorder.requests();
    for (n, case) in cases.iter().enumerate() {
        let path = format!(" /proxy/{n} ");
        let bodies: Vec<_> =
            requests.iter().filter(|r| r.start.contains(&path)).map(|r| r.body.len()).collect();
        let expected = if case.answered[2] == 200 { vec![case.body] } else { vec![] };
        assert_eq!(bodies, expected, "what reached the upstream of: {}", case.name);
    }
    assert_eq!(recorder.malformed(), [""; 0]);
}

/// Tries one row on one route.
fn attempt(http: SocketAddr, case: &Case, route: usize, path: &str) -> Result<(), String> {
    let mut client = connect(http);
    let mut received = Vec::new();
    // A request that is refused early may not be read to its end.
    let _ = client.write_all(&case.sent_to(path));
    let first = answer(&mut client, &mut received, case.is_head())?;
    let (expected, then) = (case.answered[route], case.then[route]);
    if first.status() != expected {
        return Err(format!("{} instead of {expected}", first.status()));
    }
    if first.field("date").is_none() {
        return Err(format!("{} without a Date (RFC 9110, 6.6.1)", first.status()));
    }
    if first.says_close() != (then == Closed) {
        return Err(format!("{:?}, but the {} says {:?}", then, first.status(), first.field("connection")));
    }
    let _ = client.write_all(&case.late);
    match then {
        Kept => answers_another(&mut client, &mut received),
        Closed => ends(&mut client, &received),
    }
}

impl Case {
    fn sent_to(&self, path: &str) -> Vec<u8> {
        const PLACE: &[u8] = b"{path}";
        match self.sent.windows(PLACE.len()).position(|window| window == PLACE) {
            Some(at) => [&self.sent[..at], path.as_bytes(), &self.sent[at + PLACE.len()..]].concat(),
            None => self.sent.clone(),
        }
    }
}

fn answers_another(client: &mut TcpStream, received: &mut Vec<u8>) -> Result<(), String> {
    let _ = client.write_all(b"GET /respond/next HTTP/1.1\r\nHost: a\r\n\r\n");
    let next = answer(client, received, false)
        .map_err(|wrong| format!("the next request is not answered: {wrong}"))?;
    if next.status() == 200 && next.body == b"ok" && received.is_empty() {
        Ok(())
    } else {
        Err(format!("the next request is answered with {next:?}"))
    }
}

fn ends(client: &mut TcpStream, received: &[u8]) -> Result<(), String> {
    if !received.is_empty() {
        return Err(format!("{} behind the last answer", received.escape_ascii()));
    }
    match client.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("bytes behind the last answer".into()),
        Err(error) => Err(format!("the last answer is followed by: {error}")),
    }
}

/// As Python's `http.client` does it: the head in one packet, the body in the next, on a connection that is opened anew
/// only when an answer has said that it closes.
#[test]
fn two_hundred_posts_of_100_kb_on_a_kept_connection_lose_none() {
    static BODY: [u8; 100_000] = [b'x'; 100_000];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "ok").unwrap();
    let recorder = Recorder::start();
    let tables = respond("/respond/*", "ok")
        + &files("/files/*", folder.path())
        + &proxy("/proxy/*", recorder.address, "");
    let site = Site::start("", &tables);
    for (path, status) in [("/respond/file", 200), ("/files/file", 405), ("/proxy/file", 200)] {
        let mut kept: Option<(TcpStream, Vec<u8>)> = None;
        let mut lost = Vec::new();
        for n in 0..200 {
            let (mut client, mut received) = kept.take().unwrap_or_else(|| (connect(site.http), Vec::new()));
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", BODY.len());
            let sent = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&BODY));
            let answered: Result<Message, String> = sent
                .map_err(|error| error.to_string())
                .and_then(|()| answer(&mut client, &mut received, false));
            match answered {
                Ok(answer) => {
                    assert_eq!(answer.status(), status, "{path}");
                    kept = (!answer.says_close()).then_some((client, received));
                }
                Err(failure) => lost.push(format!("{n}: {failure}")),
            }
        }
        assert!(lost.is_empty(), "{} of 200 on {path}, the first is {}", lost.len(), lost[0]);
    }
    assert_eq!(recorder.requests().len(), 200);
}
