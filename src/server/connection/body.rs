//! The bodies of a request and of its answer, as the registry follows them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Limited;
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::{Answering, Connection};
use crate::server::{Command, Waiting};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const TOO_LATE: &str = "the client sent nothing for too long";

/// A request's body, at most `body_limit` bytes of it.
pub(super) struct RequestBody {
    inner: Limited<Incoming>,
    connection: Arc<Connection>,
}

impl RequestBody {
    /// Gives a request the body its handler reads, or says at once that the announced one is too large.
    pub(super) fn wrap(
        request: Request<Incoming>,
        connection: &Arc<Connection>,
        limit: u64,
    ) -> Result<Request<Body>, TooLarge> {
        let hint = http_body::Body::size_hint(request.body());
        if hint.lower() > limit {
            return Err(TooLarge(limit));
        }
        if hint.exact() == Some(0) {
            return Ok(request.map(|_| Body::empty()));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(request.map(|incoming| {
            Body::new(Self { inner: Limited::new(incoming, limit), connection: Arc::clone(connection) })
        }))
    }
}

/// The announced body is larger than this, in bytes.
pub(super) struct TooLarge(u64);

impl IntoResponse for TooLarge {
    fn into_response(self) -> Response<Body> {
        let text = format!("the body is larger than {} bytes\n", self.0);
        (StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.connection.order() == Command::TimeOut {
            return Poll::Ready(Some(Err(TOO_LATE.into())));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            this.connection.waiting_for(Waiting::RequestBody);
            // Whoever reads it may be another task than the connection's.
            this.connection.read_by(cx.waker());
            return if this.connection.order() == Command::TimeOut {
                Poll::Ready(Some(Err(TOO_LATE.into())))
            } else {
                Poll::Pending
            };
        };
        if frame.is_none() || this.inner.is_end_stream() {
            this.connection.body_read();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// The body of an answer. The request is in flight until it was produced whole.
    pub(super) struct AnswerBody {
        #[pin]
        inner: Body,
        answering: Option<Answering>,
        // What is left of an announced length, when the body itself does not know.
        announced: Option<u64>,
    }
}

impl AnswerBody {
    /// Gives an answer the body that hyper reads. `bodyless`: its body will not be sent (an answer to `HEAD`).
    pub(super) fn wrap(response: Response<Body>, answering: Answering, bodyless: bool) -> Response<Self> {
        answering.answered_with(response.status());
        let status = response.status();
        let bodyless = bodyless
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || http_body::Body::is_end_stream(response.body());
        let announced = match http_body::Body::size_hint(response.body()).exact() {
            Some(_) => None,
            None => {
                response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
            }
        };
        let answering = if bodyless {
            answering.produced();
            None
        } else {
            Some(answering)
        };
        response.map(|inner| Self { inner, answering, announced })
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut this = self.project();
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            if let Some(answering) = this.answering {
                answering.connection().waiting_for(Waiting::ResponseBody);
            }
            return Poll::Pending;
        };
        if let Some(answering) = this.answering.as_ref() {
            answering.connection().waiting_for(Waiting::Client);
        }
        let whole = match &frame {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (this.announced.as_mut(), frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                // hyper drops a body that says it has ended without polling it again.
                this.inner.is_end_stream() || *this.announced == Some(0)
            }
        };
        if whole && let Some(answering) = this.answering.take() {
            answering.produced();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
