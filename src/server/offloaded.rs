//! A caller's `Router` on a runtime beside the I/O threads: a handler, or a body, that blocks its thread holds up no
//! connection.
//!
//! A request costs two changes of threads. Its answer is given over whole where it is there at once; the body of any
//! other is polled on that runtime as well, and comes over piece by piece.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::response::Parts;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http_body::{Body as _, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::connection::InFlight;
use super::handler::{Answering, Handler, failed, panicked};

/// The most bytes of an answer that are gathered, if they are there at once, before it is given over.
const AT_ONCE: usize = 64 << 10;
/// The most pieces of the rest that wait for the client.
const PIECES: usize = 1;

/// A `Router` with the runtime that it runs on.
#[derive(Debug)]
pub(crate) struct Offloaded {
    router: Router,
    runtime: Handle,
}

impl Offloaded {
    pub(crate) fn new(router: Router, runtime: Handle) -> Self {
        Self { router, runtime }
    }
}

impl Handler for Offloaded {
    fn answer(&self, request: Request, in_flight: InFlight) -> Answering {
        let (give, given) = oneshot::channel();
        // Until its first poll is over the handler may answer at once.
        in_flight.waits_for_nobody();
        let task = self.runtime.spawn(run(self.router.clone(), request, in_flight.clone(), give));
        let task = AbortOnDropHandle::new(task);
        Either::Right(Box::pin(async move {
            let Ok(Given { head, ready, rest }) = given.await else {
                // Else the runtime has ended.
                let has_panicked = task.await.is_err_and(|error| error.is_panic());
                return if has_panicked { panicked(&in_flight) } else { failed() };
            };
            let rest = rest.map(|(pieces, size)| Rest { pieces, size, task });
            Response::from_parts(head, Body::new(Relayed { ready, rest }))
        }))
    }
}

/// An answer on its way to the connection's thread.
struct Given {
    head: Parts,
    /// The pieces of its body that were there at once.
    ready: VecDeque<Piece>,
    /// The way of the others, if there are more, and their size.
    rest: Option<(mpsc::Receiver<Piece>, SizeHint)>,
}

type Piece = Result<Frame<Bytes>, axum::Error>;

/// The number of bytes in a piece of a body.
fn length(piece: &Piece) -> usize {
    piece.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len)
}

/// Answers a request, gives the answer over, and then its body as that comes.
async fn run(router: Router, request: Request, in_flight: InFlight, give: oneshot::Sender<Given>) {
    // The layers of a `Router` may run before its first poll.
    let mut answer = in_flight.timed(|| router.answer(request, in_flight.clone()));
    let response = poll_fn(|cx| {
        let polled = in_flight.timed(|| answer.poll_unpin(cx));
        if polled.is_pending() {
            in_flight.waits_for_others();
        }
        polled
    })
    .await;
    let (head, mut body) = response.into_parts();
    let mut ready = VecDeque::new();
    let mut bytes = 0;
    let ended = loop {
        if body.is_end_stream() {
            break true;
        }
        if bytes >= AT_ONCE {
            break false;
        }
        match poll_fn(|cx| Poll::Ready(in_flight.timed(|| Pin::new(&mut body).poll_frame(cx)))).await {
            Poll::Ready(None) => break true,
            Poll::Ready(Some(piece)) => {
                bytes += length(&piece);
                let has_failed = piece.is_err();
                ready.push_back(piece);
                if has_failed {
                    break true;
                }
            }
            Poll::Pending => break false,
        }
    };
    if ended {
        // Nobody to give it to: the client is gone.
        let _ = give.send(Given { head, ready, rest: None });
        return;
    }
    in_flight.waits_for_others();
    let (pieces, taken) = mpsc::channel(PIECES);
    if give.send(Given { head, ready, rest: Some((taken, body.size_hint())) }).is_err() {
        return;
    }
    while let Some(piece) = poll_fn(|cx| in_flight.timed(|| Pin::new(&mut body).poll_frame(cx))).await {
        let has_failed = piece.is_err();
        if pieces.send(piece).await.is_err() || has_failed {
            return;
        }
    }
}

/// The body of an answer that was given over.
struct Relayed {
    ready: VecDeque<Piece>,
    /// None once it has ended.
    rest: Option<Rest>,
}

/// The part of a body that is yet to come.
struct Rest {
    pieces: mpsc::Receiver<Piece>,
    size: SizeHint,
    /// The task that gives them; it ends when the body does, or is dropped.
    task: AbortOnDropHandle<()>,
}

impl Rest {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        match ready!(self.pieces.poll_recv(cx)) {
            Some(piece) => {
                let bytes = length(&piece) as u64;
                let (lower, upper) = (self.size.lower(), self.size.upper());
                self.size = SizeHint::new();
                if let Some(upper) = upper {
                    self.size.set_upper(upper.saturating_sub(bytes));
                }
                self.size.set_lower(lower.saturating_sub(bytes));
                Poll::Ready(Some(piece))
            }
            None => {
                Poll::Ready(ready!(self.task.poll_unpin(cx)).err().map(|panic| Err(axum::Error::new(panic))))
            }
        }
    }
}

impl http_body::Body for Relayed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if let Some(piece) = self.ready.pop_front() {
            return Poll::Ready(Some(piece));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let piece = ready!(rest.poll_piece(cx));
        if !matches!(piece, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(piece)
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.size.exact() == Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        let mut size = match &self.rest {
            Some(rest) => rest.size,
            None if self.ready.iter().all(Result::is_ok) => SizeHint::with_exact(0),
            // It breaks off: its whole size is not known.
            None => SizeHint::new(),
        };
        let ready = self.ready.iter().map(length).sum::<usize>() as u64;
        if let Some(upper) = size.upper() {
            size.set_upper(upper + ready);
        }
        size.set_lower(size.lower() + ready);
        size
    }
}

#[cfg(test)]
mod tests {
    //! An answer comes over as its handler has made it, whole or piece by piece, and so does its failure.

    use std::convert::Infallible;
    use std::io;

    use axum::routing::get;
    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;
    use tokio::task::yield_now;

    use super::*;
    use crate::server::Peer;

    /// The answer of a handler on another runtime: its size as far as that is known beforehand, and its body.
    fn answered(router: Router) -> (SizeHint, Result<Bytes, axum::Error>) {
        let users = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let offloaded = Offloaded::new(router, users.handle().clone());
        let here = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        here.block_on(async {
            let request = Request::new(Body::empty());
            let response = offloaded.answer(request, InFlight::of(Peer::Unix)).await;
            let size = response.body().size_hint();
            (size, response.into_body().collect().await.map(http_body_util::Collected::to_bytes))
        })
    }

    fn pieces(number: usize) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
        stream::iter(0..number).map(|_| Ok(Bytes::from_static(&[7; 10_000])))
    }

    #[test]
    fn an_answer_that_is_there_at_once_comes_over_whole_with_its_size() {
        let (size, body) = answered(Router::new().route("/", get(async || "hello")));
        assert_eq!((size.exact(), body.expect("it is whole")), (Some(5), "hello".into()));
        let (size, body) = answered(Router::new().route("/", get(async || Body::from_stream(pieces(3)))));
        assert_eq!((size.exact(), body.expect("it is whole").len()), (Some(30_000), 30_000));
    }

    #[test]
    fn the_rest_of_a_long_answer_comes_over_in_order() {
        let slow = async || {
            Body::from_stream(pieces(1000).then(async |piece| {
                yield_now().await;
                piece
            }))
        };
        for router in [
            Router::new().route("/", get(slow)),
            Router::new().route("/", get(async || Body::from_stream(pieces(1000)))),
        ] {
            let (size, body) = answered(router);
            assert_eq!(size.exact(), None);
            let body = body.expect("it is whole");
            assert_eq!(body.len(), 10_000_000);
        }
    }

    #[test]
    fn the_size_of_a_long_answer_is_known_if_its_handler_knows_it() {
        struct Sized(usize);
        impl http_body::Body for Sized {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                let n = self.0.min(30_000);
                self.0 -= n;
                cx.waker().wake_by_ref();
                Poll::Ready((n > 0).then(|| Ok(Frame::data(vec![1; n].into()))))
            }
            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(self.0 as u64)
            }
        }
        let (size, body) = answered(Router::new().route("/", get(async || Body::new(Sized(200_000)))));
        assert_eq!((size.exact(), body.expect("it is whole").len()), (Some(200_000), 200_000));
    }

    #[test]
    fn a_body_that_fails_breaks_off_wherever_it_does() {
        for whole in [0, 1, 100] {
            let fails = async move || {
                let rest = stream::once(async { Err::<Bytes, _>(io::Error::other("no more")) });
                Body::from_stream(pieces(whole).map(|piece| piece.map_err(io::Error::other)).chain(rest))
            };
            let (size, body) = answered(Router::new().route("/", get(fails)));
            assert!(size.exact().is_none() && body.is_err(), "after {whole}: {size:?} {body:?}");
        }
    }

    #[test]
    fn a_body_that_panics_breaks_off_or_is_a_failed_handler_where_nothing_of_it_was_given() {
        let panics = |whole| {
            let rest = || stream::once(async { panic!("in the body") });
            answered(
                Router::new().route("/", get(async move || Body::from_stream(pieces(whole).chain(rest())))),
            )
        };
        assert!(panics(100).1.is_err());
        assert_eq!(panics(1).1.expect("an answer"), "the handler failed\n");
    }
}
