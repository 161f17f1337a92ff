//! The config as it is meant: parsed, checked, and complete.
//!
//! `written` is what serde reads from the file; `check` makes it this. One process has one config for its life:
//! a changed file is the next process's.

mod check;
mod diagnostic;
mod written;

use crate::daemon::{admin, http, shutdown, supervisor};
use crate::logging;

/// A whole config. [`Config::default`] has every key's default and no route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[http]` and `[[route]]`.
    pub http: http::Config,
    /// `[admin]`.
    pub admin: admin::Config,
    /// `[shutdown]`.
    pub shutdown: shutdown::Config,
    /// `[supervision]`.
    pub supervision: supervisor::Config,
    /// `[log]`.
    pub log: logging::Config,
}
