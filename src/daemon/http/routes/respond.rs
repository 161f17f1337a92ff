//! `respond`: a fixed answer.

use axum::http::{HeaderMap, StatusCode};

/// A fixed answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The status; 200 unless given.
    pub status: StatusCode,
    /// The headers, `Content-Type` among them.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}
