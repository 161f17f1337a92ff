//! Clients that are hostile or clumsy, upstreams that fail, and a machine that runs out: the daemon stays up, says
//! what is wrong with the right status or a close, and passes nothing on that no client has asked for.
//!
//! All of it against the running binary, with clients and upstreams that write and read raw bytes ([`wire`]). Load
//! goes to the loopback, or into a box of the test's own. The only file that the daemon writes is its access log.

mod accounting;
mod closing;
mod differential;
mod files;
mod floods;
mod forged;
mod half_closed;
mod handshakes;
mod http2;
mod journal;
mod large_files;
mod oversized;
mod recorder;
mod running_out;
mod semantics;
mod site;
mod slow;
mod slowhttptest;
mod smuggling;
mod table;
mod trickling;
mod tunnels;
mod uncooperative;
mod unwritten;
mod upgrades;
mod upstreams;
mod wire;
