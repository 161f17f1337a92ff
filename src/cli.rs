//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The config's path where no other is given.
pub(crate) const CONFIG: &str = "/etc/steadfast/config.toml";

/// An HTTP server for systemd whose clients never notice a restart.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 stopped with nothing cut, 1 failed, 2 usage, 3 stopped but requests were cut, 78 the config is wrong."
)]
pub(crate) struct Cli {
    /// The command; `run` if not given
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// The config; without it /etc/steadfast/config.toml if it is there, else the embedded default
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,

    /// One of several services, steadfast@NAME.service, whose config is /etc/steadfast/NAME.toml
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "config", value_parser = instance)]
    pub(crate) instance: Option<String>,
}

/// Checks the name of an instance, which becomes a part of paths: it has the characters that systemd.unit(5) allows.
fn instance(name: &str) -> Result<String, &'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    match name {
        "" => Err("an instance has a name"),
        name if name.chars().all(is_allowed) => Ok(name.to_owned()),
        _ => Err(
            "the name of an instance has letters, digits and \":-_.\\\" alone; `systemd-escape` makes such names",
        ),
    }
}

#[derive(Clone, Copy, Debug, Default, Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM or SIGINT
    #[default]
    Run,
    /// Validate the config and print the tree it would run; nothing is bound
    Check,
    /// Have the running daemon hand over to a new process; returns when that serves
    Reload,
    /// For the unit's ExecStop=: tells the daemon if it is being stopped for good rather than restarted
    #[command(hide = true)]
    AnnounceStop,
    /// Show what the running daemon is doing
    Status {
        /// Follow it on a screen; not on a terminal: print it each second
        #[arg(long)]
        watch: bool,
        /// As JSON, for scripts (docs/status.md)
        #[arg(long)]
        json: bool,
    },
}
