//! The promises that hold between steadfast and a real systemd.
//!
//! Each test boots a box in which systemd is PID 1, installs the binary with the
//! shipped unit, and then does what an operator does: writes the config, calls
//! `systemctl`, reads `journalctl`. Needs root and systemd; without them the
//! tests say so and pass, unless `STEADFAST_REQUIRE_SYSTEMD=1`.

mod admin;
mod announce;
mod counters;
mod documents;
mod drop_ins;
mod http2;
mod idle;
mod journal;
mod lingering;
mod listeners;
mod package;
mod prometheus;
mod refused_reload;
mod reload;
mod replacement;
mod restart;
mod retry;
mod service;
mod start;
mod stop;
mod stop_http2;
mod succession;
mod survive;
mod tls;
mod tunnels;
mod unit;
mod versions;
