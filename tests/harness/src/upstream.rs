//! A server behind the proxy that answers when the test says so.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::wait::PATIENCE;

/// A listening upstream. Every request that arrives waits, unanswered, until
/// the test takes it with [`Upstream::next_request`] and answers it.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    requests: Receiver<Exchange>,
}

/// One request that has arrived, and the right to answer it. Dropping it
/// closes its connection.
#[derive(Debug)]
pub struct Exchange {
    /// The request's head, from the method to the empty line.
    pub head: String,
    /// The part of the body that arrived with the head.
    pub body: Vec<u8>,
    stream: TcpStream,
    /// Takes the connection back for the next request on it.
    again: Sender<TcpStream>,
}

impl Upstream {
    /// Listens on a free port of the loopback in the calling thread's network.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port"))
    }

    /// Serves on a listener that the test bound.
    ///
    /// # Panics
    ///
    /// If the listener has no address.
    #[must_use]
    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let (arrived, requests) = mpsc::channel();
        // The thread ends with the test process; it waits in `accept` until then.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let arrived = arrived.clone();
                thread::spawn(move || read_requests(stream, &arrived));
            }
        });
        Self { address, requests }
    }

    /// Answers every request with 200 and this body from now on.
    pub fn answer_all(self, body: &'static str) {
        // As long as the test process: nobody hangs up.
        thread::spawn(move || {
            while let Ok(exchange) = self.requests.recv() {
                exchange.try_answer(200, body);
            }
        });
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request to arrive.
    ///
    /// # Panics
    ///
    /// If none arrives for [`PATIENCE`].
    #[must_use]
    pub fn next_request(&self) -> Exchange {
        self.requests
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("waited {PATIENCE:?} for a request upstream, in vain"))
    }

    /// A request that has arrived already.
    #[must_use]
    pub fn try_next_request(&self) -> Option<Exchange> {
        self.requests.try_recv().ok()
    }
}

/// Reads the heads of one connection's requests, each after the one before has
/// been answered.
fn read_requests(mut stream: TcpStream, arrived: &Sender<Exchange>) {
    while let Ok((head, body)) = read_head(&stream) {
        let (again, back) = mpsc::channel();
        let exchange = Exchange { head, body, stream, again };
        if arrived.send(exchange).is_err() {
            return;
        }
        // An exchange that is dropped does not give its connection back.
        match back.recv() {
            Ok(returned) => stream = returned,
            Err(_) => return,
        }
    }
}

/// An answer with a whole body.
fn whole(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} Test\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn read_head(mut stream: &TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut received = Vec::new();
    let mut bytes = [0; 16 * 1024];
    loop {
        if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            let body = received.split_off(end + 4);
            let head = String::from_utf8(received).map_err(io::Error::other)?;
            return Ok((head, body));
        }
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&bytes[..count]);
    }
}

impl Exchange {
    /// Answers with a whole body and waits for the next request on the
    /// connection.
    ///
    /// # Panics
    ///
    /// If the proxy does not take the answer.
    pub fn answer(mut self, status: u16, body: &str) {
        self.send(whole(status, body));
        self.keep();
    }

    /// The same for a proxy that may have gone.
    fn try_answer(mut self, status: u16, body: &str) {
        if self.stream.write_all(whole(status, body).as_bytes()).is_ok() {
            self.keep();
        }
    }

    /// Begins an answer whose body comes in chunks.
    ///
    /// # Panics
    ///
    /// If the proxy does not take the answer.
    pub fn begin_chunked(&mut self) {
        self.send("HTTP/1.1 200 Test\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    /// Sends one chunk.
    ///
    /// # Panics
    ///
    /// If the proxy does not take it.
    pub fn chunk(&mut self, bytes: &str) {
        self.send(format!("{:x}\r\n{bytes}\r\n", bytes.len()));
    }

    /// Ends a chunked body and waits for the next request on the connection.
    ///
    /// # Panics
    ///
    /// If the proxy does not take it.
    pub fn end_chunked(mut self) {
        self.send("0\r\n\r\n");
        self.keep();
    }

    /// Sends these bytes as they are.
    ///
    /// # Panics
    ///
    /// If the proxy does not take them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the proxy reads what the upstream answers");
    }

    /// True if the proxy has given up on this request: its end of the
    /// connection is closed. Waits for it up to [`PATIENCE`].
    #[must_use]
    pub fn is_abandoned(&mut self) -> bool {
        let mut byte = [0];
        self.stream.set_read_timeout(Some(PATIENCE)).is_ok()
            && match self.stream.read(&mut byte) {
                Ok(count) => count == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            }
    }

    /// The connection itself, for what is no HTTP any more.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn keep(self) {
        // The reader is gone only when the test is over.
        let _ = self.again.send(self.stream);
    }
}
