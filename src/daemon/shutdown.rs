//! How the daemon stops.

use std::time::Duration;

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How long to serve on after readiness fails, for a load balancer to look away; nothing by default.
    pub delay: Duration,
    /// How long an idle connection that cannot be carried may still ask once more; 1 s by default.
    pub linger: Duration,
    /// How long requests in flight may take once `delay` has passed; 30 s by default, `None` is "never".
    pub deadline: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self { delay: Duration::ZERO, linger: Duration::from_secs(1), deadline: Some(Duration::from_secs(30)) }
    }
}
