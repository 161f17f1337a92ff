//! A connection to the upstream. It has no task: whoever waits for an answer, or for the rest of one, drives it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::runtime;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::{Turn, Upload};
use crate::server::socket::Socket;
use crate::server::{InFlight, Waiting};

/// An open connection to the upstream. To drop it closes it.
pub(super) struct Connection {
    relay: Arc<Relay>,
    /// That of `relay`.
    waker: Waker,
    driven: Driven,
    /// The runtime that its socket and its timer belong to.
    runtime: runtime::Id,
}

/// The part of a connection that is polled with the connection's own waker.
struct Driven {
    sender: SendRequest<Upload>,
    /// None once it has failed, or was taken apart.
    hyper: Option<http1::Connection<TokioIo<Socket>, Upload>>,
    /// True once there is nothing left to be driven: the connection has closed, failed, or changed protocol.
    ended: bool,
    turn: Arc<Turn>,
    /// Since when the upstream is waited for, while it is its turn.
    since: Option<Instant>,
    /// The timer of the upstream's silence. It stays set from one request to the next.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The end of an attempt to have a request answered.
pub(super) enum Outcome {
    /// The head of the answer is here.
    Answered(Response<Incoming>),
    /// The connection has ended before it took the request: not a byte of it was sent.
    Unsent(Request, hyper::Error),
    /// The request was sent, in part at least, and there is no answer.
    Failed(hyper::Error),
    /// The upstream has not gone on for too long.
    Overdue,
}

/// The reason why the rest of an answer does not come.
pub(super) enum Cut {
    /// The upstream was silent for too long.
    Silent,
    /// The connection has failed.
    Failed(hyper::Error),
}

impl Connection {
    pub(super) async fn new(socket: Socket, http1: &http1::Builder) -> hyper::Result<Box<Self>> {
        let (sender, hyper) = http1.handshake(TokioIo::new(socket)).await?;
        let relay = Arc::<Relay>::default();
        Ok(Box::new(Self {
            waker: Waker::from(Arc::clone(&relay)),
            relay,
            driven: Driven {
                sender,
                hyper: Some(hyper),
                ended: false,
                turn: Arc::default(),
                since: None,
                alarm: None,
            },
            runtime: runtime::Handle::current().id(),
        }))
    }

    /// Sends a request, and waits for the head of its answer. `timeout` is the upstream's, while it is its turn.
    pub(super) fn ask(
        &mut self,
        request: Request,
        in_flight: &InFlight,
        timeout: Duration,
    ) -> impl Future<Output = Outcome> {
        let request = request.map(|body| Upload::new(body, &self.driven.turn));
        self.driven.turn.begin();
        let answer = self.driven.sender.try_send_request(request);
        async move {
            let mut answer = pin!(answer);
            poll_fn(|cx| {
                self.poll(cx, |driven, cx| {
                    driven.run(cx);
                    let mut answered = answer.as_mut().poll(cx);
                    if answered.is_pending() && driven.ended {
                        // A request that hyper has not taken comes back when hyper is dropped.
                        driven.hyper = None;
                        answered = answer.as_mut().poll(cx);
                    }
                    match answered {
                        Poll::Ready(Ok(answer)) => {
                            driven.since = None;
                            Poll::Ready(Outcome::Answered(answer))
                        }
                        Poll::Ready(Err(mut error)) => Poll::Ready(match error.take_message() {
                            Some(unsent) => {
                                Outcome::Unsent(unsent.map(Upload::into_inner), error.into_error())
                            }
                            None => Outcome::Failed(error.into_error()),
                        }),
                        Poll::Pending => {
                            let goes_on = || in_flight.waiting_for(Waiting::UpstreamResponse);
                            driven.poll_overdue(cx, timeout, goes_on).map(|()| Outcome::Overdue)
                        }
                    }
                })
            })
            .await
        }
    }

    /// The next frame of an answer's body.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
        timeout: Duration,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll(cx, |driven, cx| {
            driven.run(cx);
            if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
                driven.since = None;
                return Poll::Ready(frame.map(|frame| frame.map_err(Cut::Failed)));
            }
            let since = *driven.since.get_or_insert_with(Instant::now);
            driven.poll_alarm(cx, since + timeout).map(|()| Some(Err(Cut::Silent)))
        })
    }

    /// Sends the rest of a request whose answer has already ended. The connection has ended, or is idle, after that:
    /// `timeout` is the upstream's, while it is its turn. The client has the limits of its own connection.
    pub(super) async fn finish(&mut self, timeout: Duration) {
        poll_fn(|cx| {
            self.poll(cx, |driven, cx| {
                driven.run(cx);
                if driven.ended || driven.is_idle() {
                    return Poll::Ready(());
                }
                ready!(driven.poll_overdue(cx, timeout, || {}));
                tracing::debug!("the upstream has answered, and did not read the rest of the request");
                driven.ended = true;
                driven.hyper = None;
                Poll::Ready(())
            })
        })
        .await;
    }

    /// Sends the rest of a request whose answer has changed the protocol. Gives the socket and what was read of the new
    /// protocol; none if the connection has failed.
    pub(super) async fn into_upgraded(mut self: Box<Self>, timeout: Duration) -> Option<(Socket, Bytes)> {
        self.finish(timeout).await;
        let parts = self.driven.hyper.take()?.into_parts();
        Some((parts.io.into_inner(), parts.read_buf))
    }

    /// True if the last answer and its request are whole, and the connection can take another request.
    pub(super) fn is_idle(&self) -> bool {
        self.driven.is_idle()
    }

    /// True if there is nothing left to be driven.
    pub(super) fn has_ended(&self) -> bool {
        self.driven.ended
    }

    /// The runtime that must run for the connection to go on.
    pub(super) fn runtime(&self) -> runtime::Id {
        self.runtime
    }

    /// True if an idle connection is still open and has nothing to say, as it must.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.driven.run(&mut Context::from_waker(&self.waker));
        !self.driven.ended
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Driven, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.relay.begin();
        let polled = poll(&mut self.driven, &mut Context::from_waker(&self.waker));
        if polled.is_pending() {
            self.relay.wait(cx.waker());
        }
        polled
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Driven {
    /// Reads and writes as far as that goes. What comes of it is found at the answer, or at its body.
    fn run(&mut self, cx: &mut Context<'_>) {
        let Some(hyper) = self.hyper.as_mut().filter(|_| !self.ended) else { return };
        match hyper.poll_without_shutdown(cx) {
            Poll::Ready(Ok(())) => self.ended = true,
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a connection to the upstream failed");
                self.ended = true;
                self.hyper = None;
            }
            Poll::Pending => {}
        }
    }

    /// hyper asks for another request once the last one was written and its answer read, both to their ends, if either
    /// side leaves the connection open.
    fn is_idle(&self) -> bool {
        !self.ended && self.sender.is_ready()
    }

    /// Ready when it has been the upstream's turn for `timeout` without any progress. `goes_on` is called at each progress.
    fn poll_overdue(&mut self, cx: &mut Context<'_>, timeout: Duration, goes_on: impl FnOnce()) -> Poll<()> {
        match self.turn.look() {
            Turn::CLIENT => self.since = None,
            Turn::PROGRESS => {
                self.since = Some(Instant::now());
                goes_on();
            }
            // Since an answer has come meanwhile, at the latest.
            _ => _ = self.since.get_or_insert_with(Instant::now),
        }
        match self.since {
            Some(since) => self.poll_alarm(cx, since + timeout),
            None => Poll::Pending,
        }
    }

    /// Ready from `until` on. To set a timer costs more than to look at the clock, so the alarm is not set anew for each
    /// wait: it goes off too early, and is then set by what is waited for at that time.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            ready!(alarm.as_mut().poll(cx));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(until);
        }
    }
}

// ---------------------------------------------------------------- its waker

/// The waker that hyper, the socket and the timer know, whoever drives the connection: none of them need take another
/// one with each request. It wakes the task that waits for the connection, if any does: neither one that has just
/// caused the wake-up by what it did, nor one that had the connection before.
#[derive(Debug, Default)]
struct Relay {
    /// `AT_REST`, `WAITED_FOR` or `WOKEN`.
    state: AtomicU8,
    task: AtomicWaker,
}

/// The connection is being polled, or is idle.
const AT_REST: u8 = 0;
/// The connection was woken since it was last polled.
const WOKEN: u8 = 1;
/// A task waits for the connection.
const WAITED_FOR: u8 = 2;

impl Relay {
    /// The connection is about to be polled.
    fn begin(&self) {
        self.state.swap(AT_REST, AcqRel);
    }

    /// A task waits for the connection, which it has polled.
    fn wait(&self, task: &Waker) {
        self.task.register(task);
        if self.state.compare_exchange(AT_REST, WAITED_FOR, AcqRel, Acquire).is_err() {
            task.wake_by_ref();
        }
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, AcqRel) == WAITED_FOR {
            self.task.wake();
        }
    }
}
