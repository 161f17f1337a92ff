//! TLS that can be parked, and can travel.
//!
//! rustls does the handshake and nothing after it ([`handshake`]). From its end on a connection has a record layer of
//! our own ([`records`], without I/O; [`stream`] puts it over a socket): that one can give back its keys and buffers
//! while the connection is idle, and can be taken apart at any byte, into some hundred bytes ([`note`]) from which another
//! process goes on. Every request runs through the code that a restart depends on, so there is no second path that only
//! a restart would try.
//!
//! There is no cryptography in here. AEADs and HKDF are AWS-LC's, as rustls's are; [`keys`] says what the standards
//! do with them.
//!
//! ```text
//! Acceptor ── begin ──> Handshake ── poll ──> Records ──> TlsStream ── into_note ──> TlsNote
//!                                                ^                                      │
//!                                                └───────────── from_note ──────────────┘
//! ```
//!
//! [`session`] is what was agreed on and travels with the connection, [`tickets`] are what a client resumes with.
//! [`certificates`] has what a server shows, and [`client`] how it judges what clients show.

mod acceptor;
pub(crate) mod certificates;
pub(crate) mod client;
mod failure;
mod handshake;
mod keys;
mod note;
mod records;
mod resting;
#[cfg(any(test, fuzzing))]
mod script;
mod session;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tickets;

pub(crate) use acceptor::Acceptor;
pub(crate) use failure::{Failed, Reason};
pub(crate) use handshake::Handshake;
pub(crate) use note::TlsNote;
pub(crate) use records::Records;
#[cfg(fuzzing)]
pub(crate) use script::fuzz;
pub(crate) use session::Session;
pub(crate) use stream::TlsStream;
pub(crate) use tickets::{TicketKeys, Tickets};

/// Has AWS-LC gather its first random numbers now, in a thread of its own. It takes some hundred milliseconds over them, once in
/// each process, and the first client would wait for that.
#[expect(clippy::disallowed_methods, reason = "nobody waits for it here")]
pub(crate) fn gather_randomness() {
    let gather = || {
        // Who needs them asks again.
        let _ = aws_lc_rs::rand::fill(&mut [0; 1]);
    };
    // Without a thread that client waits.
    let _ = std::thread::Builder::new().name("randomness".to_owned()).spawn(gather);
}
