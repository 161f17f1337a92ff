//! A strict client on the test's own runtime: it never retries, and what it loses was lost.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// One connection to a service.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
    patience: Duration,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// In the order they came, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The reason why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection ended before the first byte of an answer.
    Closed,
    /// It ended within an answer, of which this had come.
    Cut(Vec<u8>),
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }
}

impl Client {
    /// Connects to an address as the daemon logs it. Every wait of this client lasts at most `patience`.
    pub(crate) async fn connect(address: &str, patience: Duration) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match address.strip_prefix("unix:") {
            Some(path) => Box::new(UnixStream::connect(path).await?),
            None => Box::new(TcpStream::connect(address).await?),
        };
        Ok(Self { stream, received: Vec::new(), patience })
    }

    /// `GET path`, and the whole answer.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Response, Lost> {
        self.ask(path).await;
        self.receive().await
    }

    /// Sends `GET path` and does not wait for the answer.
    pub(crate) async fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
    }

    /// Sends these bytes, unless the server has closed: that is for what is received to show.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(self.patience, self.stream.write_all(bytes.as_ref()))
            .await
            .expect("the server reads on")
            .or_else(|e| if ended(&e) { Ok(()) } else { Err(e) })
            .expect("the socket can be written");
    }

    /// Receives a whole answer to anything but `HEAD`.
    pub(crate) async fn receive(&mut self) -> Result<Response, Lost> {
        let mut response = self.receive_head().await?;
        response.body = if response.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.receive_chunk().await? {
                body.extend(chunk);
            }
            body
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().expect("a length is a number");
            self.take(length).await?
        } else if matches!(response.status, 204 | 304) {
            Vec::new()
        } else {
            self.rest().await
        };
        Ok(response)
    }

    /// Receives the head of an answer, interim ones too, and leaves its body where it is.
    pub(crate) async fn receive_head(&mut self) -> Result<Response, Lost> {
        let head = self.take_until(b"\r\n\r\n").await?;
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().expect("a head has a line");
        let status = status
            .strip_prefix("HTTP/1.1 ")
            .or(status.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("{status:?} begins no answer"));
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').expect("a field has a colon");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Ok(Response { status, headers: headers.collect(), body: Vec::new() })
    }

    /// Receives one chunk of a chunked body; `None` is its end.
    pub(crate) async fn receive_chunk(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        let line = self.take_until(b"\r\n").await?;
        let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk has a size");
        let mut chunk = self.take(size + 2).await?;
        assert!(chunk.ends_with(b"\r\n"), "a chunk has an end");
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// Receives exactly so many bytes.
    pub(crate) async fn take(&mut self, length: usize) -> Result<Vec<u8>, Lost> {
        while self.received.len() < length {
            self.receive_some().await?;
        }
        Ok(self.received.drain(..length).collect())
    }

    /// Everything until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.receive_some().await.is_ok() {}
        std::mem::take(&mut self.received)
    }

    /// True if the server has neither sent anything more nor closed.
    pub(crate) async fn is_open_and_silent(&mut self) -> bool {
        let mut byte = [0];
        tokio::select! {
            biased;
            _ = self.stream.read(&mut byte) => false,
            // The runtime looks at its sockets before it runs a task again.
            () = tokio::task::yield_now() => true,
        }
    }

    async fn take_until(&mut self, end: &[u8]) -> Result<String, Lost> {
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|w| w == end) {
                let bytes = self.received.drain(..at + end.len()).collect();
                return Ok(String::from_utf8(bytes).expect("a head is text"));
            }
            self.receive_some().await?;
        }
    }

    async fn receive_some(&mut self) -> Result<(), Lost> {
        let read = self.stream.read_buf(&mut self.received);
        let read = timeout(self.patience, read).await.expect("the server says something");
        match read {
            Ok(1..) => Ok(()),
            Err(error) if !ended(&error) => panic!("the socket cannot be read: {error}"),
            Ok(0) | Err(_) if self.received.is_empty() => Err(Lost::Closed),
            Ok(0) | Err(_) => Err(Lost::Cut(self.received.clone())),
        }
    }
}

fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
