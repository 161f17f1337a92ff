//! `status`: says that the daemon is up, and what it was asked for.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tower::Service;

/// Answers any method with [`Body`] as JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status;

#[derive(Serialize)]
struct Body<'a> {
    status: &'static str,
    /// Path and query, as they were sent.
    uri: &'a str,
}

impl Service<Request> for Status {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let uri = request.uri().path_and_query().map_or("/", |asked| asked.as_str());
        ready(Ok(Json(Body { status: "ok", uri }).into_response()))
    }
}
