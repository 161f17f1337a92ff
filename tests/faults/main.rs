//! Faults on demand, and what they cost: every child of the tree panics, fails, hangs and blocks its thread, while the
//! daemon is idle, under load, while it drains and during a reload.
//!
//! [`matrix`] is the whole table, on plain processes with a stand-in for the service manager. [`systemd`] has the
//! cells in which a real systemd takes part. [`handlers`] is about the faults of requests, [`intensity`] about children that fail without end.

mod handlers;
mod intensity;
mod matrix;
mod process;
#[expect(dead_code, reason = "what other promises need of an installed steadfast")]
#[path = "../systemd/service.rs"]
mod service;
mod systemd;
