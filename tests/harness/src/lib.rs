//! The harness of steadfast's tests and benchmarks.
//!
//! * [`Machine`] boots this machine's systemd as PID 1 of a box of its own, so
//!   that the shipped unit is tested by `systemctl` and `journalctl` themselves.
//! * [`Network`] joins several of them by cables that can be cut.
//! * [`Daemon`] runs the binary as a plain child with a stand-in for the
//!   service manager that records everything the daemon tells it.
//! * [`Client`] speaks strict HTTP/1.1 and never retries: what it loses was lost.
//! * [`certificates`] are of every kind, also wrong ones.
//! * [`Trust`] has clients trust one of them: each of the clients speaks TLS as well.
//! * [`frames`] are HTTP/2's, for clients that write what no library would.
//! * [`http2`] asks one thing over HTTP/2, with and without TLS.
//! * [`Load`] is many of them at once, with an account of what they lost.
//! * [`Upstream`] is a server that answers when the test says so.
//! * [`Tunnel`] is both ends of a tunnel, with numbered messages.
//! * [`build_examples`] makes programs of the examples, which use the library.
//!
//! Nothing here sleeps and hopes: every wait is for an event, has a bound wide
//! enough for a busy machine, and says what it waited for when the bound passes.

pub mod certificates;
mod client;
mod examples;
pub mod frames;
pub mod http2;
mod load;
mod machine;
mod network;
mod process;
mod tls;
mod tunnel;
mod upstream;
mod wait;

pub use client::{Client, Failure, Head, Response};
pub use examples::build_examples;
pub use load::{Account, Load};
pub use machine::{Machine, Output, files_below, print_figure, raise_descriptor_limit};
pub use network::{Cable, Network};
pub use process::{Daemon, Listening, Notification, Stderr, runs};
pub use rustix::process::Signal;
pub use tls::{Agreed, Trust};
pub use tunnel::{Conversation, Tunnel};
pub use upstream::{Exchange, Upstream};
pub use wait::{PATIENCE, wait_until, wait_with};
