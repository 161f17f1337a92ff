//! The clients: so many keep-alive connections, each with one request under way, until all are answered; or so many that
//! connect for each request.
//!
//! One thread drives them all. Its CPU time is nobody's.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::HandshakeKind;
use steadfast_harness::{PATIENCE, wait_until};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::connection::{Connection, Target};

/// The connections that are opened within a millisecond.
const AT_A_TIME: usize = 20;

/// The most that is read of an answer at a time.
const PIECE: usize = 256 << 10;

/// The requests that [`Answer::of`] makes.
pub(crate) const ANSWERS: usize = 2;

/// The shortest request of a browser or curl.
fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: steadfast-bench\r\naccept: */*\r\n\r\n")
        .into()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// An address of the loopback for the clients of a server: each has its own, and many of them, for a port is free only a
/// minute after its connection, and hard to find among many.
fn source(server: SocketAddr, number: usize) -> Ipv4Addr {
    let [high, low] = server.port().to_be_bytes();
    Ipv4Addr::new(127, high, low, u8::try_from(2 + number % 250).expect("it is below 252"))
}

// ---------------------------------------------------------------------------------------------------------------
// The right answer
// ---------------------------------------------------------------------------------------------------------------

/// A server's right answer, byte by byte, whatever its date and its id.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// What no two answers need to have alike, in their order.
    varies: Vec<Range<usize>>,
}

impl Answer {
    /// Asks a server, and checks what every later answer is compared with.
    pub(crate) fn of(target: &Target, path: &str, body: &[u8]) -> Self {
        Self::ask(target, path, body).unwrap_or_else(|error| panic!("{} at {path}: {error}", target.name))
    }

    /// The same of a server that may not be there yet.
    pub(crate) fn await_of(target: &Target, path: &str, body: &[u8]) -> Self {
        wait_until("an answer", || Self::ask(target, path, body).ok())
    }

    fn ask(target: &Target, path: &str, body: &[u8]) -> io::Result<Self> {
        runtime().block_on(async {
            let asked = async {
                let mut connection = Connection::open(target, source(target.address, 0)).await?;
                let mut answer = (Vec::new(), 0);
                // The last answer is the one that later ones are like: the first one may have found no upstream connected.
                for _ in 0..ANSWERS {
                    connection.send(&request(path)).await?;
                    answer = receive_whole(&mut connection, body.len()).await?;
                }
                io::Result::Ok(answer)
            };
            let (bytes, begin) = tokio::time::timeout(PATIENCE, asked).await??;
            Ok(Self::checked(target, path, body, bytes, begin))
        })
    }

    /// The answer whose body begins there, if it is as all are to give it.
    fn checked(target: &Target, path: &str, body: &[u8], bytes: Vec<u8>, begin: usize) -> Self {
        let name = &target.name;
        let head = str::from_utf8(&bytes[..begin]).expect("a head is text");
        assert!(head.starts_with("HTTP/1.1 200 "), "{name} at {path}:\n{head}");
        let length = body.len().to_string();
        assert_eq!(field(head, "content-length"), Some(&*length), "{name} at {path}");
        assert!(bytes[begin..] == *body, "{name} at {path} gives another body");
        let connection = field(head, "connection").filter(|&value| value != "keep-alive");
        assert_eq!(connection, None, "{name} at {path}");
        let expected = if body.starts_with(b"<") { "text/html; charset=utf-8" } else { "image/png" };
        assert_eq!(field(head, "content-type"), Some(expected), "{name} at {path}");

        let date = value_within(&bytes[..begin], "date", "Thu, 01 Jan 1970 00:00:00 GMT".len());
        let id = value_within(&bytes[..begin], "x-request-id", 32);
        let mut varies = vec![date, id];
        varies.sort_by_key(|range| range.start);
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

/// An answer with a body of this length, and where that begins. One that says another length has no body here.
async fn receive_whole(connection: &mut Connection, length: usize) -> io::Result<(Vec<u8>, usize)> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        let begin = bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(begin) = begin {
            let head = String::from_utf8_lossy(&bytes[..begin]);
            let is_whole = bytes.len() >= begin + length;
            if is_whole || field(&head, "content-length") != Some(&*length.to_string()) {
                return Ok((bytes, begin));
            }
        }
        match connection.receive(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

/// A field of a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim())
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

// ---------------------------------------------------------------------------------------------------------------
// Those that stay
// ---------------------------------------------------------------------------------------------------------------

/// A client's connection, and its request.
struct Asking {
    connection: Connection,
    request: Vec<u8>,
}

/// Open connections to a server.
pub(crate) struct Load {
    target: Target,
    runtime: Runtime,
    connections: Vec<Asking>,
    answer: Arc<Answer>,
    /// Each connection asks for the next of these.
    paths: Vec<String>,
}

impl Load {
    /// Clients of a server, not connected yet.
    pub(crate) fn new(target: &Target, paths: &[String], answer: &Arc<Answer>) -> Self {
        let (target, paths, answer) = (target.clone(), paths.to_vec(), Arc::clone(answer));
        Self { target, runtime: runtime(), connections: Vec::new(), answer, paths }
    }

    /// Connects so many more, which ask nothing yet. They come from other addresses in each `wave`, a thousand from each.
    pub(crate) fn connect(&mut self, more: usize, wave: u8) {
        for n in 1..=more {
            // To connect is less work than to accept, and a client that finds the queue full tries again a second later.
            if n % AT_A_TIME == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            let source = source(self.target.address, usize::from(wave) * 20 + self.connections.len() / 1000);
            let path = &self.paths[self.connections.len() % self.paths.len()];
            let connection = self.runtime.block_on(Connection::open(&self.target, source));
            let connection = connection.expect("the server accepts");
            self.connections.push(Asking { connection, request: request(path) });
        }
    }

    /// Closes all connections, without a word of goodbye.
    pub(crate) fn leave(&mut self) {
        self.connections.clear();
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
        let asked = self.connections.len() - first;
        assert_eq!(self.ask_from(first, each), asked, "{} closes connections", self.target.name);
    }

    /// Asks once more on each connection, and returns how many of them are answered: the others are closed.
    pub(crate) fn keep_open(&mut self) -> usize {
        self.ask_from(0, 1)
    }

    /// Asks, keeps the connections that are open, and says how many.
    fn ask_from(&mut self, first: usize, each: u32) -> usize {
        let mut tasks = JoinSet::new();
        for mut asking in self.connections.drain(first..) {
            let answer = Arc::clone(&self.answer);
            let client = async move { asking.ask(&answer, each).await.is_ok().then_some(asking) };
            tasks.spawn_on(client, self.runtime.handle());
        }
        self.connections.extend(self.runtime.block_on(tasks.join_all()).into_iter().flatten());
        self.connections.len() - first
    }
}

impl Asking {
    /// An error if the connection ends before an answer begins.
    async fn ask(&mut self, right: &Answer, times: u32) -> io::Result<()> {
        let mut bytes = vec![0; right.bytes.len().min(PIECE)];
        for _ in 0..times {
            self.connection.send(&self.request).await?;
            let mut at = 0;
            while at < right.bytes.len() {
                let most = bytes.len().min(right.bytes.len() - at);
                let count = match self.connection.receive(&mut bytes[..most]).await {
                    Ok(count) if count > 0 => count,
                    failed => {
                        assert_eq!(at, 0, "the server closes a connection {at} bytes into an answer");
                        return failed.and(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                };
                let piece = &bytes[..count];
                assert!(
                    right.has(at, piece),
                    "a wrong answer, from byte {at}:\n{}",
                    String::from_utf8_lossy(piece)
                );
                at += count;
            }
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Those that come and go
// ---------------------------------------------------------------------------------------------------------------

/// Clients that connect for each request.
pub(crate) struct Visitors {
    /// Each client has its own, for it may have tickets of its own.
    targets: Vec<Target>,
    runtime: Runtime,
    answer: Arc<Answer>,
    /// The visits so far.
    visits: usize,
}

impl Visitors {
    pub(crate) fn new(targets: Vec<Target>, answer: &Arc<Answer>) -> Self {
        Self { targets, runtime: runtime(), answer: Arc::clone(answer), visits: 0 }
    }

    /// Each client so often connects, asks for `/`, and leaves when the answer has come and was right. Returns how many
    /// of these visits resumed an earlier one's TLS.
    pub(crate) fn run(&mut self, each: u32) -> usize {
        let mut tasks = JoinSet::new();
        for target in &self.targets {
            let (target, answer) = (target.clone(), Arc::clone(&self.answer));
            let source = source(target.address, self.visits / 1000);
            self.visits += usize::try_from(each).expect("it is a small number");
            let client = async move {
                let mut resumed = 0;
                for _ in 0..each {
                    let connection = Connection::open(&target, source).await.expect("the server accepts");
                    let mut asking = Asking { connection, request: request("/") };
                    asking.ask(&answer, 1).await.expect("the server answers");
                    let kind = asking.connection.handshake();
                    resumed += usize::from(kind == Some(HandshakeKind::Resumed));
                    asking.connection.close().await.expect("the server reads");
                }
                resumed
            };
            tasks.spawn_on(client, self.runtime.handle());
        }
        self.runtime.block_on(tasks.join_all()).into_iter().sum()
    }
}
