//! A service with a route and a worker of its own: `cargo run --example own_service -- CONFIG`.

use std::process::ExitCode;
use std::sync::Arc;

use axum::{Router, routing::post};
use steadfast::{BoxError, Child, Config, Daemon, Exit, logging};
use tokio::sync::{Mutex, mpsc};

type Orders = Arc<Mutex<mpsc::Receiver<String>>>;

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).unwrap_or("config.toml".into());
    let config = match Config::load(path.as_ref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{}", error.for_stderr());
            return Exit::Config.into();
        }
    };
    logging::start(&config.log);

    let (queue, orders) = mpsc::channel(100);
    let orders = Arc::new(Mutex::new(orders));
    let order = post(async move |what: String| queue.send(what).await.map_or("closed\n", |()| "queued\n"));
    let daemon = Daemon::new(config).router(Router::new().route("/orders", order));
    daemon.child("worker", move |child| work(child, Arc::clone(&orders))).run_blocking().into()
}

/// Works until it is told to stop, which is after the last request; what is queued by then is done as well.
async fn work(child: Child, orders: Orders) -> Result<(), BoxError> {
    let mut orders = orders.lock().await;
    let mut next = async || tokio::select! { biased; o = orders.recv() => o, () = child.stopping() => None };
    while let Some(what) = next().await {
        tracing::info!("done: {what}");
    }
    Ok(())
}
