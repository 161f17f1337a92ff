//! A service with a child of its own, for the faults that a rehearsal injects: `rehearsal [run --config] CONFIG`.

use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use steadfast::{BoxError, Child, Config, Daemon, Exit, logging};

/// The time that a handler blocks its thread: long enough to be noticed.
const BLOCK: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let path = std::env::args_os().next_back().expect("the path of a config");
    let config = match Config::load(Path::new(&path)) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{}", error.for_stderr());
            return Exit::Config.into();
        }
    };
    logging::start(&config.log);
    let router = Router::new()
        .route("/panic", get(panics))
        .route("/block", get(async || sleep(BLOCK)))
        .route("/wait", get(async || tokio::time::sleep(BLOCK).await));
    Daemon::new(config).router(router).child("worker", work).run_blocking().into()
}

async fn panics() -> &'static str {
    panic!("the handler's own words")
}

async fn work(child: Child) -> Result<(), BoxError> {
    child.doing("waiting for work");
    child.stopping().await;
    Ok(())
}
