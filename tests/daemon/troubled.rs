//! A service in trouble, for the tests of what only a process can show: `troubled CONFIG`.
//!
//! The environment says which child it has: `CHILD` is its name, `TROUBLE` what it does.

use std::future::pending;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use steadfast::{BoxError, Child, Config, Daemon, Exit, logging};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).expect("the path of a config");
    let config = match Config::load(path.as_ref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{}", error.for_stderr());
            return Exit::Config.into();
        }
    };
    logging::start(&config.log);
    let mut daemon = Daemon::new(config).router(router());
    match (std::env::var("CHILD"), std::env::var("TROUBLE").as_deref()) {
        (Ok(name), Ok("waits at the gate")) => daemon = daemon.child_with_readiness(&name, wait_at_the_gate),
        (Ok(name), _) => daemon = daemon.child(&name, trouble),
        (Err(_), _) => {}
    }
    if std::env::var("TROUBLE").is_ok_and(|trouble| trouble == "bound and dropped") {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let _inside = runtime.enter();
        drop(daemon.bind().expect("it can be bound"));
        tracing::info!("bound and dropped");
        sleep(FOR_EVER);
        return ExitCode::FAILURE;
    }
    daemon.run_blocking().into()
}

fn router() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/echo", post(async |body: Body| body))
        .route("/never", get(pending::<&str>))
        .route("/blocks", get(async || sleep(FOR_EVER)))
        .route("/panic", get(panics))
        .route("/failure", get(async || axum::http::StatusCode::INTERNAL_SERVER_ERROR))
        .route("/traced/{id}", get(traced))
        .route("/identity", get(identity))
        .route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Json("slow")
            }),
        )
}

/// The request's id, and its trace.
async fn identity(headers: HeaderMap) -> String {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    format!("{} {}", field("x-request-id"), field("traceparent"))
}

async fn panics() -> &'static str {
    panic!("the handler's own words")
}

/// Logs within a span of its own, which is within another.
#[tracing::instrument(skip_all, fields(id = id.0, found = tracing::field::Empty))]
async fn traced(id: Path<u64>) -> &'static str {
    tracing::Span::current().record("found", true);
    let step = tracing::info_span!("step", number = 7);
    step.in_scope(|| tracing::info!("looked it up"));
    "traced"
}

/// Is ready when the test at the other end of a socket says so.
async fn wait_at_the_gate(child: Child) -> Result<(), BoxError> {
    let gate = std::env::var_os("GATE").expect("the path of a socket");
    let mut gate = UnixStream::connect(gate).await?;
    tokio::select! {
        read = gate.read_u8() => { read?; }
        () = child.stopping() => return Ok(()),
    }
    child.ready();
    child.stopping().await;
    Ok(())
}

async fn trouble(child: Child) -> Result<(), BoxError> {
    match std::env::var("TROUBLE").as_deref() {
        // Once everything is served, so that READY is not the question.
        Ok("blocks") => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            sleep(FOR_EVER);
        }
        Ok("fails") => return Err("no luck".into()),
        _ => child.stopping().await,
    }
    Ok(())
}
