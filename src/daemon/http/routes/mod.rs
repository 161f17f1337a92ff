//! The config's routes, made into one axum `Router`.

pub(crate) mod check;
pub(crate) mod files;
pub(crate) mod proxy;
pub(crate) mod respond;
mod status;

use std::collections::HashSet;
use std::convert::Infallible;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio_util::task::TaskTracker;
use tower::Service;

/// One `[[route]]`: a path, and what answers there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// `/exact/path`, or `/below/*` for everything below; the most specific route wins. It is compared with the
    /// request's path as that was sent, percent-encoding and all.
    pub path: String,
    /// What answers.
    pub action: Action,
}

impl Route {
    /// A path, and what answers there.
    #[must_use]
    pub fn new(path: impl Into<String>, action: Action) -> Self {
        Self { path: path.into(), action }
    }
}

/// What answers at a route.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// A fixed answer.
    Respond(respond::Config),
    /// `{"status":"ok","uri":"/the/path?and=query"}`.
    Status,
    /// Files below a folder.
    Files(files::Config),
    /// Another server's answer.
    Proxy(proxy::Config),
}

/// One `Router` of all routes. What none of them claims is the `fallback`'s, and 404 without one. Of two routes with
/// one path the first wins; the config's check refuses them.
///
/// Upgraded connections are carried by tasks on `tunnels`.
///
/// # Panics
/// When a path does not begin with `/`, which the config's check refuses too.
pub(crate) fn router(routes: &[Route], fallback: Option<Router>, tunnels: &TaskTracker) -> Router {
    let mut all = Router::new().without_v07_checks();
    let mut claimed = HashSet::new();
    // What is written in the config goes before what follows from it: "/a/*" stands for "/a/" as well, unless
    // another route is written for that.
    let (below, exact): (Vec<&Route>, Vec<&Route>) = routes.iter().partition(|r| r.path.ends_with("/*"));
    for route in exact {
        if claimed.insert(route.path.clone()) {
            all = at(all, &[escape(&route.path)], route, tunnels);
        }
    }
    for route in &below {
        let folder = route.path.strip_suffix('*').unwrap_or_default();
        if !claimed.insert(route.path.clone()) {
            continue;
        }
        let mut patterns = vec![format!("{}{{*below}}", escape(folder))];
        if claimed.insert(folder.to_owned()) {
            patterns.push(escape(folder));
        }
        all = at(all, &patterns, route, tunnels);
    }
    for route in &below {
        let folder = route.path.strip_suffix("/*").unwrap_or_default();
        if matches!(route.action, Action::Files(_)) && !folder.is_empty() && claimed.insert(folder.to_owned())
        {
            all = all.route_service(&escape(folder), tower::service_fn(files::to_folder));
        }
    }
    match fallback {
        // Of the two limits of a body `[http] body_limit` counts, not axum's own default.
        Some(fallback) => all.fallback_service(fallback.layer(DefaultBodyLimit::disable())),
        None => all.fallback(async || text(StatusCode::NOT_FOUND, "nothing is served at this path")),
    }
}

/// Adds a route under each of its patterns.
fn at(router: Router, patterns: &[String], route: &Route, tunnels: &TaskTracker) -> Router {
    match &route.action {
        Action::Respond(config) => serve(router, patterns, &respond::Respond::new(config)),
        Action::Status => serve(router, patterns, &status::Status),
        Action::Files(config) => serve(router, patterns, &files::Files::new(config, &route.path)),
        Action::Proxy(config) => serve(router, patterns, &proxy::Proxy::new(config, tunnels)),
    }
}

fn serve<S>(router: Router, patterns: &[String], service: &S) -> Router
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let add = |router: Router, pattern: &String| router.route_service(pattern, service.clone());
    patterns.iter().fold(router, add)
}

/// A path as the router's pattern that matches this alone.
fn escape(path: &str) -> String {
    path.replace('{', "{{").replace('}', "}}")
}

/// An answer that says in one line why it is not what was asked for.
fn text(status: StatusCode, reason: &str) -> Response {
    (status, format!("{reason}\n")).into_response()
}

#[cfg(test)]
mod tests;
