//! The streams of a connection that speaks HTTP/2: each of them is a [`Connection`] of its own, with the same states,
//! limits, counters and commands, from the head of its request to the ends of both bodies.
//!
//! The connection that it comes over keeps it, and the registry finds it there. A connection is counted as one, with
//! however many streams; a request is counted as one wherever it comes from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::machine::{Event, Machine, State};
use super::{Command, Connection, Waiter};

/// A connection's part in HTTP/2.
#[derive(Debug)]
pub(super) enum Http2 {
    /// It speaks HTTP/2, and has these streams.
    Connection(Streams),
    /// It is a stream of another.
    Stream(Stream),
}

/// The streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    /// The number of them that were ever opened.
    opened: AtomicU64,
    /// The number of them that the client has reset before a byte of an answer's body was written, since the last look.
    /// Written by the task that looks, as `opened` is: `Relaxed` is enough.
    taken_back: AtomicU64,
}

impl Streams {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place on its connection.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Arc<Connection>,
    /// Bytes of its answer that h2 has and has not yet written: it waits for the client, or for others of the connection.
    unwritten: AtomicU64,
}

/// A stream, until it is dropped: then it has ended.
#[derive(Debug)]
pub(super) struct OpenStream(pub(super) Arc<Connection>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.closed();
        // To h2 the stream goes on until nobody holds a part of it. And h2 itself may be the last to hold the connection:
        // it drops pieces of the answer, and the reader's waker, while it holds a lock that the body's end takes as well.
        self.0.forget_body();
    }
}

impl Connection {
    /// It speaks HTTP/2 from here on.
    pub(super) fn speak_http2(&self) {
        // It was none before: no connection begins twice.
        let _ = self.http2.set(Box::new(Http2::Connection(Streams::default())));
        self.on(Event::Http2);
    }

    /// A stream is opened, by a request. `number` is which one of the connection it is, from 1.
    pub(super) fn open_stream(self: &Arc<Self>) -> (OpenStream, u64) {
        let since = self.registry.clock().now();
        let machine = Machine::Reading { since, idle: since };
        let slot = self.registry.slot(self.slot.thread);
        let stream = Self::new(slot, self.peer, self.trusted, Arc::clone(&self.registry), None, machine, 0);
        let place = Stream { connection: Arc::clone(self), unwritten: AtomicU64::new(0) };
        let _ = stream.http2.set(Box::new(Http2::Stream(place)));
        if let Some(session) = self.session() {
            let _ = stream.session.set(Arc::clone(session));
        }
        let stream = Arc::new(stream);
        let mut number = 0;
        if let Some(Http2::Connection(streams)) = self.http2() {
            streams.open().insert(slot.id, Arc::clone(&stream));
            number = streams.opened.fetch_add(1, Relaxed) + 1;
        }
        (OpenStream(stream), number)
    }

    fn http2(&self) -> Option<&Http2> {
        self.http2.get().map(|http2| &**http2)
    }

    /// Its place on another connection, if it is a stream.
    fn stream(&self) -> Option<&Stream> {
        match self.http2() {
            Some(Http2::Stream(stream)) => Some(stream),
            Some(Http2::Connection(_)) | None => None,
        }
    }

    /// True if it is a stream of another connection.
    pub(super) fn is_stream(&self) -> bool {
        self.stream().is_some()
    }

    /// The connection that its bytes come over: itself, unless it is a stream.
    pub(super) fn transport(&self) -> &Self {
        self.stream().map_or(self, |stream| &*stream.connection)
    }

    /// Its open streams.
    pub(in crate::server) fn streams(&self) -> Vec<Arc<Self>> {
        match self.http2() {
            Some(Http2::Connection(streams)) => streams.open().values().cloned().collect(),
            Some(Http2::Stream(_)) | None => Vec::new(),
        }
    }

    /// A stream of it has ended.
    pub(super) fn remove_stream(&self, stream: &Self) {
        if let Some(Http2::Connection(streams)) = self.http2() {
            streams.open().remove(&stream.slot.id);
        }
    }

    /// The strongest command to it, or to the connection that it comes over.
    pub(super) fn command(&self) -> Command {
        self.commands.strongest().max(self.transport().commands.strongest())
    }

    /// Its request has ended because its client is gone. On a stream that is one that was taken back, if nothing of the
    /// answer's body was written.
    pub(super) fn lost_client(&self) {
        if let Some(Stream { connection, .. }) = self.stream()
            && self.progress.sent() == 0
            && let Some(Http2::Connection(streams)) = connection.http2()
        {
            streams.taken_back.fetch_add(1, Relaxed);
        }
    }

    /// The number of its streams that were taken back before a byte of an answer's body was written, since the last look.
    pub(super) fn taken_back(&self) -> u64 {
        match self.http2() {
            Some(Http2::Connection(streams)) => streams.taken_back.swap(0, Relaxed),
            Some(Http2::Stream(_)) | None => 0,
        }
    }

    /// True if its client has had time enough to see that it is to end: what it asks for now is not answered.
    pub(super) fn refuses_streams(&self) -> bool {
        self.machine().refuses_streams(|| self.registry.clock().now())
    }

    // ---- what becomes of an answer on a stream ----

    /// Bytes of its answer that h2 has and has not yet written.
    pub(super) fn unwritten(&self) -> u64 {
        self.stream().map_or(0, |stream| stream.unwritten.load(Relaxed))
    }

    /// h2 has so many more bytes of its answer.
    pub(super) fn to_be_written(&self, bytes: usize) {
        if let Some(stream) = self.stream() {
            stream.unwritten.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// h2 has written so many of them.
    pub(super) fn written(&self, bytes: usize) {
        let Some(stream) = self.stream() else { return };
        self.progress.add_sent(bytes);
        stream.connection.progress.add_body(bytes);
        if stream.unwritten.fetch_sub(bytes as u64, Relaxed) == bytes as u64 {
            self.commands.wake(Waiter::Writer);
        }
    }

    /// All of its answer was written to the socket. One without a body counts as written also where its client has reset
    /// the stream just before: h2 does not tell what becomes of a head.
    pub(super) fn answer_written(&self) {
        self.on(Event::Flushed);
    }

    /// Of a stream, looks whether it is the client that has yet to make room for its answer. While the socket itself
    /// takes no more, it is the connection that is timed: the streams have their turns.
    pub(super) fn look_who_waits(&self) {
        if let Some(stream) = self.stream() {
            let waits = self.unwritten() > 0 && !stream.connection.progress.is_blocked();
            self.progress.set_blocked(waits);
        }
    }

    /// True if a request is being answered on it or on one of its streams.
    pub(in crate::server) fn is_busy(&self) -> bool {
        match (self.http2(), self.state()) {
            (Some(Http2::Connection(streams)), _) => !streams.open().is_empty(),
            (_, State::Answering | State::Flushing | State::Tunnel) => true,
            _ => false,
        }
    }
}
