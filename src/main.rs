//! The steadfast binary: parse, load, log, run, exit code.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use steadfast::{Config, Daemon, Exit, logging};

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (config, origin) = match load(cli.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{}", error.for_stderr());
            return Exit::Config.into();
        }
    };
    match cli.command.unwrap_or_default() {
        Command::Run => run(config, &origin).into(),
        Command::Check => {
            println!("{origin}: valid\n{}", config.tree());
            Exit::Clean.into()
        }
    }
}

/// Reads the config that was asked for, and says where it came from.
fn load(asked: Option<PathBuf>) -> Result<(Config, String), steadfast::ConfigError> {
    let installed = || Some(PathBuf::from(cli::CONFIG)).filter(|path| path.exists());
    match asked.or_else(installed) {
        Some(path) => Ok((Config::load(&path)?, path.display().to_string())),
        None => Ok((
            Config::embedded(),
            format!("the embedded default ({} is not there)", cli::CONFIG),
        )),
    }
}

fn run(config: Config, origin: &str) -> Exit {
    logging::start(&config.log);
    tracing::info!("steadfast {} with {origin}", env!("CARGO_PKG_VERSION"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start the runtime: {error}");
            return Exit::Failed;
        }
    };
    let exit = runtime.block_on(Daemon::new(config).run());
    // A handler that blocks its thread must not hold the exit: all that was promised is done.
    runtime.shutdown_background();
    exit
}
