//! The protocol between systemd and a service: the descriptors it passes, and what it can be told.
//!
//! `daemon/systemd` is the child that speaks it; the server and the handover leave their descriptors with it.

pub(crate) mod activation;
pub(crate) mod manager;
