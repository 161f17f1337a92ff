//! Where events go.

use std::time::Duration;

use tracing::Level;

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The least severe level that is logged; `None` is "off". Info by default.
    pub level: Option<Level>,
    /// Where events go; [`Target::Auto`] by default.
    pub target: Target,
    /// How events look on stderr; [`Format::Text`] by default.
    pub format: Format,
    /// Which requests are logged; [`Access::Errors`] by default.
    pub access: Access,
    /// Requests slower than this are logged whatever `access` says; 1 s by default.
    pub slow: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Some(Level::INFO),
            target: Target::Auto,
            format: Format::Text,
            access: Access::Errors,
            slow: Duration::from_secs(1),
        }
    }
}

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To journald when systemd connected stderr to it, else to stderr.
    Auto,
    /// To journald.
    Journald,
    /// To stderr.
    Stderr,
}

/// How events look on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line of text.
    Text,
    /// A JSON object a line.
    Json,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every request.
    All,
    /// Those answered with 5xx, and those that were cut.
    Errors,
    /// None.
    Off,
}
