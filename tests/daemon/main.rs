//! The promises of the daemon itself: the library within the test's own process, and the running binary as a plain
//! child. What only a real systemd can show is in `tests/systemd`.
//!
//! Most tests run a [`service::Service`]: the daemon on the test's own thread, with the test's own routes and
//! children, its events captured, and, where time matters, a clock that runs only while nobody has anything to do.
//! Anything that belongs to a whole process (signals, exit codes, the environment, stderr) is tested on a
//! [`steadfast_harness::Daemon`].

mod access;
mod admin;
mod bind;
mod client;
mod container;
mod cut;
mod example;
mod handlers;
mod https;
mod limits;
mod listening;
mod log;
mod main_process;
mod notify;
mod parking;
mod process;
mod readiness;
mod refusal;
mod screen;
mod service;
mod serving;
mod signals;
mod stop;
mod supervision;
mod terminal;
mod threads;
mod upgrade;
mod viewers;
mod without_systemd;
