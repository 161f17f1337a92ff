//! Files as the bodies of answers.
//!
//! A small part of a file is read into memory. A large one goes from the page cache to the socket without that
//! (`sendfile(2)`): hyper is given *placeholders* of the same length, which it queues like any bytes, and where one of
//! them comes to be written, the client's stream sends what it stands for from the file that the request carries.
//!
//! A disk never holds up the thread that a connection lives on: what is not in the page cache is read on a thread that
//! may wait.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

use super::machine::Machine;
use super::{Connection, InFlight, State};
use crate::server::socket::Socket;

/// The most bytes that are read into memory rather than sent from the page cache: for less, one call to read them costs
/// less than what `sendfile` needs beside it.
const SMALL: u64 = 8 << 10;

/// The most bytes of a file that are read at once where the kernel does not say what is in the page cache.
const CHUNK: usize = 128 << 10;

/// The same of a stream, of which a connection can have many.
const STREAM_CHUNK: usize = 16 << 10;

/// The most bytes that a placeholder stands for.
const WINDOW: usize = 1 << 20;

/// The number of windows after which a connection gives way to the others on its thread.
const TURN: u32 = 2;

/// The size of a page; a larger one is only looked at more often than it need be.
const PAGE: u64 = 4 << 10;

/// Its slices are the placeholders: an address within says that a slice is one. It lies in the program's file, and as
/// nobody reads it, no page of it is ever loaded.
static PLACEHOLDER: [u8; WINDOW] = [0; WINDOW];

/// True for bytes that only stand for those of a file.
pub(in crate::server) fn is_placeholder(bytes: &[u8]) -> bool {
    !bytes.is_empty() && PLACEHOLDER.as_ptr_range().contains(&bytes.as_ptr())
}

// ---- how a file is sent --------------------------------------------------------------------------------------

impl InFlight {
    /// A part of a file, as the body of the answer. Only its bytes are sent, whatever becomes of the file meanwhile; if
    /// it becomes too short for them, the answer breaks off. What it has lost may be zeros where it was on its way: with
    /// `sendfile(2)` that is the page cache itself, in which the kernel clears what shares a folio with the new end.
    ///
    /// # Errors
    /// The file cannot be read, or is too short already.
    pub(crate) async fn body_of(&self, file: File, part: Range<u64>) -> io::Result<Body> {
        if part.is_empty() {
            return Ok(Body::empty());
        }
        if part.end - part.start <= SMALL {
            return read(file, part).await.map(Body::from);
        }
        if self.0.state() != State::Answering || !self.0.sends_files() {
            // No connection would put the file in the place of what stands for it.
            let chunk = if self.0.is_stream() { STREAM_CHUNK } else { CHUNK };
            return Ok(Body::new(Chunks::new(file, part, chunk)));
        }
        let first = window(&part);
        let cached = match is_cached(&file, &first) {
            Ok(true) => first.end,
            Ok(false) => first.start,
            // The file system may have no page cache either: `sendfile` would wait for a disk, or for another machine.
            Err(Errno::OPNOTSUPP) => return Ok(Body::new(Chunks::new(file, part, CHUNK))),
            Err(error) => return Err(error.into()),
        };
        let file = Arc::new(SentFile { file, next: AtomicU64::new(part.start), end: part.end });
        self.0.carry_file(&file);
        Ok(Body::new(Windows { file, left: part, cached, warming: None, turn: 0 }))
    }
}

/// A part of a file on its way to the client. Its request carries it, and the body that gives the placeholders.
#[derive(Debug)]
pub(in crate::server) struct SentFile {
    file: File,
    /// The position of the byte that the next placeholder stands for. Only the connection's task reads and writes it:
    /// `Relaxed` is enough.
    next: AtomicU64,
    end: u64,
}

impl SentFile {
    /// Sends what a placeholder of so many bytes stands for, or the beginning of it.
    pub(in crate::server) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        socket: &Socket,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        let mut next = self.next.load(Relaxed);
        if self.end.saturating_sub(next) < length as u64 {
            return Poll::Ready(Err(io::Error::other(
                "a placeholder stands for more than there is of the file",
            )));
        }
        // A closed socket is an error here and no signal: the standard library's start of a program ignores `SIGPIPE`.
        let sent =
            ready!(socket.poll_send(cx, |socket| {
                rustix::fs::sendfile(socket, &self.file, Some(&mut next), length)
            }));
        self.next.store(next, Relaxed);
        Poll::Ready(match sent {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            sent => sent,
        })
    }
}

impl Connection {
    /// The file that the answer being written is made of.
    pub(in crate::server) fn file(&self) -> Option<Arc<SentFile>> {
        self.machine().exchange()?.file.clone()
    }

    /// True if the kernel can send its bytes: it makes no frames of HTTP/2, and seals no records.
    fn sends_files(&self) -> bool {
        !self.is_stream() && self.session().is_none()
    }

    /// Has the request in flight carry the file that its answer is made of; with the request it is let go of.
    fn carry_file(&self, file: &Arc<SentFile>) {
        if let Machine::Answering { exchange } = &mut *self.machine() {
            exchange.file = Some(Arc::clone(file));
        }
    }
}

/// The next window of a part.
fn window(part: &Range<u64>) -> Range<u64> {
    part.start..part.end.min(part.start.saturating_add(WINDOW as u64))
}

/// The length of what is to be held in memory, or stands in a placeholder.
fn length(part: &Range<u64>) -> usize {
    usize::try_from(part.end - part.start).unwrap_or(usize::MAX)
}

/// A part of a file, as placeholders.
///
/// Each window is looked at before it is given to hyper, by its first and its last page: if one of them is not in the
/// page cache, all of it is read on another thread. That cannot exclude that the thread of the connection waits for the
/// disk after all: pages between these two may be missing, and pages may be evicted before a slow client has had them.
/// To look at each page would cost more than to read it.
struct Windows {
    file: Arc<SentFile>,
    left: Range<u64>,
    /// The end of what was found in the page cache.
    cached: u64,
    warming: Option<JoinHandle<io::Result<()>>>,
    /// The number of windows since the connection last gave way to others.
    turn: u32,
}

impl http_body::Body for Windows {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        if this.turn == TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let window = window(&this.left);
        if this.warming.is_none() && this.cached < window.end && !is_cached(&this.file.file, &window)? {
            let (file, window) = (Arc::clone(&this.file), window.clone());
            this.warming = Some(spawn_blocking(move || warm(&file.file, &window)));
        }
        if let Some(warming) = &mut this.warming {
            let warmed = ready!(Pin::new(warming).poll(cx));
            this.warming = None;
            warmed.map_err(io::Error::other)??;
        }
        this.turn += 1;
        this.left.start = window.end;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PLACEHOLDER[..length(&window)])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

// ---- how it is read ------------------------------------------------------------------------------------------

/// Reads what is in the page cache. `AGAIN` if nothing is, `OPNOTSUPP` if the file system cannot tell.
fn read_cached(file: &File, bytes: &mut [u8], at: u64) -> Result<usize, Errno> {
    preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT)
}

/// True if the first and the last page of a window are in the page cache, or the file has become too short for it.
fn is_cached(file: &File, window: &Range<u64>) -> Result<bool, Errno> {
    let last = window.end - 1;
    for at in [window.start, last] {
        match read_cached(file, &mut [0], at) {
            Err(Errno::AGAIN) => return Ok(false),
            read => read?,
        };
        if window.start / PAGE == last / PAGE {
            break;
        }
    }
    Ok(true)
}

/// Reads a window into the page cache.
fn warm(file: &File, window: &Range<u64>) -> io::Result<()> {
    let mut waste = vec![0; 64 << 10];
    let mut left = length(window);
    let mut at = window.start;
    while left > 0 {
        let waste = &mut waste[..left.min(64 << 10)];
        file.read_exact_at(waste, at)?;
        left -= waste.len();
        at += waste.len() as u64;
    }
    Ok(())
}

fn read_at(file: &File, at: u64, mut bytes: Vec<u8>) -> io::Result<Bytes> {
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.into())
}

/// Zeros, in memory that the allocator has at hand; `vec![0; length]` asks it for zeroed memory, which it searches for.
#[expect(clippy::slow_vector_initialization, reason = "it is the faster one where the length is small")]
fn zeros(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    bytes.resize(length, 0);
    bytes
}

/// Reads a small part of a file: here if it is in the page cache, else on a thread that may wait for it.
async fn read(file: File, part: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = zeros(length(&part));
    match read_cached(&file, &mut bytes, part.start) {
        Ok(n) if n == bytes.len() => Ok(bytes.into()),
        // The rest may not be there, or not yet.
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP) => {
            spawn_blocking(move || read_at(&file, part.start, bytes)).await.map_err(io::Error::other)?
        }
        Err(error) => Err(error.into()),
    }
}

/// A part of a file, read in chunks: here if one is in the page cache, else on a thread that may wait for it.
struct Chunks {
    file: Arc<File>,
    left: Range<u64>,
    /// The most bytes of one.
    chunk: usize,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Chunks {
    fn new(file: File, part: Range<u64>, chunk: usize) -> Self {
        Self { file: Arc::new(file), left: part, chunk, reading: None }
    }

    fn give(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.left.start += bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        if this.reading.is_none() {
            let at = this.left.start;
            let mut chunk = zeros(length(&this.left).min(this.chunk));
            match read_cached(&this.file, &mut chunk, at) {
                // The rest of it comes next, whether it is there or not.
                Ok(n) if n > 0 => {
                    chunk.truncate(n);
                    return this.give(chunk.into());
                }
                Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP) => {
                    let file = Arc::clone(&this.file);
                    this.reading = Some(spawn_blocking(move || read_at(&file, at, chunk)));
                }
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        let read = ready!(this.reading.as_mut().map_or(Poll::Pending, |reading| Pin::new(reading).poll(cx)));
        this.reading = None;
        this.give(read.map_err(io::Error::other)??)
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

#[cfg(test)]
mod tests {
    //! A client gets the bytes of the file, whatever it asks for and however it reads.

    use std::io::Write;
    use std::time::Duration;

    use axum::extract::Request;
    use axum::response::{IntoResponse, Response};
    use futures_util::future::Either;
    use proptest::prelude::*;
    use rustix::fs::{Advice, fadvise};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::server::limits::Limits;
    use crate::server::registry::Registry;
    use crate::server::totals::Totals;
    use crate::server::{Answering, Handler, Server};

    /// A safety net: everything here is a matter of milliseconds.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Answers with the part of a file that the path names: `/from/end`.
    #[derive(Debug)]
    struct Part(Arc<File>);

    impl Handler for Part {
        fn answer(&self, request: Request, in_flight: InFlight) -> Answering {
            let file = self.0.try_clone().expect("a descriptor");
            Either::Right(Box::pin(async move {
                let numbers = request.uri().path()[1..].split_once('/').expect("two numbers");
                let number = |digits: &str| digits.parse().expect("a number");
                let part = number(numbers.0)..number(numbers.1);
                match in_flight.body_of(file, part).await {
                    Ok(body) => Response::new(body),
                    Err(error) => {
                        (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
                    }
                }
            }))
        }
    }

    fn file(length: usize) -> (Arc<File>, Vec<u8>) {
        let content: Vec<u8> =
            (0_u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(length).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("its content");
        (Arc::new(file), content)
    }

    /// Forgets what is in the page cache of a file.
    fn evict(file: &File) {
        file.sync_data().expect("it is on the disk");
        fadvise(file, 0, None, Advice::DontNeed).expect("it is forgotten");
    }

    fn server(file: &Arc<File>) -> Server {
        let registry = Registry::new(Totals::unobserved());
        Server::new(Vec::new(), Part(Arc::clone(file)), registry, Limits::default())
    }

    /// Reads so much at a time, and lets the server run in between, until it has the answers to all of `parts`.
    async fn read(client: &mut UnixStream, parts: &[Range<u64>], step: usize) -> Vec<Vec<u8>> {
        let (mut received, mut bodies) = (Vec::new(), Vec::new());
        let mut some = vec![0; step];
        for part in parts {
            let length = length(part);
            loop {
                let head = received.windows(4).take(1000).position(|four| four == b"\r\n\r\n");
                if let Some(end) = head.map(|at| at + 4).filter(|end| received.len() >= end + length) {
                    bodies.push(received.drain(..end + length).skip(end).collect());
                    break;
                }
                let n = client.read(&mut some).await.expect("the server answers");
                assert!(n > 0, "{} of {length} bytes", received.len());
                received.extend_from_slice(&some[..n]);
                tokio::task::yield_now().await;
            }
        }
        assert!(received.is_empty(), "{}", received.escape_ascii());
        bodies
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_bytes_of_any_part_are_those_of_the_file_however_they_are_read(
            length in prop_oneof![1..40_000_usize, 900_000..4_000_000_usize],
            parts in prop::collection::vec((0.0..1.0, 0.0..1.0), 1..4),
            step in prop_oneof![200..5_000_usize, 60_000..2_000_000_usize],
            cold in any::<bool>(),
        ) {
            let (file, content) = file(length);
            let parts: Vec<Range<u64>> = parts
                .into_iter()
                .map(|(from, share)| {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        clippy::cast_precision_loss,
                        reason = "a place in the file, of no matter which"
                    )]
                    let place = |of: u64, share: f64| (of as f64 * share) as u64;
                    let from = place(length as u64, from);
                    from..from + 1 + place(length as u64 - from - 1, share)
                })
                .collect();
            if cold {
                evict(&file);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let bodies = runtime.block_on(async {
                let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
                server(&file).serve_one(theirs);
                let ask = |part: &Range<u64>| format!("GET /{}/{} HTTP/1.1\r\nhost: a\r\n\r\n", part.start, part.end);
                client.write_all(parts.iter().map(ask).collect::<String>().as_bytes()).await.expect("room");
                tokio::time::timeout(PATIENCE, read(&mut client, &parts, step)).await.expect("all of it comes")
            });
            for (part, body) in parts.iter().zip(bodies) {
                let expected = &content[usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap()];
                prop_assert!(body == expected, "{part:?} of {length} bytes");
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_no_connection_carries_is_given_the_bytes_themselves() {
        use http_body_util::BodyExt;
        let (file, content) = file(3 << 20);
        let file = Arc::into_inner(file).expect("the only one");
        let body = InFlight::of(crate::server::Peer::Unix).body_of(file, 1..2 << 20).await.expect("a body");
        assert!(body.collect().await.expect("all of it").to_bytes() == content[1..2 << 20]);
    }

    #[test]
    fn a_part_that_a_file_does_not_have_is_an_error_before_there_is_an_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (file, _) = file(100);
        let file = Arc::into_inner(file).expect("the only one");
        let error = runtime.block_on(InFlight::of(crate::server::Peer::Unix).body_of(file, 0..200)).err();
        assert_eq!(error.expect("too short").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn only_what_stands_for_a_file_is_taken_for_it() {
        assert!(is_placeholder(&PLACEHOLDER) && is_placeholder(&PLACEHOLDER[WINDOW - 1..]));
        assert!(!is_placeholder(&PLACEHOLDER[WINDOW..]) && !is_placeholder(&[0; 10]) && !is_placeholder(&[]));
    }
}
