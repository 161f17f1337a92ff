//! The clients: so many keep-alive connections, each with one request under way, until all are answered.
//!
//! One thread drives them all. Its CPU time is nobody's.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use steadfast_harness::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The connections that are opened within a millisecond.
const AT_A_TIME: usize = 20;

/// The most that is read of an answer at a time.
const PIECE: usize = 256 << 10;

/// The requests that [`Answer::of`] makes.
pub(crate) const ANSWERS: usize = 3;

/// The shortest request of a browser or curl.
fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: steadfast-bench\r\naccept: */*\r\n\r\n")
        .into()
}

/// A server's right answer, byte by byte, whatever its date and its id.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// What no two answers need to have alike, in their order.
    varies: Vec<Range<usize>>,
}

impl Answer {
    /// Asks a server, and checks what every later answer is compared with.
    pub(crate) fn of(name: &str, address: SocketAddr, path: &str, body: &[u8]) -> Self {
        let mut client = Client::connect(address).expect("the server accepts");
        // The second answer is the one that later ones are like: the first one may have found no upstream connected.
        client.get(path).expect("the server answers");
        let response = client.get(path).expect("the server answers");
        assert_eq!(response.status, 200, "{name} at {path}");
        assert!(
            response.body == body,
            "{name} at {path} gives another body, of {} bytes",
            response.body.len()
        );
        let length = response.header("content-length").expect("all say how long their answer is");
        assert_eq!(length, body.len().to_string(), "{name} at {path}");
        assert_eq!(
            response.header("connection").filter(|&value| value != "keep-alive"),
            None,
            "{name} at {path}"
        );
        let content_type = response.header("content-type");
        let expected = if body.starts_with(b"<") { "text/html; charset=utf-8" } else { "image/png" };
        assert_eq!(content_type, Some(expected), "{name} at {path}");

        client.send(request(path)).expect("the server reads on");
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.extend(client.take(1).expect("the server answers on"));
        }
        let date = value_within(&bytes, "date", "Thu, 01 Jan 1970 00:00:00 GMT".len());
        let id = value_within(&bytes, "x-request-id", 32);
        let mut varies = vec![date, id];
        varies.sort_by_key(|range| range.start);
        bytes.extend(client.take(body.len()).expect("the server answers on"));
        Self { bytes, varies }
    }

    /// Compares what has come of an answer from `at` on.
    fn has(&self, at: usize, bytes: &[u8]) -> bool {
        let right = &self.bytes[at..at + bytes.len()];
        let within = |place: usize| place.saturating_sub(at).min(bytes.len());
        let mut from = 0;
        let end = self.bytes.len()..self.bytes.len();
        self.varies.iter().chain([&end]).all(|range| {
            let same = from..within(range.start).max(from);
            from = within(range.end).max(from);
            bytes[same.clone()] == right[same]
        })
    }
}

/// The place of a field's value, of so many bytes, in a head; empty in one that has none.
fn value_within(head: &[u8], name: &str, length: usize) -> Range<usize> {
    let name = format!("\r\n{name}: ");
    let begin = head.windows(name.len()).position(|bytes| bytes.eq_ignore_ascii_case(name.as_bytes()));
    begin.map_or(0..0, |at| {
        let begin = at + name.len();
        begin..begin + length
    })
}

/// A client's connection, and its request.
struct Asking {
    stream: TcpStream,
    request: Vec<u8>,
}

/// Open connections to a server.
pub(crate) struct Load {
    address: SocketAddr,
    runtime: Runtime,
    connections: Vec<Asking>,
    answer: Arc<Answer>,
    /// Each connection asks for the next of these.
    paths: Vec<String>,
}

impl Load {
    /// Clients of a server, not connected yet.
    pub(crate) fn new(address: SocketAddr, paths: &[String], answer: &Arc<Answer>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let (paths, answer) = (paths.to_vec(), Arc::clone(answer));
        Self { address, runtime, connections: Vec::new(), answer, paths }
    }

    /// Connects so many more, which ask nothing yet. They come from addresses of the loopback of their own for each server
    /// and `wave`, a thousand from each: a port is free only a minute after its connection, and hard to find among many.
    pub(crate) fn connect(&mut self, more: usize, wave: u8) {
        let address = self.address;
        let [high, low] = address.port().to_be_bytes();
        let _guard = self.runtime.enter();
        for n in 1..=more {
            // To connect is less work than to accept, and a client that finds the queue full tries again a second later.
            if n % AT_A_TIME == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            let thousand =
                u8::try_from(self.connections.len() / 1000).expect("connections are some thousands");
            let source = Ipv4Addr::new(127, high, low, 2 + wave * 20 + thousand);
            let path = &self.paths[self.connections.len() % self.paths.len()];
            let stream = self.runtime.block_on(async {
                let socket = TcpSocket::new_v4()?;
                socket.bind((source, 0).into())?;
                socket.connect(address).await
            });
            let stream = stream.expect("the server accepts");
            self.connections.push(Asking { stream, request: request(path) });
        }
    }

    /// Asks so often on each connection, and returns when every answer has come and was right.
    pub(crate) fn run(&mut self, each: u32) {
        self.run_from(0, each);
    }

    /// Asks once on each of so many connections, those that were opened last.
    pub(crate) fn run_newest(&mut self, connections: usize) {
        self.run_from(self.connections.len() - connections, 1);
    }

    fn run_from(&mut self, first: usize, each: u32) {
        let mut tasks = JoinSet::new();
        for mut asking in self.connections.drain(first..) {
            let answer = Arc::clone(&self.answer);
            let client = async move {
                asking.ask(&answer, each).await;
                asking
            };
            tasks.spawn_on(client, self.runtime.handle());
        }
        self.connections.extend(self.runtime.block_on(tasks.join_all()));
    }
}

impl Asking {
    async fn ask(&mut self, right: &Answer, times: u32) {
        let mut bytes = vec![0; right.bytes.len().min(PIECE)];
        for _ in 0..times {
            self.stream.write_all(&self.request).await.expect("the server reads");
            let mut at = 0;
            while at < right.bytes.len() {
                let most = bytes.len().min(right.bytes.len() - at);
                let count = self.stream.read(&mut bytes[..most]).await.expect("the server answers");
                assert!(count > 0, "the server closes a connection {at} bytes into an answer");
                let piece = &bytes[..count];
                assert!(
                    right.has(at, piece),
                    "a wrong answer, from byte {at}:\n{}",
                    String::from_utf8_lossy(piece)
                );
                at += count;
            }
        }
    }
}
