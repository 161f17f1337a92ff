//! steadfast: an HTTP server for systemd whose clients never notice a restart.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use axum::{Router, routing::get};
//! use steadfast::{BoxError, Child, Config, Daemon, logging};
//!
//! fn main() -> ExitCode {
//!     let config = Config::default(); // or Config::load(path)
//!     logging::start(&config.log);
//!     let router = Router::new().route("/hello", get(async || "hello\n"));
//!     Daemon::new(config).router(router).child("worker", work).run_blocking().into()
//! }
//!
//! async fn work(child: Child) -> Result<(), BoxError> {
//!     while !child.is_stopping() {
//!         tokio::select! {
//!             () = tokio::time::sleep(std::time::Duration::from_secs(60)) => tracing::info!("tick"),
//!             () = child.stopping() => {}
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! This is a whole service: it answers `/hello`, and whatever its [`Config`] has routes for, while its worker works. A
//! `systemctl restart` of it refuses nobody, drops no request, and leaves idle connections open. `systemctl stop`
//! finishes what is in flight.
//!
//! # The way of a daemon
//!
//! A [`Config`] is read from a file, or made in code, and is one process's for its life. [`Daemon::new`] takes it,
//! together with what a program of its own adds: an axum `Router`, further children, a future that stops it all.
//! [`Daemon::run_blocking`] makes the process that was started the *main process*. That keeps the sockets and starts a
//! *worker*, which is the same program again and serves; for a reload it starts another one beside it. So `main` runs
//! in each of them, up to that call.
//!
//! A worker binds every socket, installs the signal handlers, starts the tree below, and returns an [`Exit`] that is
//! the process's exit code. [`Daemon::run`] is that alone, without a main process, for a runtime and a process of your
//! own; [`Daemon::bind`] and [`Bound::run`] are its two halves.
//!
//! ```text
//! steadfast
//! ├── signals     reads signals and the main process's commands; the only one that does
//! ├── http        listeners, connections, routes
//! ├── admin       health, metrics, status, the live page; stops last
//! ├── systemd     readiness, status, watchdog; the only one that talks to the manager
//! └── (yours)     each a function that is given a Child
//! ```
//!
//! # The way of a request
//!
//! `http` accepts, reads a request's head, and asks the config's routes, and then your `Router`, for the answer. A
//! handler finds an [`InFlight`] among the request's extensions: it has the client, and takes what the answer waits
//! for, which the log of a stop then tells. When the last byte is written the request is counted and logged. An idle
//! connection is parked: taken apart until its next byte. Connections have threads of their own, and so do your handlers:
//! one that blocks its thread holds up no connection.
//!
//! # The way of a stop
//!
//! A signal, a handover, the future given to [`Daemon::stop_when`], or a child that fails too often asks for it. Then
//! readiness fails, `http` stops accepting and finishes, your children finish, what is left at the deadline is cut by
//! name, one report says what became of everything, and `admin` stops last.

#[cfg(test)]
mod alone;
#[cfg(feature = "benches")]
#[doc(hidden)]
pub mod benches;
pub mod config;
mod daemon;
mod event;
mod exit;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handover;
pub mod logging;
mod main_process;
mod printable;
mod rules;
mod server;
pub mod status;
mod systemd;
mod tls;

pub use config::Error as ConfigError;
pub use daemon::child::{BoxError, Child};
pub use daemon::{Bound, Config, Daemon, StartError};
pub use exit::Exit;
pub use server::address::BindError;
pub use server::{InFlight, Peer, Waiting};

/// The README's own example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
