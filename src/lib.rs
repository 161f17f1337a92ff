//! steadfast: an HTTP server for systemd whose clients never notice a restart.
//!
//! # The way of a daemon
//!
//! A [`Config`] is read and checked once, and is one process's for its life. [`Daemon::new`] takes it, together with
//! what a program of its own adds: an axum `Router`, further children, a future that stops it all. [`Daemon::run`]
//! binds every socket, installs the signal handlers, starts the tree below, and returns an [`Exit`] that is the
//! process's exit code. The binary uses this face and nothing else.
//!
//! ```text
//! steadfast
//! ├── signals     reads signals; the only one that does
//! ├── http        listeners, connections, routes
//! ├── admin       health, metrics, status; stops last
//! ├── systemd     readiness, status, watchdog; the only one that talks to the manager
//! └── (yours)     each a closure that is given a Child
//! ```
//!
//! # The way of a request
//!
//! `daemon::http::server` accepts, and gives the connection its place in `daemon::registry`; `connection` lets hyper
//! read a head from its `stream` and asks the `routes`, an axum `Router`, for the answer; `body` follows the two
//! bodies. When the last byte is written the registry counts the request and the access log hears of it. A
//! connection that stays idle is parked: taken apart until its next byte.
//!
//! # The way of a stop
//!
//! `daemon::signals`, the caller, or a child that fails too often asks `daemon::phase` for it. The root then walks
//! through `daemon::shutdown`: readiness fails, http stops accepting and finishes, your children finish, what is left
//! at the deadline is cut by name, one report says what became of everything, and admin stops last.

#[cfg(test)]
mod alone;
pub mod config;
pub mod daemon;
mod exit;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
pub mod logging;
mod printable;
pub mod server;
pub mod systemd;

pub use config::{Config, Error as ConfigError};
pub use daemon::Daemon;
pub use daemon::child::{BoxError, Child};
pub use exit::Exit;
