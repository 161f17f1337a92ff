//! The admin child.

use crate::daemon::http::listener::Address;

/// `[admin]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen; `127.0.0.1:9090` by default, none turns it off.
    pub listen: Vec<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: vec![Address::Tcp(([127, 0, 0, 1], 9090).into())] }
    }
}
