//! A client that loses whatever the server loses.
//!
//! HTTP/1.1 on one raw connection, or within TLS: no pool, no retry, no redirect, no guess.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::tls::{Agreed, Secured, Trust};
use crate::wait::PATIENCE;

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Bytes received beyond what has been handed out.
    received: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Secured),
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header fields in the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, freed of its transfer coding.
    pub body: Vec<u8>,
}

/// An answer whose body has not been read yet.
#[derive(Debug, Clone)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The header fields in the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// True if the request's method (`HEAD`) forbids a body.
    bodiless: bool,
}

/// The reason why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens there.
    Refused(io::Error),
    /// The server closed or reset the connection before the first byte of an answer.
    Closed,
    /// The connection ended within an answer: these bytes of it had come.
    Cut(Vec<u8>),
    /// The bytes that came are no HTTP/1.1 answer.
    Malformed(String),
    /// Anything else; among it a server that stayed silent for [`PATIENCE`].
    Io(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(formatter, "the connection was refused: {error}"),
            Self::Closed => formatter.write_str("the connection was closed without an answer"),
            Self::Cut(got) => write!(formatter, "the answer was cut after {} bytes", got.len()),
            Self::Malformed(what) => write!(formatter, "this is no HTTP/1.1 answer: {what}"),
            Self::Io(error) => write!(formatter, "the connection failed: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

// ---------------------------------------------------------------------------
// Connecting
// ---------------------------------------------------------------------------

impl Client {
    /// Connects over TCP.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] when nobody listens there.
    pub fn connect(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self::over(Stream::Tcp(connect_tcp(address)?)))
    }

    /// Connects over TLS, to a server whose certificate is as the client trusts.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] when nobody listens there; [`Failure::Closed`] when the server ended the handshake without an
    /// alert.
    pub fn connect_tls(address: SocketAddr, trust: &Trust) -> Result<Self, Failure> {
        Ok(Self::over(Stream::Tls(trust.shake_hands(connect_tcp(address)?)?)))
    }

    /// Connects to a unix socket.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] when nobody listens there, or there is no such file.
    pub fn connect_unix(path: impl AsRef<Path>) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(not_connected)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(Failure::Io)?;
        Ok(Self::over(Stream::Unix(stream)))
    }

    fn over(stream: Stream) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// The client's own end, as the server logs it; `None` on a unix socket.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Tls(stream) => stream.0.sock.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// What its handshake has agreed on.
    ///
    /// # Panics
    ///
    /// If it had none.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        match &self.stream {
            Stream::Tls(stream) => stream.agreed(),
            _ => panic!("this connection is not encrypted"),
        }
    }

    /// Has the next request begin with new keys in both directions (RFC 8446, section 4.6.3).
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if the connection has no such keys: it is none of TLS 1.3.
    pub fn renew_keys(&mut self) -> Result<(), Failure> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.renew_keys().map_err(Failure::Io),
            _ => Err(Failure::Io(io::ErrorKind::Unsupported.into())),
        }
    }

    /// The connection itself, for what is no HTTP any more; `None` on a unix socket, and of an encrypted one.
    ///
    /// # Panics
    ///
    /// If something of it was received and not handed out.
    #[must_use]
    pub fn into_stream(self) -> Option<TcpStream> {
        assert!(self.received.is_empty(), "{} bytes would be lost", self.received.len());
        match self.stream {
            Stream::Tcp(stream) => Some(stream),
            Stream::Unix(_) | Stream::Tls(_) => None,
        }
    }

    /// True if the server still holds the connection open, judged without a
    /// request: neither its end nor a reset has arrived.
    #[must_use]
    pub fn is_open(&mut self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return false;
        }
        let mut bytes = [0; 1024];
        let open = match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        open && self.stream.set_nonblocking(false).is_ok()
    }

    /// True if something has come that has not been handed out: [`Self::is_open`] looks.
    #[must_use]
    pub fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// Waits until the server ends the connection, and says whether it did so
    /// without sending anything more.
    ///
    /// # Errors
    ///
    /// [`Failure::Malformed`] when something came first, [`Failure::Io`] when
    /// nothing came for [`PATIENCE`].
    pub fn wait_for_close(&mut self) -> Result<(), Failure> {
        match self.receive_more() {
            Ok(0) => Ok(()),
            Ok(count) => Err(Failure::Malformed(format!("{count} bytes nobody asked for"))),
            Err(error) => match self.lost(error) {
                Failure::Closed => Ok(()),
                other => Err(other),
            },
        }
    }
}

fn connect_tcp(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).map_err(not_connected)?;
    stream.set_nodelay(true).map_err(Failure::Io)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(Failure::Io)?;
    Ok(stream)
}

fn not_connected(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::Refused(error),
        io::ErrorKind::ConnectionReset => Failure::Closed,
        _ => Failure::Io(error),
    }
}

// ---------------------------------------------------------------------------
// Asking
// ---------------------------------------------------------------------------

impl Client {
    /// `GET path`, and the whole answer.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn get(&mut self, path: &str) -> Result<Response, Failure> {
        self.ask(path)?;
        self.receive()
    }

    /// Sends `GET path` and does not wait for the answer.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn ask(&mut self, path: &str) -> Result<(), Failure> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Sends these bytes as they are.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        match self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Receives a whole answer to anything but a `HEAD` request.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn receive(&mut self) -> Result<Response, Failure> {
        let head = self.receive_head()?;
        let body = self.receive_body(&head)?;
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    /// Receives the answer to a `HEAD` request.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn receive_bodiless(&mut self) -> Result<Head, Failure> {
        let mut head = self.receive_head()?;
        head.bodiless = true;
        Ok(head)
    }

    /// Receives the head of an answer and leaves its body where it is. Interim
    /// answers other than `101` are passed over.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn receive_head(&mut self) -> Result<Head, Failure> {
        loop {
            let text = self.take_until(b"\r\n\r\n")?;
            let head = Head::parse(&text)?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
        }
    }

    /// Receives the body that belongs to `head`.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn receive_body(&mut self, head: &Head) -> Result<Vec<u8>, Failure> {
        if head.bodiless || matches!(head.status, 100..200 | 204 | 304) {
            return Ok(Vec::new());
        }
        if head.is("transfer-encoding", "chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.receive_chunk()? {
                body.extend(chunk);
            }
            return Ok(body);
        }
        if let Some(length) = head.header("content-length") {
            let length =
                length.parse().map_err(|_| Failure::Malformed(format!("content-length: {length}")))?;
            return self.take(length);
        }
        while self.receive_more().map_err(|error| self.lost(error))? > 0 {}
        Ok(std::mem::take(&mut self.received))
    }

    /// Receives one chunk of a chunked body; `None` is its end.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn receive_chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let line = self.take_until(b"\r\n")?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16)
            .map_err(|_| Failure::Malformed(format!("chunk size: {line:?}")))?;
        if size == 0 {
            while self.take_until(b"\r\n")? != "\r\n" {}
            return Ok(None);
        }
        let mut chunk = self.take(size + 2)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(Failure::Malformed("a chunk without an end".into()));
        }
        chunk.truncate(size);
        Ok(Some(chunk))
    }

    /// Receives exactly `length` bytes.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.received.len() < length {
            self.receive_some()?;
        }
        Ok(self.received.drain(..length).collect())
    }

    fn take_until(&mut self, end: &[u8]) -> Result<String, Failure> {
        let mut searched = 0;
        loop {
            let from = self.received[searched..].windows(end.len()).position(|window| window == end);
            if let Some(position) = from {
                let bytes = self.received.drain(..searched + position + end.len());
                return String::from_utf8(bytes.collect())
                    .map_err(|error| Failure::Malformed(error.to_string()));
            }
            searched = (self.received.len() + 1).saturating_sub(end.len());
            self.receive_some()?;
        }
    }

    /// At least one more byte, or the reason why not.
    fn receive_some(&mut self) -> Result<(), Failure> {
        match self.receive_more() {
            Ok(0) => Err(self.ended()),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(error)),
        }
    }

    fn receive_more(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let count = self.stream.read(&mut bytes)?;
        self.received.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn ended(&mut self) -> Failure {
        if self.received.is_empty() {
            Failure::Closed
        } else {
            Failure::Cut(std::mem::take(&mut self.received))
        }
    }

    fn lost(&mut self, error: io::Error) -> Failure {
        match error.kind() {
            // The last is an end that was not said goodbye to (RFC 8446, section 6.1).
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                self.ended()
            }
            _ => Failure::Io(error),
        }
    }
}

// ---------------------------------------------------------------------------
// The answer
// ---------------------------------------------------------------------------

impl Head {
    fn parse(text: &str) -> Result<Self, Failure> {
        let malformed = || Failure::Malformed(format!("{text:?}"));
        let mut lines = text.trim_end().split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.1 "))
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(malformed)?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').ok_or_else(malformed)?;
                Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self { status, headers, bodiless: false })
    }

    /// The first field of this name, given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.header(name).is_some_and(|found| found.eq_ignore_ascii_case(value))
    }
}

impl Response {
    /// The first field of this name, given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

impl Stream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Self::Unix(stream) => stream.set_nonblocking(nonblocking),
            Self::Tls(stream) => stream.0.sock.set_nonblocking(nonblocking),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.0.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.0.flush(),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }
}
