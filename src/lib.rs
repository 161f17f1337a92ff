//! steadfast

pub mod config;
pub mod daemon;
pub mod logging;

pub use config::Config;
