//! The steadfast binary: parse, load, log, run, exit code.

mod cli;
mod control;
mod unit;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steadfast::{Config, ConfigError, Daemon, Exit, logging};

use cli::{Cli, Command};
use unit::Unit;

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let unit = Unit::new(cli.instance);
    let config = cli.config.or_else(|| unit.config());
    let exit = match cli.command.unwrap_or_default() {
        Command::Run => with_config(config, Config::load, |config, _| run(config)),
        Command::Check => {
            with_config(config, Config::check_file, |config, origin| check(&config, origin, &unit))
        }
        Command::Reload => control::reload(&unit),
        Command::AnnounceStop => control::announce_stop(&unit),
        Command::Status { watch, json } => return control::status(&unit, watch, json),
    };
    exit.into()
}

fn with_config(asked: Option<PathBuf>, read: Read, command: impl FnOnce(Config, &str) -> Exit) -> Exit {
    match load(asked, read) {
        Ok((config, origin)) => command(config, &origin),
        Err(error) => error.report(),
    }
}

/// A function that reads a config's file.
type Read = fn(&Path) -> Result<Config, ConfigError>;

/// Reads the config that was asked for, and says where it came from.
fn load(asked: Option<PathBuf>, read: Read) -> Result<(Config, String), ConfigError> {
    let installed = || Some(PathBuf::from(cli::CONFIG)).filter(|path| !is_absent(path));
    if let Some(path) = asked.or_else(installed) {
        return Ok((read(&path)?, path.display().to_string()));
    }
    let origin = format!("the embedded default ({} is not there)", cli::CONFIG);
    Ok((Config::embedded(&origin), origin))
}

/// True if there is no such file. One that cannot be looked at may be there, and so is a symlink that leads nowhere.
fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn check(config: &Config, origin: &str, unit: &Unit) -> Exit {
    println!("{origin}: valid\n{}", config.tree());
    let user = config.https.as_ref().and_then(|_| unit.user());
    let may_read = |path: &Path| user.as_ref().is_none_or(|user| user.may_read(path));
    if let Some(warnings) = config.warnings(may_read) {
        eprintln!("{}", warnings.for_stderr());
    }
    unit.warn_of_stop_timeout(&config.shutdown);
    Exit::Clean
}

fn run(config: Config) -> Exit {
    logging::start(&config.log);
    Daemon::new(config).run_blocking()
}

#[cfg(test)]
mod tests {
    //! The embedded default is for whoever has no config, not for one that cannot be read.

    use super::*;

    #[test]
    fn a_config_that_cannot_be_looked_at_is_not_absent() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name| folder.path().join(name);
        std::fs::write(path("file"), "").expect("it is written");
        std::os::unix::fs::symlink("nowhere", path("symlink")).expect("it is made");
        let paths = ["file", "symlink", "file/below", "none", "none/below"].map(path);
        assert_eq!(paths.map(|path| is_absent(&path)), [false, false, false, true, true]);
    }
}
