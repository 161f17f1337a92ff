//! Arbitrary requests, as they were sent and as the upstream got them.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;
use steadfast_harness::{Client, PATIENCE};

use crate::recorder::Recorder;
use crate::site::{Site, proxy};
use crate::wire::{Message, connect, read_to_end, statuses};

struct Both {
    site: Site,
    recorder: Recorder,
}

impl Both {
    /// For all cases of a test: each finds its own requests by their number. They end with the test.
    fn start() -> Self {
        let recorder = Recorder::start();
        // Every case ends its connection, so that no limit of time is needed, nor gone beyond by a machine that is busy.
        let site = Site::start("body_limit = \"64KiB\"", &proxy("/*", recorder.address, ""));
        Self { site, recorder }
    }

    /// True once the site has received so many bytes since its start, and waits for nobody but the client.
    fn has_answered(&self, received: u64) -> bool {
        if self.site.metric(RECEIVED) < received {
            return false;
        }
        let status = Client::connect(self.site.admin).and_then(|mut client| client.get("/status"));
        let status: Value = serde_json::from_slice(&status.expect("the admin child answers").body).unwrap();
        let in_flight = status["requests"].as_array().expect("a list");
        in_flight.iter().all(|request| request["waiting_for"] == "the client to send the body")
    }
}

const RECEIVED: &str = "steadfast_http_received_bytes_total";

static CASE: AtomicU64 = AtomicU64::new(0);

/// A request that a client means to send.
#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    path: String,
    fields: Vec<(String, String)>,
    hop_by_hop: Vec<&'static str>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    /// With an extension, or none, at each chunk.
    Chunked(Vec<(Vec<u8>, &'static str)>),
}

/// A change that is made to it on its way.
#[derive(Clone, Debug)]
enum Damage {
    None,
    /// A byte is replaced.
    Replace(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    /// The rest is not sent.
    Cut(usize),
    /// Something that does not belong there is put in front of a line.
    Line(usize, &'static str),
}

const HOP_BY_HOP: [&str; 7] = [
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic eDp5",
    "TE: gzip",
    "Upgrade: h2c",
    "Connection: X-Hop\r\nX-Hop: gone",
    "Connection: keep-alive",
];

const LINES: [&str; 12] = [
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding : chunked\r\n",
    " folded\r\n",
    "Host: other\r\n",
    "X\r\n",
    "\r\n",
    "\r",
    "0\r\n\r\n",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
];

fn request() -> impl Strategy<Value = Request> {
    let method =
        select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "M-SEARCH", "get", "X"]);
    // A path that is normal as it is; others are another path at the upstream.
    let path = "(/[a-zA-Z0-9_~!$&'()*+,;=:@-]([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[A-F][0-9A-F]){0,8}){0,3}/?(\\?[a-zA-Z0-9/?&=%+]{0,12})?";
    // Names that begin so mean nothing to anybody.
    let field = ("x-[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,12}", "([!-~\u{80}-\u{ff}]([ -~\t]{0,20}[!-~])?)?");
    let body = prop_oneof![
        2 => Just(Body::None),
        2 => vec(any::<u8>(), 0..300).prop_map(Body::Length),
        2 => vec((vec(any::<u8>(), 1..100), select(vec!["", ";a", ";a=b", " ;c=\"d\""])), 0..5).prop_map(Body::Chunked),
    ];
    (method, path, vec(field, 0..5), proptest::sample::subsequence(HOP_BY_HOP.to_vec(), 0..4), body).prop_map(
        |(method, path, fields, hop_by_hop, body)| Request { method, path, fields, hop_by_hop, body },
    )
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        2 => Just(Damage::None),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Replace(at, byte)),
        1 => (any::<usize>(), select(b"\r\n \t:;,\0/x0".to_vec())).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        1 => any::<usize>().prop_map(Damage::Remove),
        1 => any::<usize>().prop_map(Damage::Cut),
        2 => (any::<usize>(), select(LINES.to_vec())).prop_map(|(at, line)| Damage::Line(at, line)),
    ]
}

fn latin_1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).expect("a character of Latin-1")).collect()
}

impl Request {
    /// Its bytes, and a mark by which it is found.
    fn bytes(&self, mark: &str) -> Vec<u8> {
        let mut head =
            format!("{} /{mark}{} HTTP/1.1\r\nHost: {mark}\r\nX-Mark: {mark}\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            head.extend([name, ": ", value, "\r\n"]);
        }
        for field in &self.hop_by_hop {
            head.extend([field, "\r\n"]);
        }
        let mut bytes = latin_1(&head);
        match &self.body {
            Body::None => bytes.extend(b"\r\n"),
            Body::Length(body) => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
                bytes.extend(body);
            }
            Body::Chunked(chunks) => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for (chunk, extension) in chunks {
                    bytes.extend(format!("{:x}{extension}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        bytes
    }

    fn body(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length(body) => body.clone(),
            Body::Chunked(chunks) => chunks.iter().flat_map(|(chunk, _)| chunk.clone()).collect(),
        }
    }

    /// It arrived as it was meant.
    fn assert_passed(&self, mark: &str, got: &Message) {
        assert_eq!(got.start, format!("{} /{mark}{} HTTP/1.1", self.method, self.path));
        assert_eq!(got.body, self.body());
        assert_eq!(got.field("host"), Some(mark));
        // In their order, as far as they have one: among those of a name.
        for (name, _) in &self.fields {
            let all = |fields: &[(String, String)]| -> Vec<String> {
                fields
                    .iter()
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
                    .collect()
            };
            assert_eq!(all(&got.fields), all(&self.fields), "{name}");
        }
        for gone in
            ["connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade", "x-hop"]
        {
            assert_eq!(got.field(gone), None, "{got:?}");
        }
        let added =
            ["host", "x-mark", "content-length", "transfer-encoding", "forwarded", "traceparent", "via"];
        for (name, _) in &got.fields {
            assert!(name.starts_with("x-") || added.contains(&name.as_str()), "{name} of nobody's: {got:?}");
        }
    }
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match *self {
            Self::None => {}
            Self::Replace(at, byte) => bytes[at % length] = byte,
            Self::Insert(at, byte) => bytes.insert(at % length, byte),
            Self::Remove(at) => drop(bytes.remove(at % length)),
            Self::Cut(at) => bytes.truncate(at % length),
            Self::Line(nth, line) => {
                let ends: Vec<_> = bytes
                    .windows(2)
                    .enumerate()
                    .filter(|(_, pair)| pair == b"\r\n")
                    .map(|(at, _)| at + 2)
                    .collect();
                if let Some(at) = nth.checked_rem(ends.len()).map(|n| ends[n]) {
                    bytes.splice(at..at, line.bytes());
                }
            }
        }
    }
}

/// Sends bytes in pieces, and returns what is answered until the connection ends. `patience` is how long the client
/// waits for more before it closes its side.
fn talk(both: &Both, bytes: &[u8], cuts: &[usize], patience: Duration) -> Vec<u8> {
    let all = both.site.metric(RECEIVED) + bytes.len() as u64;
    let mut client = connect(both.site.http);
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let mut from = 0;
    for to in cuts.into_iter().chain([bytes.len()]) {
        if client.write_all(&bytes[from..to]).is_err() {
            break;
        }
        from = to;
        thread::sleep(Duration::from_millis(1));
    }
    client.set_read_timeout(Some(patience)).expect("a socket has a read timeout");
    let mut answers = Vec::new();
    let began = Instant::now();
    while client.read_to_end(&mut answers).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        // A request that the upstream has would be given up: its answer comes first.
        if both.has_answered(all) {
            let _ = client.shutdown(Shutdown::Write);
            client.set_read_timeout(Some(PATIENCE)).expect("a socket has a read timeout");
            answers.extend(read_to_end(&mut client));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "neither answered nor closed: {}", bytes.escape_ascii());
    }
    answers
}

fn passed(both: &Both, mark: &str) -> Vec<Message> {
    let mut requests = both.recorder.requests();
    requests.retain(|request| request.start.contains(mark));
    requests
}

fn next_mark() -> String {
    format!("m{}-", CASE.fetch_add(1, Relaxed))
}

/// Ends a row of requests.
const LAST: &[u8] = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// The number of cases; `PROPTEST_CASES` says otherwise.
fn cases(count: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(count);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 100, ..ProptestConfig::default() }
}

#[test]
fn requests_reach_the_upstream_once_each_in_order_and_as_they_were_meant() {
    let both = Both::start();
    proptest!(cases(200), |(
        requests in vec(request(), 1..5),
        cuts in vec(any::<usize>(), 0..4),
    )| {
        let mark = next_mark();
        let marks: Vec<_> = (0..requests.len()).map(|n| format!("{mark}{n}")).collect();
        let mut bytes: Vec<u8> = requests.iter().zip(&marks).flat_map(|(r, mark)| r.bytes(mark)).collect();
        bytes.extend(LAST);
        let answers = talk(&both, &bytes, &cuts, PATIENCE);
        let got = passed(&both, &mark);
        prop_assert_eq!(got.len(), requests.len(), "{:?}, {}", got, answers.escape_ascii());
        for ((request, mark), got) in requests.iter().zip(&marks).zip(&got) {
            request.assert_passed(mark, got);
        }
        prop_assert_eq!(both.recorder.malformed(), [""; 0]);
    });
}

#[test]
fn a_damaged_request_reaches_the_upstream_once_at_most() {
    let both = Both::start();
    proptest!(cases(100), |(
        request in request(),
        damage in vec(damage(), 1..3),
        cuts in vec(any::<usize>(), 0..3),
    )| {
        let mark = next_mark();
        let mut bytes = request.bytes(&mark);
        for damage in damage {
            if !bytes.is_empty() {
                damage.apply(&mut bytes);
            }
        }
        let answers = talk(&both, &bytes, &cuts, Duration::from_millis(200));
        let got = passed(&both, &mark);
        prop_assert!(got.len() <= 1, "{:?} of {}", got, bytes.escape_ascii());
        prop_assert_eq!(both.recorder.malformed(), [""; 0], "{}", bytes.escape_ascii());
        // Whatever is said to it is HTTP.
        if request.method != "HEAD" {
            let answered = statuses(&answers);
            prop_assert!(got.len() <= answered.len(), "{answered:?}");
        }
    });
}
