//! The bodies of a proxied request and of its answer, each of which tracks whose turn it is, the client's or the
//! upstream's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::Exchange;
use super::connection::{Connection, Cut};

// ---------------------------------------------------------------- to the upstream

/// A request's body on its way to the upstream. hyper drops it when it has taken all of it.
#[derive(Debug)]
pub(super) struct Upload {
    inner: Body,
    turn: Arc<Turn>,
}

/// The side that has to act next, until the answer has come and the body is sent: one of the constants.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU8);

impl Turn {
    /// The client has yet to send more of the body: not the upstream's fault.
    pub(super) const CLIENT: u8 = 0;
    /// The upstream has yet to read more of the body, or to answer, and was last seen to go on just now.
    pub(super) const PROGRESS: u8 = 1;
    /// It is still the upstream's turn, as it was at the last look.
    const UPSTREAM: u8 = 2;

    /// A request begins.
    pub(super) fn begin(&self) {
        self.0.store(Self::PROGRESS, Relaxed);
    }

    /// Whose turn it is. Only the task that drives the connection looks, and only it moves the body: nothing is ordered
    /// by this.
    pub(super) fn look(&self) -> u8 {
        let turn = self.0.load(Relaxed);
        if turn == Self::PROGRESS {
            self.0.store(Self::UPSTREAM, Relaxed);
        }
        turn
    }
}

impl Upload {
    pub(super) fn new(inner: Body, turn: &Arc<Turn>) -> Self {
        Self { inner, turn: Arc::clone(turn) }
    }

    /// The body again, where nothing was taken of it.
    pub(super) fn into_inner(mut self) -> Body {
        std::mem::take(&mut self.inner)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        self.turn.0.store(if frame.is_pending() { Turn::CLIENT } else { Turn::PROGRESS }, Relaxed);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.turn.0.store(Turn::PROGRESS, Relaxed);
    }
}

// ---------------------------------------------------------------- to the client

/// The body of the upstream's answer on its way to the client. It drives the connection that it comes from.
#[derive(Debug)]
pub(super) struct Download {
    inner: Incoming,
    /// None once the connection has given all of the answer.
    connection: Option<Box<Connection>>,
    exchange: Exchange,
    /// Set where the rest does not come, until that is told.
    broken: Option<BrokenOff>,
}

/// The reason why an answer was broken off. The client sees the connection close within the body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenOff {
    #[error("the upstream was silent for {} s within its answer", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the upstream broke off its answer")]
    Failed(#[source] hyper::Error),
}

impl Download {
    pub(super) fn new(inner: Incoming, connection: Option<Box<Connection>>, exchange: Exchange) -> Self {
        let mut body = Self { inner, connection, exchange, broken: None };
        body.release(false);
        body
    }

    /// Gives up the connection if nothing of the answer is left to come from it. hyper has read a small answer to its
    /// end by the time that it gives its head.
    fn release(&mut self, ended: bool) {
        let Some(connection) = &self.connection else { return };
        if (ended || connection.is_idle() || connection.has_ended() || self.inner.is_end_stream())
            && let Some(connection) = self.connection.take()
        {
            self.exchange.release(connection);
        }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        if let Some(broken) = this.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        let timeout = this.exchange.timeout();
        let frame = match &mut this.connection {
            Some(connection) => ready!(connection.poll_frame(cx, &mut this.inner, timeout)),
            None => ready!(Pin::new(&mut this.inner).poll_frame(cx)).map(|frame| frame.map_err(Cut::Failed)),
        };
        let broken = match frame {
            Some(Ok(frame)) => {
                this.release(false);
                return Poll::Ready(Some(Ok(frame)));
            }
            None => {
                this.release(true);
                return Poll::Ready(None);
            }
            Some(Err(Cut::Silent)) => BrokenOff::Silent(timeout),
            Some(Err(Cut::Failed(error))) => BrokenOff::Failed(error),
        };
        this.connection = None;
        this.exchange.failed(&broken);
        // What has come of the answer reaches the client first: hyper flushes when it has to wait.
        this.broken = Some(broken);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
