//! The floor: the least that an answer over TCP costs on this machine. A thread per core with an epoll each, and answers
//! that stand ready in memory; of a request nothing is read but its path and its end.
//!
//! usage: epoll-floor ADDRESS PATH=FILE...
//!
//! It is no HTTP server: it knows no methods, no bodies of requests, no limits, and no `Date`. What a server costs above
//! it is what that server does; what it costs itself is the kernel's, whoever serves. It is also the upstream of the
//! proxied rows, where it has to be cheap and always the same.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// The longest head that is read.
const HEAD: usize = 16 << 10;

/// The answers by path.
type Answers = HashMap<Vec<u8>, Vec<u8>>;

/// One connection, and what is still to be said on it.
struct Connection<'a> {
    stream: TcpStream,
    /// The part of a head that has come so far.
    head: Vec<u8>,
    unsent: &'a [u8],
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().ok_or("usage: epoll-floor ADDRESS PATH=FILE...")?.parse()?;
    let answers: Answers = arguments.map(|argument| read_answer(&argument)).collect::<io::Result<_>>()?;
    let listener = TcpListener::bind(address)?;
    // As many may wait as with the others: the standard library asks for 128.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    let threads = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| serve(&listener, &answers))).collect();
        all.into_iter().try_for_each(|thread| thread.join().expect("a thread does not panic"))
    })?;
    Ok(())
}

/// `PATH=FILE`, as a path and the whole of its answer.
fn read_answer(argument: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (path, file) = argument.split_once('=').ok_or(io::ErrorKind::InvalidInput)?;
    let body = std::fs::read(file)?;
    let html = body.starts_with(b"<");
    let content_type = if html { "text/html; charset=utf-8" } else { "image/png" };
    let length = body.len();
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n")
            .into_bytes();
    answer.extend(body);
    Ok((path.into(), answer))
}

/// One thread: whatever is ready, one after the other.
fn serve(listener: &TcpListener, answers: &Answers) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let name = |descriptor: &dyn AsRawFd| {
        EventData::new_u64(u64::try_from(descriptor.as_raw_fd()).expect("a descriptor is not negative"))
    };
    // Of all threads one is woken for a new connection.
    epoll::add(&epoll, listener, name(listener), EventFlags::IN | EventFlags::EXCLUSIVE)?;
    let mut connections = HashMap::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let data = event.data;
            if data.u64() == name(listener).u64() {
                let Ok((stream, _)) = listener.accept() else { continue };
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                epoll::add(&epoll, &stream, name(&stream), EventFlags::IN)?;
                let head = Vec::with_capacity(HEAD);
                connections.insert(name(&stream).u64(), Connection { stream, head, unsent: &[] });
                continue;
            }
            let Some(connection) = connections.get_mut(&data.u64()) else { continue };
            let waited = !connection.unsent.is_empty();
            match connection.go_on(answers) {
                Ok(()) => {
                    let waits = !connection.unsent.is_empty();
                    if waits != waited {
                        let flags = if waits { EventFlags::OUT } else { EventFlags::IN };
                        epoll::modify(&epoll, &connection.stream, data, flags)?;
                    }
                }
                // Closed with that, and so out of the epoll.
                Err(_) => drop(connections.remove(&data.u64())),
            }
        }
    }
}

impl<'a> Connection<'a> {
    /// Reads or writes once, and answers a head that is complete.
    fn go_on(&mut self, answers: &'a Answers) -> io::Result<()> {
        if self.unsent.is_empty() {
            let mut bytes = [0; HEAD];
            let count = self.stream.read(&mut bytes)?;
            if count == 0 || self.head.len() + count > HEAD {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.head.extend_from_slice(&bytes[..count]);
            // Nobody pipelines here: the end of the bytes is the end of the head.
            if !self.head.ends_with(b"\r\n\r\n") {
                return Ok(());
            }
            let path = self.head.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
            self.unsent = answers.get(path).ok_or(io::ErrorKind::NotFound)?;
            self.head.clear();
        }
        match self.stream.write(self.unsent) {
            Ok(count) => self.unsent = &self.unsent[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
