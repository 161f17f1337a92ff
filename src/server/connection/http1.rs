//! hyper's part of a connection, from the first byte of a request to the last byte of its answer.
//!
//! What hyper keeps of a connection are several KiB, and to make them anew for each request costs as much as all else that
//! it does. Between two requests nothing in them is of a connection any more. So an idle connection has none: a request
//! takes those that another has left, of whatever connection, and leaves them to the next.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper_util::rt::TokioIo;
use thread_local::ThreadLocal;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;
use super::service::{Service, Serving};
use crate::server::stream::ClientStream;

/// The most that a thread keeps for requests to come, some 18 KiB each.
const SPARES: usize = 32;

/// A connection of hyper's, and the place in it of the connection whose request it reads and answers.
pub(super) struct Http1 {
    seat: Seat,
    /// In a box, so that a parked connection has no room for it.
    hyper: Box<UpgradeableConnection<TokioIo<Seat>, Service>>,
}

impl Http1 {
    /// Reads the request and writes the answer. Ready when hyper will do no more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Pin::new(&mut *self.hyper).poll(cx)
    }

    /// The stream, with what hyper has read of it and not used. None if the connection was upgraded: then whoever
    /// speaks the other protocol has it.
    pub(super) fn into_stream(self) -> Option<Box<ClientStream>> {
        let parts = self.hyper.into_parts()?;
        let mut stream = parts.io.into_inner().into_stream()?;
        stream.unread(parts.read_buf);
        Some(stream)
    }
}

/// Makes, and keeps, what hyper needs to read a request and to answer it.
pub(in crate::server) struct Http1s {
    builder: Builder,
    serving: Arc<Serving>,
    spares: ThreadLocal<RefCell<Vec<Http1>>>,
}

impl Http1s {
    pub(in crate::server) fn new(builder: Builder, serving: Serving) -> Self {
        Self { builder, serving: Arc::new(serving), spares: ThreadLocal::new() }
    }

    /// What the connections share.
    pub(in crate::server) fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    /// Begins to read a request.
    pub(super) fn begin(&self, stream: Box<ClientStream>) -> Http1 {
        let spare = self.spares().borrow_mut().pop();
        let http1 = spare.unwrap_or_else(|| self.make());
        *http1.seat.stream() = Some(stream);
        http1
    }

    /// Ends between two requests. What hyper has is kept if it cannot be of that connection any more.
    pub(super) fn end(&self, http1: Http1) -> Option<Box<ClientStream>> {
        if !http1.seat.stream().as_mut()?.leaves_nothing() {
            return http1.into_stream();
        }
        let stream = http1.seat.stream().take();
        let mut spares = self.spares().borrow_mut();
        if spares.len() < SPARES {
            spares.push(http1);
        }
        stream
    }

    fn make(&self) -> Http1 {
        let seat = Seat::default();
        let service = Service::new(seat.clone(), Arc::clone(&self.serving));
        let hyper = self.builder.serve_connection(TokioIo::new(seat.clone()), service);
        Http1 { seat, hyper: Box::new(hyper.with_upgrades()) }
    }

    /// The number of those that rest.
    #[cfg(test)]
    pub(in crate::server) fn resting(&self) -> usize {
        self.spares().borrow().len()
    }

    fn spares(&self) -> &RefCell<Vec<Http1>> {
        self.spares.get_or_default()
    }
}

impl fmt::Debug for Http1s {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1s").field("serving", &self.serving).finish_non_exhaustive()
    }
}

/// The stream that hyper reads from and writes to, which changes with the connection that it works for. Without one
/// nothing comes.
///
/// hyper has one half and its service the other, and after an upgrade whoever has the connection; one poll is at work with it
/// at a time, so that nobody ever waits for the lock.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct Seat(Arc<Mutex<Option<Box<ClientStream>>>>);

impl Seat {
    pub(super) fn stream(&self) -> MutexGuard<'_, Option<Box<ClientStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection whose stream it is.
    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        self.stream().as_ref().map(|stream| Arc::clone(stream.connection()))
    }

    /// Takes the stream out for good.
    pub(in crate::server) fn into_stream(self) -> Option<Box<ClientStream>> {
        self.stream().take()
    }

    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut ClientStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.stream().as_deref_mut().map_or(Poll::Pending, |stream| poll(Pin::new(stream)))
    }
}

impl AsyncRead for Seat {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Seat {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}
