//! The answer of an HTTP/2 stream, in pieces that tell the stream when they are written, or dropped: hyper says nothing of
//! what becomes of an answer once it has it whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll};

use axum::http::{HeaderMap, Response, StatusCode, header};
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http_body::{Body as _, Frame, SizeHint};

use super::body::AnswerBody;
use super::service::Answer;
use super::{Connection, Waiter};

/// The most bytes of an answer that are given to h2 at once.
const PIECE: usize = 64 << 10;
/// The most bytes of an answer that is over for hyper before it is written. A longer one ends afterwards: until then its
/// stream alone can be reset, if the client makes no room for it.
const SHORT: u64 = 32 << 10;

/// An answer on its way to hyper.
pub(super) struct StreamAnswer {
    answer: Answer,
    stream: Arc<Connection>,
    is_head: bool,
}

impl StreamAnswer {
    pub(super) fn new(answer: Answer, stream: Arc<Connection>, is_head: bool) -> Self {
        Self { answer, stream, is_head }
    }
}

impl Future for StreamAnswer {
    type Output = Result<Response<Pieces>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = task::ready!(self.answer.poll_unpin(cx));
        let has_none = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_bodyless = self.is_head || has_none;
        if self.is_head
            && !has_none
            && let Some(length @ 1..) = response.body().size_hint().exact()
        {
            // hyper says it of bodies that it sends. An empty one may be all that is left of another.
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
        }
        Poll::Ready(Ok(response.map(|body| Pieces {
            stream: Arc::clone(&self.stream),
            body: (!is_bodyless).then_some(body),
            rest: Bytes::new(),
            given: 0,
            has_ended: false,
            trailers: None,
        })))
    }
}

/// The body of an answer on a stream, in pieces that tell the stream when they are written.
pub(super) struct Pieces {
    stream: Arc<Connection>,
    /// None of an answer without one.
    body: Option<AnswerBody>,
    /// The part of its last frame that is yet to be given.
    rest: Bytes,
    /// The number of bytes that were given.
    given: u64,
    /// All of it was given but for its trailers.
    has_ended: bool,
    trailers: Option<HeaderMap>,
}

impl Pieces {
    fn piece(&mut self) -> Frame<Piece> {
        let bytes = self.rest.split_to(self.rest.len().min(PIECE));
        self.given += bytes.len() as u64;
        self.stream.to_be_written(bytes.len());
        Frame::data(Piece { bytes, stream: Arc::clone(&self.stream) })
    }

    /// Ready when the body may end.
    fn poll_end(&self, cx: &Context<'_>) -> Poll<()> {
        if self.given > SHORT {
            self.stream.commands.poll(Waiter::Writer, cx);
            if self.stream.unwritten() > 0 {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

impl http_body::Body for Pieces {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let this = self.get_mut();
        loop {
            if !this.rest.is_empty() {
                return Poll::Ready(Some(Ok(this.piece())));
            }
            if this.has_ended {
                task::ready!(this.poll_end(cx));
                return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let frame = match &mut this.body {
                Some(body) if !body.is_end_stream() => task::ready!(Pin::new(body).poll_frame(cx)),
                _ => None,
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => this.rest = bytes,
                Some(Ok(Err(frame))) => {
                    this.trailers = frame.into_trailers().ok();
                    this.has_ended = true;
                }
                None => this.has_ended = true,
                Some(Err(error)) => {
                    this.stream.broken_off(true);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
            && self.given <= SHORT
            && !self.has_ended
            && self.body.as_ref().is_none_or(AnswerBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), AnswerBody::size_hint)
    }
}

/// A piece of an answer. h2 takes from it what it writes to the socket, and drops what it will not write.
pub(super) struct Piece {
    bytes: Bytes,
    stream: Arc<Connection>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.stream.written(bytes);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.bytes.has_remaining() {
            self.stream.gone();
        }
    }
}
