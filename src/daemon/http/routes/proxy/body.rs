//! The bodies of a proxied request and of its answer, each of which tracks whose turn it is, the client's or the
//! upstream's.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Exchange;
use crate::server::{InFlight, Waiting};

// ---------------------------------------------------------------- to the upstream

/// A request's body on its way to the upstream. The client of hyper drops it when it has taken all of it.
#[derive(Debug)]
pub(super) struct Upload {
    inner: Body,
    turn: Arc<Turn>,
}

/// The side that has to act next, until the upstream's answer begins.
#[derive(Debug)]
pub(super) struct Turn {
    state: Mutex<State>,
    /// The task that times the upstream; it waits here while it is not the upstream's turn.
    watcher: AtomicWaker,
    in_flight: InFlight,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// There is no connection yet. The connector has limits of its own.
    Connecting,
    /// The client has yet to send more of the body: not the upstream's fault.
    Client,
    /// The upstream has yet to read more of the body, or to answer, since then.
    Upstream(Instant),
    /// The answer has begun, or none will.
    Over,
}

impl Turn {
    pub(super) fn new(in_flight: InFlight) -> Arc<Self> {
        let turn = Self { state: Mutex::new(State::Connecting), watcher: AtomicWaker::new(), in_flight };
        turn.waiting_for(Waiting::UpstreamConnect);
        Arc::new(turn)
    }

    /// Returns when it has been the upstream's turn for `timeout` without any progress.
    pub(super) async fn overdue(&self, timeout: Duration) {
        let alarm = sleep_until(Instant::now() + timeout);
        tokio::pin!(alarm);
        poll_fn(|cx| {
            self.watcher.register(cx.waker());
            let State::Upstream(since) = *self.state() else {
                return Poll::Pending;
            };
            // Progress does not wake this task: when the alarm goes off, it is first set anew by the last progress.
            alarm.as_mut().reset(since + timeout);
            alarm.as_mut().poll(cx)
        })
        .await;
    }

    /// The answer has begun, or none will.
    pub(super) fn over(&self) {
        *self.state() = State::Over;
    }

    fn is_upstreams(&self) {
        let mut state = self.state();
        let before = *state;
        if matches!(before, State::Over) {
            return;
        }
        *state = State::Upstream(Instant::now());
        drop(state);
        self.waiting_for(Waiting::UpstreamResponse);
        if !matches!(before, State::Upstream(_)) {
            self.watcher.wake();
        }
    }

    fn is_clients(&self) {
        let state = &mut *self.state();
        if !matches!(state, State::Over) {
            *state = State::Client;
        }
    }

    fn waiting_for(&self, what: Waiting) {
        self.in_flight.waiting_for(what);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    pub(super) fn new(inner: Body, turn: &Arc<Turn>) -> Self {
        Self { inner, turn: Arc::clone(turn) }
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
        match frame {
            Poll::Pending => self.turn.is_clients(),
            Poll::Ready(_) => self.turn.is_upstreams(),
        }
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
        self.turn.is_upstreams();
    }
}

// ---------------------------------------------------------------- to the client

/// The body of the upstream's answer on its way to the client.
#[derive(Debug)]
pub(super) struct Download {
    inner: Incoming,
    exchange: Exchange,
    /// The timer of the upstream's silence; made when it is silent for the first time.
    alarm: Option<Pin<Box<Sleep>>>,
    silent: bool,
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
    pub(super) fn new(inner: Incoming, exchange: Exchange) -> Self {
        Self { inner, exchange, alarm: None, silent: false }
    }

    /// Ready when the upstream has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let timeout = self.exchange.timeout();
        if !self.silent {
            self.silent = true;
            let end = Instant::now() + timeout;
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(end),
                None => self.alarm = Some(Box::pin(sleep_until(end))),
            }
        }
        match &mut self.alarm {
            Some(alarm) => alarm.as_mut().poll(cx).map(|()| timeout),
            None => Poll::Pending,
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
        let broken = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                self.silent = false;
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(error))) => BrokenOff::Failed(error),
            Poll::Pending => BrokenOff::Silent(ready!(self.poll_silence(cx))),
        };
        self.exchange.log_failure(&broken);
        Poll::Ready(Some(Err(broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
