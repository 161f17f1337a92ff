//! `respond`: a fixed answer.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use tower::Service;

/// A fixed answer, to any method.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The status; 200 unless given.
    pub status: StatusCode,
    /// The headers, `Content-Type` among them; none unless given.
    pub headers: HeaderMap,
    /// The body; empty unless given.
    pub body: String,
}

/// How many headers the map of an answer holds before it grows.
const ROOM: usize = 12;

/// Answers every request alike, without a copy of the body.
#[derive(Clone, Debug)]
pub(super) struct Respond(Arc<Answer>);

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Respond {
    pub(super) fn new(config: &Config) -> Self {
        let mut headers = config.headers.clone();
        // Once for all answers, and so that those to HEAD have it too (RFC 9110, section 8.6).
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(config.body.len()));
        Self(Arc::new(Answer { status: config.status, headers, body: config.body.clone().into() }))
    }
}

impl Service<Request> for Respond {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Answer { status, headers, body } = &*self.0;
        let mut response = if request.method() == Method::HEAD {
            Response::new(Body::empty())
        } else {
            Response::new(Body::from(body.clone()))
        };
        *response.status_mut() = *status;
        // Not a clone of the map: hyper reads the next request's headers into it, and a clone has no room for them.
        response.headers_mut().reserve(ROOM);
        response.headers_mut().extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        ready(Ok(response))
    }
}
