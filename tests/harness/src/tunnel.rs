//! Both ends of a tunnel, which say numbered messages to each other and believe nothing.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::wait::{PATIENCE, wait_until};

/// The most messages of one direction that may be on their way.
const UNDER_WAY: u64 = 16;

/// The pause between two turns, for the rest of the machine.
const GLANCE: Duration = Duration::from_millis(1);

/// A tunnel through the proxy, with both its ends.
///
/// Each direction carries the same messages 0, 1, 2, ... of its own: whatever comes is compared, byte by byte, with
/// what has to come next.
#[derive(Debug)]
pub struct Tunnel {
    up: Direction,
    down: Direction,
    client: TcpStream,
    upstream: TcpStream,
}

#[derive(Debug)]
struct Direction {
    /// The beginning of its messages, which no other direction's have.
    name: String,
    said: u64,
    arrived: u64,
    /// Said, but not yet taken by the socket.
    unsent: Vec<u8>,
    /// Received, but not yet a whole message.
    received: Vec<u8>,
}

impl Direction {
    fn new(name: String) -> Self {
        Self { name, said: 0, arrived: 0, unsent: Vec::new(), received: Vec::new() }
    }

    /// Message `number`, whose length varies.
    fn message(&self, number: u64) -> String {
        let padding = usize::try_from(number * 37 % 300).unwrap_or_default();
        format!("{} {number} {:.<padding$}\n", self.name, "")
    }

    fn say(&mut self) {
        let message = self.message(self.said);
        self.unsent.extend_from_slice(message.as_bytes());
        self.said += 1;
    }

    /// Sends what the socket takes.
    fn send(&mut self, mut source: &TcpStream) -> Result<(), String> {
        while !self.unsent.is_empty() {
            match source.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("{}: cannot send: {error}", self.name)),
            }
        }
        Ok(())
    }

    /// Hears what has come.
    fn hear(&mut self, mut sink: &TcpStream) -> Result<(), String> {
        let mut bytes = [0; 16 * 1024];
        loop {
            match sink.read(&mut bytes) {
                Ok(0) => return Err(format!("{}: ended after message {}", self.name, self.arrived)),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("{}: cannot receive: {error}", self.name)),
            }
            self.check()?;
        }
    }

    fn check(&mut self) -> Result<(), String> {
        loop {
            let expected = self.message(self.arrived);
            let count = expected.len().min(self.received.len());
            if self.received[..count] != expected.as_bytes()[..count] {
                let got = String::from_utf8_lossy(&self.received[..count]);
                return Err(format!("{}: {got:?} instead of {expected:?}", self.name));
            }
            if count < expected.len() {
                return Ok(());
            }
            self.received.drain(..count);
            self.arrived += 1;
        }
    }
}

impl Tunnel {
    /// Takes both ends over, after their handshakes. No two tunnels of a test have the same number.
    ///
    /// # Panics
    ///
    /// If they are not sockets that can be made non-blocking.
    #[must_use]
    pub fn new(number: usize, client: TcpStream, upstream: TcpStream) -> Self {
        for end in [&client, &upstream] {
            end.set_nonblocking(true).expect("a socket can do without blocking");
            end.set_nodelay(true).expect("a socket can send at once");
        }
        let direction = |way| Direction::new(format!("tunnel {number} {way}"));
        Self { up: direction("up"), down: direction("down"), client, upstream }
    }

    /// The number of messages that were sent and received, in both directions together.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.up.arrived + self.down.arrived
    }

    /// Both ends say what has not been said too far ahead, and hear what has come.
    ///
    /// # Errors
    ///
    /// A message that was lost, doubled or out of order, or the tunnel's end.
    pub fn turn(&mut self) -> Result<(), String> {
        for direction in [&mut self.up, &mut self.down] {
            while direction.said < direction.arrived + UNDER_WAY {
                direction.say();
            }
        }
        self.pass()
    }

    fn pass(&mut self) -> Result<(), String> {
        self.up.send(&self.client)?;
        self.down.send(&self.upstream)?;
        self.up.hear(&self.upstream)?;
        self.down.hear(&self.client)
    }

    /// The client says this many messages although nobody hears them.
    ///
    /// # Errors
    ///
    /// If the tunnel has ended.
    pub fn say_unheard(&mut self, messages: u64) -> Result<(), String> {
        for _ in 0..messages {
            self.up.say();
        }
        self.up.send(&self.client)
    }

    /// Returns when everything that was said has been arrived, one more message each way at least.
    ///
    /// # Errors
    ///
    /// As [`Self::turn`]; and when it takes longer than [`PATIENCE`].
    pub fn settle(&mut self) -> Result<(), String> {
        let began = Instant::now();
        self.up.say();
        self.down.say();
        loop {
            self.pass()?;
            if self.up.said == self.up.arrived && self.down.said == self.down.arrived {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!(
                    "{}: {} of {} arrived",
                    self.up.name,
                    self.arrived(),
                    self.up.said + self.down.said
                ));
            }
            thread::sleep(GLANCE);
        }
    }
}

/// Tunnels that are busy in both directions until they are asked to finish.
#[derive(Debug)]
pub struct Conversation {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<Vec<Tunnel>, String>>>,
}

impl Conversation {
    /// Starts it on a few threads.
    #[must_use]
    pub fn start(mut tunnels: Vec<Tunnel>) -> Self {
        const THREADS: usize = 2;
        let stop = Arc::new(AtomicBool::new(false));
        let arrived = Arc::new(AtomicU64::new(0));
        let other = tunnels.split_off(tunnels.len() / THREADS);
        let threads = [tunnels, other].map(|tunnels| {
            let (stop, arrived) = (Arc::clone(&stop), Arc::clone(&arrived));
            thread::spawn(move || talk(tunnels, &stop, &arrived))
        });
        Self { stop, arrived, threads: threads.into() }
    }

    /// Returns when this many more messages were arrived, or when a tunnel has failed, which [`Self::finish`] tells of.
    ///
    /// # Panics
    ///
    /// If neither happens.
    pub fn advance(&self, messages: u64) {
        let goal = self.arrived.load(Relaxed) + messages;
        wait_until("the tunnels to go on", || {
            let done = self.arrived.load(Relaxed) >= goal || self.threads.iter().any(JoinHandle::is_finished);
            done.then_some(())
        });
    }

    /// Returns the tunnels when all that was said has been arrived.
    ///
    /// # Errors
    ///
    /// The first failure of a tunnel.
    ///
    /// # Panics
    ///
    /// Never: its threads do not panic.
    pub fn finish(self) -> Result<Vec<Tunnel>, String> {
        self.stop.store(true, Relaxed);
        let mut tunnels = Vec::new();
        for thread in self.threads {
            tunnels.extend(thread.join().expect("a conversation does not panic")?);
        }
        Ok(tunnels)
    }
}

fn talk(mut tunnels: Vec<Tunnel>, stop: &AtomicBool, arrived: &AtomicU64) -> Result<Vec<Tunnel>, String> {
    while !stop.load(Relaxed) {
        for tunnel in &mut tunnels {
            let before = tunnel.arrived();
            tunnel.turn()?;
            arrived.fetch_add(tunnel.arrived() - before, Relaxed);
        }
        thread::sleep(GLANCE);
    }
    for tunnel in &mut tunnels {
        tunnel.settle()?;
    }
    Ok(tunnels)
}
