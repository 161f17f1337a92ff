//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// The config's path where no other is given.
pub(crate) const CONFIG: &str = "/etc/steadfast/config.toml";

/// An HTTP server for systemd whose clients never notice a restart.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, or stopped with nothing cut; 1 it could not start, was refused, or nobody answers; 2 the command line is wrong; 3 stopped, but requests were cut; 78 the config is wrong."
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

impl Cli {
    /// Reads a command line, the program's name first. Arguments that are global are compared here once more, for clap does
    /// so (`conflicts_with`) only where both are on the same side of the command.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let cli = Self::try_parse_from(arguments)?;
        let refused = match (&cli.instance, &cli.config, cli.command) {
            (Some(_), Some(_), _) => "--instance NAME and --config PATH both name a config; give one",
            (Some(_), _, Some(Command::AnnounceStop)) => {
                "announce-stop is for the unit that runs it, whose $RUNTIME_DIRECTORY names the instance"
            }
            _ => return Ok(cli),
        };
        Err(Self::command().error(ErrorKind::ArgumentConflict, refused))
    }
}

/// Checks the name of an instance, which becomes a part of paths: it has the characters that systemd.unit(5) allows, but
/// no colon, which separates the folders in `$RUNTIME_DIRECTORY`.
fn instance(name: &str) -> Result<String, &'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.\\".contains(c);
    match name {
        "" => Err("an instance has a name"),
        name if name.chars().all(is_allowed) => Ok(name.to_owned()),
        _ => Err(
            "the name of an instance has letters, digits and \"-_.\\\" alone; `systemd-escape` writes others by these, but for the colon",
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

#[cfg(test)]
mod tests {
    //! What the command line may say of an instance.

    use super::*;

    fn read(arguments: &str) -> Result<Cli, clap::Error> {
        Cli::read(arguments.split(' '))
    }

    #[test]
    fn the_name_of_an_instance_is_one_that_systemd_and_a_path_can_have() {
        let names = [
            ("one", true),
            ("example.org", true),
            (r"a\x2db_2", true),
            ("", false),
            ("a:b", false),
            ("a/b", false),
            ("../config", false),
            ("zwölf", false),
        ];
        for (name, is_good) in names {
            assert_eq!(instance(name).is_ok(), is_good, "{name:?}");
        }
    }

    #[test]
    fn an_instance_beside_a_config_or_for_announce_stop_is_a_wrong_command_line() {
        for wrong in [
            "steadfast --config a --instance b check",
            "steadfast --config a check --instance b",
            "steadfast --instance b check --config a",
            "steadfast check --config a --instance b",
            "steadfast announce-stop --instance b",
            "steadfast --instance b announce-stop",
        ] {
            let error = read(wrong).expect_err(wrong);
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ArgumentConflict, 2), "{wrong}");
        }
        for right in ["steadfast check --instance b", "steadfast --config a check", "steadfast announce-stop"]
        {
            assert!(read(right).is_ok(), "{right}");
        }
    }
}
