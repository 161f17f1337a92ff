//! Clients that nobody wants: half heads, slow readers, resets, floods of requests whose answers nobody reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;

/// The size in bytes of the answer that they ask for: a few of them are more than the sockets hold.
pub(crate) const LARGE: usize = 900 << 10;

const REQUEST: &[u8] = b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n";

/// The number of them at a time.
const MANY: usize = 4;

/// Hostile clients, at work until they are asked to finish.
pub(crate) struct Hostile {
    book: Arc<Book>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Book {
    stop: AtomicBool,
    asked: AtomicU64,
    refused: AtomicU64,
}

/// The record of what they have done.
pub(crate) struct Deeds {
    /// Whole requests sent.
    pub(crate) asked: u64,
    /// Connections that nobody accepted.
    pub(crate) refused: u64,
}

impl Hostile {
    pub(crate) fn start(seed: u64) -> Self {
        let book = Arc::new(Book::default());
        let mut rng = Rng::with_seed(seed);
        let clients = (0..MANY)
            .map(|_| {
                let (book, rng) = (Arc::clone(&book), rng.fork());
                thread::spawn(move || book.bother(rng))
            })
            .collect();
        Self { book, clients }
    }

    pub(crate) fn finish(self) -> Deeds {
        self.book.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().expect("a hostile client does not panic");
        }
        Deeds { asked: self.book.asked.load(Relaxed), refused: self.book.refused.load(Relaxed) }
    }
}

impl Book {
    fn bother(&self, mut rng: Rng) {
        while !self.stop.load(Relaxed) {
            match TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 8080))) {
                // Whatever comes of it: the daemon may close, reset and die.
                Ok(stream) => _ = self.abuse(stream, &mut rng),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.refused.fetch_add(1, Relaxed);
                }
                Err(_) => {}
            }
            pause(&mut rng, 20);
        }
    }

    fn abuse(&self, mut stream: TcpStream, rng: &mut Rng) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        match rng.u8(..5) {
            // Half a head.
            0 => {
                stream.write_all(&REQUEST[..rng.usize(1..REQUEST.len())])?;
                pause(rng, 300);
            }
            // One that takes its time for the head, and is gone when the answer comes.
            1 => {
                let (first, second) = REQUEST.split_at(rng.usize(1..REQUEST.len()));
                stream.write_all(first)?;
                pause(rng, 100);
                self.asked.fetch_add(1, Relaxed);
                stream.write_all(second)?;
            }
            // A slow reader.
            2 => {
                self.ask(&mut stream)?;
                let mut bytes = [0; 100];
                for _ in 0..rng.u8(1..20) {
                    pause(rng, 100);
                    stream.read_exact(&mut bytes)?;
                }
            }
            // A reset, at any moment of the answer.
            3 => {
                self.ask(&mut stream)?;
                pause(rng, 20);
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            }
            // Many requests at once, and no interest in the answers.
            _ => {
                for _ in 0..rng.u8(2..20) {
                    self.ask(&mut stream)?;
                }
                pause(rng, 200);
            }
        }
        Ok(())
    }

    fn ask(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        self.asked.fetch_add(1, Relaxed);
        stream.write_all(REQUEST)
    }
}

fn pause(rng: &mut Rng, most_ms: u64) {
    thread::sleep(Duration::from_millis(rng.u64(..=most_ms)));
}
