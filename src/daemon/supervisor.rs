//! The layer that restarts a child.

use std::time::Duration;

/// `[supervision]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How often a child may be restarted within `window` before the whole tree stops; 5 by default.
    pub max_restarts: u32,
    /// The time in which restarts are counted; 60 s by default.
    pub window: Duration,
    /// How long the first restart waits; each further one twice as long. 100 ms by default.
    pub backoff: Duration,
    /// The longest wait before a restart; 5 s by default.
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}
