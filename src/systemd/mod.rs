//! The protocol between systemd and a service: the descriptors that systemd passes, and the notifications that it
//! takes. The main process and its workers speak it as well.
//!
//! `daemon/systemd` is the child that speaks it; the server and the handover leave their descriptors with it.

pub(crate) mod activation;
pub(crate) mod channel;
pub(crate) mod manager;
pub(crate) mod memfd;
pub(crate) mod process;
pub(crate) mod runtime;
