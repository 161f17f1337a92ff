//! The handlers of the services of these tests.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A handler that waits for the test.
#[derive(Clone)]
pub(crate) struct Gate(Arc<(Semaphore, Semaphore)>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Semaphore::new(0), Semaphore::new(0))))
    }

    /// For the handler: says that it is there, and waits to be let through.
    pub(crate) async fn pass(&self) {
        self.0.0.add_permits(1);
        take(&self.0.1).await;
    }

    /// For the test: waits until someone waits.
    pub(crate) async fn arrived(&self) {
        // Only a hang turns into a failure; a stopped clock jumps no further than this.
        timeout(Duration::from_secs(60), take(&self.0.0)).await.expect("a request arrives");
    }

    /// For the test: lets one through.
    pub(crate) fn open(&self) {
        self.0.1.add_permits(1);
    }

    /// A route to it.
    pub(crate) fn route(&self) -> axum::routing::MethodRouter {
        let gate = self.clone();
        get(async move || {
            gate.pass().await;
            "passed"
        })
    }
}

async fn take(semaphore: &Semaphore) {
    let permit = semaphore.acquire().await;
    permit.expect("the semaphore is never closed").forget();
}

/// A router for requests of every kind.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/path/{name}", get(async |path: axum::extract::Path<String>| path.0))
        // As it comes.
        .route("/echo", post(async |body: Body| body))
        // Once it is there.
        .route("/length", post(async |body: Bytes| body.len().to_string()))
        .route("/ignore", post(async || "ignored"))
        .route("/chunks", get(async || chunks(3)))
        .route("/endless", get(async || chunks(usize::MAX)))
        .route("/never", get(async || pending::<&str>().await))
        .route("/panic", get(panics))
        // Answers that break off.
        .route("/failing", get(async || then(|| Some(Err("the source is gone")))))
        .route("/short", get(async || ([("content-length", "5000")], then(|| None))))
        .route("/panicking", get(async || then(|| panic!("the body's own words"))))
}

async fn panics() -> &'static str {
    panic!("the handler's own words")
}

/// One piece of an answer, and then this.
fn then(next: fn() -> Option<Result<Bytes, &'static str>>) -> Body {
    let first = std::iter::once(Ok(Bytes::from_static(&[b'x'; 1000])));
    Body::from_stream(stream::iter(first.chain(std::iter::from_fn(next))))
}

/// Says something, and falls silent until the stop begins.
pub(crate) fn events(stopping: CancellationToken) -> axum::routing::MethodRouter {
    get(async move || {
        let events = stream::unfold(0, move |n| {
            let stopping = stopping.clone();
            async move {
                match n {
                    0 => Some((Ok::<_, std::convert::Infallible>("data: hello\n\n"), 1)),
                    1 => {
                        stopping.cancelled().await;
                        Some((Ok("data: goodbye\n\n"), 2))
                    }
                    _ => None,
                }
            }
        });
        Body::from_stream(events)
    })
}

fn chunks(count: usize) -> Body {
    let chunks = (0..count).map(|_| Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 1000])));
    Body::from_stream(stream::iter(chunks))
}
