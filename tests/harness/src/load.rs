//! Load from clients that keep an account of everything they lose.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Client, Failure, Response};
use crate::tls::Trust;
use crate::wait::wait_until;

/// Clients that each keep one connection busy: the next request goes out as soon as the answer is there. A client
/// that lost its connection opens another; what it had asked stays lost.
///
/// Dropped, it stops.
#[derive(Debug)]
pub struct Load {
    book: Arc<Book>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Book {
    stop: AtomicBool,
    answered: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    closed: AtomicU64,
    /// In microseconds.
    longest: AtomicU64,
    reasons: Mutex<BTreeMap<String, u64>>,
}

/// The outcome of the requests.
#[derive(Clone, Debug)]
pub struct Account {
    /// Answered with 200.
    pub answered: u64,
    /// Nobody listened.
    pub refused: u64,
    /// Not answered, not to the end, or with another status.
    pub dropped: u64,
    /// Answered with 200 and `Connection: close`.
    pub closed: u64,
    /// The errors of the refused and the dropped ones, with their number.
    pub reasons: BTreeMap<String, u64>,
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, refused, dropped, closed, reasons } = self;
        write!(formatter, "{answered} answered, {refused} refused, {dropped} dropped, {closed} closed")?;
        if !reasons.is_empty() {
            write!(formatter, ": {reasons:?}")?;
        }
        Ok(())
    }
}

impl Load {
    /// Starts this many clients in the calling thread's network.
    #[must_use]
    pub fn start(clients: usize, address: SocketAddr, path: &str) -> Self {
        Self::sending(clients, address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// The same with this request, head and body.
    #[must_use]
    pub fn sending(clients: usize, address: SocketAddr, request: &str) -> Self {
        Self::pipelining(clients, address, request, 1)
    }

    /// The same with up to `depth` requests on their way at a time. Those behind an answer that says
    /// `Connection: close` are not lost: their client knows that nobody has begun them (RFC 9112, section 9.3.2).
    #[must_use]
    pub fn pipelining(clients: usize, address: SocketAddr, request: &str, depth: usize) -> Self {
        Self::connecting(clients, request, depth, move || Client::connect(address))
    }

    /// Starts this many clients that speak TLS.
    #[must_use]
    pub fn over_tls(clients: usize, address: SocketAddr, trust: &Trust, path: &str) -> Self {
        let trust = trust.clone();
        Self::connecting(clients, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"), 1, move || {
            Client::connect_tls(address, &trust)
        })
    }

    fn connecting(
        clients: usize,
        request: &str,
        depth: usize,
        connect: impl Fn() -> Result<Client, Failure> + Clone + Send + 'static,
    ) -> Self {
        let book = Arc::new(Book::default());
        let client = |_| {
            let (book, request, connect) = (Arc::clone(&book), request.to_owned(), connect.clone());
            thread::spawn(move || book.keep_asking(connect, &request, depth))
        };
        let clients = (0..clients).map(client).collect();
        Self { book, clients }
    }

    /// Returns when this many more requests have been answered.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub fn advance(&self, requests: u64) {
        let goal = self.book.answered.load(Relaxed) + requests;
        wait_until("the load to be answered", || (self.book.answered.load(Relaxed) >= goal).then_some(()));
    }

    /// The longest that a client has waited for an answer, or for its failure, since this was asked before.
    #[must_use]
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.book.longest.swap(0, Relaxed))
    }

    /// The outcome of the requests so far.
    #[must_use]
    pub fn account(&self) -> Account {
        self.book.account()
    }

    /// Lets every client have its last answer, and returns what became of all requests.
    ///
    /// # Panics
    ///
    /// If a client panicked.
    #[must_use]
    pub fn finish(mut self) -> Account {
        self.book.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a client does not panic");
        }
        self.book.account()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.book.stop.store(true, Relaxed);
    }
}

/// A connection of one of the clients.
struct Asking {
    client: Client,
    /// Requests on their way.
    unanswered: usize,
}

impl Asking {
    fn over(client: Client) -> Self {
        Self { client, unanswered: 0 }
    }

    /// Sends requests until so many are on their way, and receives an answer.
    fn turn(&mut self, request: &str, depth: usize) -> Result<Response, Failure> {
        let more = depth.saturating_sub(self.unanswered);
        self.unanswered += more;
        if more > 0 {
            self.client.send(request.repeat(more))?;
        }
        let answer = self.client.receive()?;
        self.unanswered -= 1;
        Ok(answer)
    }
}

impl Book {
    fn keep_asking(&self, connect: impl Fn() -> Result<Client, Failure>, request: &str, depth: usize) {
        let mut kept: Option<Asking> = None;
        while !self.stop.load(Relaxed) {
            let began = Instant::now();
            let connected = kept.take().map_or_else(|| connect().map(Asking::over), Ok);
            let answered = connected.and_then(|mut asking| asking.turn(request, depth).map(|a| (asking, a)));
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.longest.fetch_max(took, Relaxed);
            kept = self.note(answered);
        }
        // Every request that was sent is one that can be lost.
        while let Some(mut asking) = kept.take().filter(|asking| asking.unanswered > 0) {
            kept = self.note(asking.turn(request, 0).map(|answer| (asking, answer)));
        }
    }

    /// Notes what came of a request, and returns the connection if it goes on.
    fn note(&self, answered: Result<(Asking, Response), Failure>) -> Option<Asking> {
        match answered {
            Ok((asking, answer)) if answer.status == 200 => {
                self.answered.fetch_add(1, Relaxed);
                if answer.header("connection") != Some("close") {
                    return Some(asking);
                }
                self.closed.fetch_add(1, Relaxed);
            }
            Ok((_, answer)) => self.lost(&self.dropped, format!("the answer was {}", answer.status)),
            Err(failure @ Failure::Refused(_)) => {
                self.lost(&self.refused, failure.to_string());
                // Nobody listens: the processor is needed elsewhere.
                thread::sleep(Duration::from_millis(1));
            }
            Err(failure) => self.lost(&self.dropped, failure.to_string()),
        }
        None
    }

    fn lost(&self, counter: &AtomicU64, reason: String) {
        counter.fetch_add(1, Relaxed);
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    fn account(&self) -> Account {
        Account {
            answered: self.answered.load(Relaxed),
            refused: self.refused.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            closed: self.closed.load(Relaxed),
            reasons: self.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
