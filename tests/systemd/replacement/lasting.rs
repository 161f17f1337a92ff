//! Requests that last longer than any replacement.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use steadfast_harness::{Client, Exchange, Upstream};

use crate::service::{PROXY, Service};

/// The time between two events of a stream.
const EVENT: Duration = Duration::from_millis(50);

/// The size of the download in bytes.
const DOWNLOAD: usize = 100_000_000;

/// The part of it that a slow reader takes at a time, and the pause after it: some 1.3 MB a second.
const PART: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(50);

/// The least age of the request that waits for its answer, when it gets it.
const WAIT: Duration = Duration::from_secs(10);

/// The routes that they need.
pub(super) const ROUTES: &str = "[[route]]\npath = \"/files/*\"\nfiles = \"/srv/www\"\n";

/// A stream of server-sent events, a download by a slow reader, and a request that waits for its answer.
pub(super) struct Lasting {
    stream: Stream,
    download: Download,
    waiting: (Client, Exchange, Instant),
}

/// What they came to.
pub(super) struct Outcome {
    /// The events of the stream.
    pub(super) events: usize,
    /// The bytes of the download that were left when everything was over.
    pub(super) left: usize,
}

impl Service {
    /// Installs and starts the daemon with what [`Lasting`] needs.
    pub(super) fn start_for_lasting(file: &str, rest: &str) -> Option<(Self, Upstream)> {
        let service = Self::install(file, &format!("{rest}{ROUTES}{PROXY}"))?;
        service.write("/srv/www/large", large());
        service.ok(["systemctl", "start", crate::service::UNIT]);
        let upstream = service.upstream();
        Some((service, upstream))
    }
}

impl Lasting {
    /// Begins all three.
    pub(super) fn begin(service: &Service, upstream: &Upstream) -> Self {
        Self {
            stream: Stream::begin(service, upstream),
            download: Download::begin(service),
            waiting: {
                let (client, exchange) = service.in_flight(upstream, "/app/slow");
                (client, exchange, Instant::now())
            },
        }
    }

    /// Lets all three come to their ends, and checks that no byte is missing or other than it should be.
    pub(super) fn end(self) -> Outcome {
        let left = self.download.left();
        let (mut client, exchange, since) = self.waiting;
        // The time itself is the test.
        thread::sleep(WAIT.saturating_sub(since.elapsed()));
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().expect("it is answered").text(), "worth the wait");
        let events = self.stream.end();
        self.download.end();
        Outcome { events, left }
    }
}

/// A stream of numbered events.
pub(super) struct Stream {
    ends: Arc<AtomicBool>,
    said: JoinHandle<usize>,
    heard: JoinHandle<usize>,
}

impl Stream {
    pub(super) fn begin(service: &Service, upstream: &Upstream) -> Self {
        let (client, mut exchange) = service.in_flight(upstream, "/app/events");
        exchange
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        let ends = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ends);
        let said = thread::spawn(move || say(exchange.into_stream(), &until));
        let heard = thread::spawn(move || hear(client));
        Self { ends, said, heard }
    }

    /// Ends it, and returns the number of its events: all were heard, in order.
    pub(super) fn end(self) -> usize {
        self.ends.store(true, Relaxed);
        let said = self.said.join().expect("the stream goes on to its end");
        let heard = self.heard.join().expect("the stream is heard to its end");
        assert_eq!(said, heard);
        heard
    }
}

/// Says event after event, and returns their number.
fn say(mut upstream: TcpStream, until: &AtomicBool) -> usize {
    use std::io::Write;

    let mut said = 0;
    while !until.load(Relaxed) {
        let event = format!("data: {said}\n\n");
        write!(upstream, "{:x}\r\n{event}\r\n", event.len()).expect("the proxy takes an event");
        said += 1;
        thread::sleep(EVENT);
    }
    upstream.write_all(b"0\r\n\r\n").expect("the proxy takes the end");
    said
}

/// Hears all events, and returns their number.
fn hear(mut client: Client) -> usize {
    let head = client.receive_head().expect("the stream begins");
    let body = client.receive_body(&head).expect("the stream has an end");
    let body = String::from_utf8(body).expect("events are text");
    let events = body.split_terminator("\n\n");
    events.enumerate().map(|(n, event)| assert_eq!(event, format!("data: {n}"))).count()
}

/// A large file, read slowly.
pub(super) struct Download {
    hurries: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
}

impl Download {
    pub(super) fn begin(service: &Service) -> Self {
        // Beforehand: it takes a processor for a while.
        let expected = large();
        let mut client = service.connect();
        client.ask("/files/large").expect("the daemon takes a request");
        let head = client.receive_head().expect("the answer begins");
        assert_eq!(head.header("content-length"), Some(&*DOWNLOAD.to_string()));
        let hurries = Arc::new(AtomicBool::new(false));
        let read = Arc::new(AtomicUsize::new(0));
        let (hurry, progress) = (Arc::clone(&hurries), Arc::clone(&read));
        let reader = thread::spawn(move || {
            for part in expected.chunks(PART) {
                let got = client.take(part.len()).expect("the download goes on");
                assert!(got == part, "after {} bytes", progress.load(Relaxed));
                progress.fetch_add(part.len(), Relaxed);
                if !hurry.load(Relaxed) {
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { hurries, read, reader }
    }

    /// The bytes that were not read yet.
    fn left(&self) -> usize {
        DOWNLOAD - self.read.load(Relaxed)
    }

    /// Reads the rest as fast as it comes: every byte is what it should be.
    pub(super) fn end(self) {
        self.hurries.store(true, Relaxed);
        self.reader.join().expect("the download comes to its end");
    }
}

/// A file in which no two places are alike.
fn large() -> Vec<u8> {
    (0..DOWNLOAD as u64 / 8).flat_map(u64::to_be_bytes).collect()
}
