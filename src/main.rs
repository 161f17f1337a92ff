//! The steadfast binary: parse, load, log, run, exit code.

mod cli;
mod control;
mod unit;

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
    let installed = || Some(PathBuf::from(cli::CONFIG)).filter(|path| path.exists());
    if let Some(path) = asked.or_else(installed) {
        return Ok((read(&path)?, path.display().to_string()));
    }
    let origin = format!("the embedded default ({} is not there)", cli::CONFIG);
    Ok((Config::embedded(&origin), origin))
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
