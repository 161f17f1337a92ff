//! The clients: so many keep-alive connections, each with one request under way, until all are answered.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use steadfast_harness::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The shortest request of a browser or curl.
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: steadfast-bench\r\naccept: */*\r\n\r\n";

const BODY: &str = include_str!("hello.html");

/// The right answer, byte by byte, whatever its date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    date: Range<usize>,
}

impl Answer {
    /// Asks a server once, and checks what every later answer is compared with.
    pub(crate) fn of(address: SocketAddr) -> Self {
        let mut client = Client::connect(address).expect("the server accepts");
        let response = client.get("/").expect("the server answers");
        assert_eq!((response.status, response.text().as_str()), (200, BODY));
        assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
        let mut names: Vec<_> = response.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "date"]);

        client.send(REQUEST).expect("the server reads on");
        let mut bytes = Vec::new();
        while !bytes.ends_with(BODY.as_bytes()) {
            bytes.extend(client.take(1).expect("the server answers on"));
        }
        let name = b"date: ";
        let at = bytes.windows(name.len()).position(|w| w == name);
        let begin = at.expect("the answer has a date") + name.len();
        let end = begin + "Thu, 01 Jan 1970 00:00:00 GMT".len();
        Self { bytes, date: begin..end }
    }

    fn is(&self, other: &[u8]) -> bool {
        let Range { start, end } = self.date;
        other[..start] == self.bytes[..start] && other[end..] == self.bytes[end..]
    }
}

/// Open connections to a server.
pub(crate) struct Load {
    address: SocketAddr,
    runtime: Runtime,
    connections: Vec<TcpStream>,
    answer: Arc<Answer>,
}

impl Load {
    /// Clients of a server, not connected yet.
    pub(crate) fn new(address: SocketAddr, answer: &Arc<Answer>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        Self { address, runtime, connections: Vec::new(), answer: Arc::clone(answer) }
    }

    /// Connects so many more, and asks once on each connection.
    pub(crate) fn open(&mut self, more: u32) {
        for _ in 0..more {
            let stream = self.runtime.block_on(async {
                let mut stream = TcpStream::connect(self.address).await.expect("the server accepts");
                ask(&mut stream, &self.answer, 1).await;
                stream
            });
            self.connections.push(stream);
        }
    }

    /// Asks so often on each connection, and returns when every answer has come and was right.
    pub(crate) fn run(&mut self, each: u32) {
        let connections = self.connections.drain(..);
        let mut tasks = JoinSet::new();
        for mut stream in connections {
            let answer = Arc::clone(&self.answer);
            let client = async move {
                ask(&mut stream, &answer, each).await;
                stream
            };
            tasks.spawn_on(client, self.runtime.handle());
        }
        self.connections = self.runtime.block_on(tasks.join_all());
    }
}

async fn ask(stream: &mut TcpStream, right: &Answer, times: u32) {
    let mut answer = vec![0; right.bytes.len()];
    for _ in 0..times {
        stream.write_all(REQUEST).await.expect("the server reads");
        stream.read_exact(&mut answer).await.expect("the server answers");
        assert!(right.is(&answer), "a wrong answer:\n{}", String::from_utf8_lossy(&answer));
    }
}
