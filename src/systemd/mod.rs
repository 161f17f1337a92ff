//! The protocol between systemd and a service: the descriptors that systemd passes, and the notifications that it
//! takes.
//!
//! `daemon/systemd` is the child that speaks it; the server and the handover leave their descriptors with it.

pub(crate) mod activation;
pub(crate) mod manager;
pub(crate) mod runtime;
