//! `respond`: a fixed answer.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;

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
        // Set once for all answers, those to HEAD included. A 204 has none, and that of a 304 would be the length
        // of a body that is not known here (RFC 9110, section 8.6).
        if !matches!(config.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(config.body.len()));
        }
        Self(Arc::new(Answer { status: config.status, headers, body: config.body.clone().into() }))
    }

    pub(super) fn answer(&self, method: &Method) -> Response {
        let Answer { status, headers, body } = &*self.0;
        let mut response = if method == Method::HEAD {
            Response::new(Body::empty())
        } else {
            Response::new(Body::from(body.clone()))
        };
        *response.status_mut() = *status;
        response.headers_mut().clone_from(headers);
        response
    }
}
