//! The daemon: the tree.

pub mod admin;
pub mod http;
pub mod shutdown;
pub mod supervisor;
