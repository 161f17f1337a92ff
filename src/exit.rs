//! The process's exit code.

use std::process::ExitCode;

/// The outcome of a daemon, and so of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Stopped with nothing cut.
    Clean = 0,
    /// The tree failed, or could not be started.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Stopped, but requests were cut; each is named in the log.
    Cut = 3,
    /// The config is wrong (`EX_CONFIG` of `sysexits.h`).
    Config = 78,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}
