//! `status`: says that the daemon is up, and repeats the request's URI.

use axum::Json;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The answer as JSON.
#[derive(Serialize)]
struct Status<'a> {
    status: &'static str,
    /// Path and query, as they were sent.
    uri: &'a str,
}

/// Answers any method.
pub(super) fn answer(uri: &Uri) -> Response {
    let uri = uri.path_and_query().map_or("/", |asked| asked.as_str());
    Json(Status { status: "ok", uri }).into_response()
}
