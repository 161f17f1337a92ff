//! A service with a child that must not run twice: `consumer CONFIG`. The child keeps a diary of its begins and ends.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use steadfast::{BoxError, Child, Config, Daemon, logging};

/// The time from the moment that the child is told to stop to its end: long enough for an overlap to show.
const LAST_WORK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).expect("the path of a config");
    match Config::load(path.as_ref()) {
        Ok(config) => {
            logging::start(&config.log);
            Daemon::new(config).singleton("consumer", consume).run_blocking().into()
        }
        Err(error) => error.report().into(),
    }
}

async fn consume(child: Child) -> Result<(), BoxError> {
    note("begin")?;
    child.stopping().await;
    tokio::time::sleep(LAST_WORK).await;
    note("end")?;
    Ok(())
}

fn note(what: &str) -> io::Result<()> {
    let folder = std::env::var_os("RUNTIME_DIRECTORY").expect("systemd sets it");
    let mut diary = OpenOptions::new().create(true).append(true).open(Path::new(&folder).join("diary"))?;
    // One write, so that the lines of two processes cannot mix.
    diary.write_all(format!("{what} {}\n", std::process::id()).as_bytes())
}
