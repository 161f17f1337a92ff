//! The http child.

pub mod listener;
pub mod routes;

use std::time::Duration;

use listener::Address;
use routes::Route;

/// `[http]` and `[[route]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen; `127.0.0.1:8080` by default.
    pub listen: Vec<Address>,
    /// How many connections may be open at once; more wait in the backlog. 10,000 by default.
    pub max_connections: usize,
    /// How long a client may take to send a request's head; 10 s by default.
    pub header_timeout: Duration,
    /// How long a connection may be idle between requests; 75 s by default.
    pub keepalive_timeout: Duration,
    /// The largest request body, in bytes; 10 MiB by default.
    pub body_limit: u64,
    /// What answers; none by default.
    pub routes: Vec<Route>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Address::Tcp(([127, 0, 0, 1], 8080).into())],
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(75),
            body_limit: 10 << 20,
            routes: Vec::new(),
        }
    }
}
