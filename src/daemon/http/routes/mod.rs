//! The config's routes, made into one axum `Router`.

pub mod files;
pub mod proxy;
pub mod respond;

/// One `[[route]]`: a path, and what answers there.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `/exact/path`, or `/below/*` for everything below; the most specific route wins.
    pub path: String,
    /// What answers.
    pub action: Action,
}

/// What answers at a route.
#[derive(Clone, Debug, PartialEq)]
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
