//! `proxy`: another server's answer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::uri::Authority;

/// Where a route's requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The server that answers.
    pub to: Upstream,
    /// How long a request waits for an upstream that refuses connections; 10 s unless given.
    pub retry_for: Duration,
    /// How long one attempt to connect may take; 5 s unless given.
    pub connect_timeout: Duration,
    /// How long the upstream may take until the head of its answer, or be silent within its body; 60 s unless given.
    pub timeout: Duration,
}

/// A server to pass requests to. The request's path is passed on as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// `http://HOST:PORT`.
    Http(Authority),
    /// `unix:/path`.
    Unix(PathBuf),
}

/// As it is written in the config.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
