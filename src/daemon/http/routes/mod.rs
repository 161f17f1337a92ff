//! The config's routes.

pub(crate) mod check;
pub(crate) mod edge;
pub(crate) mod files;
pub(super) mod host;
pub(crate) mod path;
pub(crate) mod proxy;
pub(crate) mod respond;
mod status;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use self::edge::Edge;
use self::files::Files;
use self::path::{Reading, Unreadable};
use self::proxy::{Proxy, UpstreamFigures};
use self::respond::Respond;
use crate::server::{Answering, Handler, InFlight, Offloaded, RouteId};

/// One `[[route]]`: a path and its answer, for every host or for some.
///
/// Of the routes that claim a request the one with the most specific host wins, and of those the one with the most
/// specific path. So a route of another host, or of none, answers where those of the request's own host have no such path.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// The hosts that it is for: `example.org`; `*.example.org` for every name below that, by any number of labels, but
    /// not itself; an address. None, the default, is every host. The exact one is the most specific, then the longest
    /// `*`, then none.
    ///
    /// A request's host is that of its target if that has one, else `Host` (HTTP/2: `:authority`). It is compared in
    /// any case, and without the port and a dot at its end.
    pub hosts: Vec<String>,
    /// `/exact/path`, or `/below/*` for everything below; the most specific route wins.
    ///
    /// Paths are compared decoded, with dot segments resolved and empty ones merged, however either is written: the
    /// route `/private/*` has `/%70rivate/x`, `//private/x`, `/a/../private/x` and `/private%2Fx`. A request whose path
    /// leads above the root, or has a `%` that encodes nothing or a NUL, is answered with 400. `files` and `proxy` get
    /// the path as it was compared, but for what has to stay encoded; what an encoded slash would open to them is
    /// answered with 400, too. The query has no part in this.
    pub path: String,
    /// Its answer.
    pub action: Action,
}

impl Route {
    /// A path and its answer, for every host.
    #[must_use]
    pub fn new(path: impl Into<String>, action: Action) -> Self {
        Self { hosts: Vec::new(), path: path.into(), action }
    }

    /// The name by which figures and log know it: its path, behind the first of its hosts. No two routes have the same.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        self.names().next().unwrap_or_else(|| (&*self.path).into())
    }

    /// Its path behind each of its hosts; alone if it is for all.
    pub(crate) fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let every = self.hosts.is_empty().then(|| Cow::from(&*self.path));
        every.into_iter().chain(self.hosts.iter().map(|host| format!("{host}{}", self.path).into()))
    }
}

/// A kind of answer, with its keys.
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

/// The path that a route claims; true if it is that of a folder with everything below.
pub(crate) fn claim(path: &str) -> Result<(bool, Reading<'_>), Unreadable> {
    let folder = path.strip_suffix('*').filter(|folder| folder.ends_with('/'));
    path::read(folder.unwrap_or(path)).map(|reading| (folder.is_some(), reading))
}

/// Answers by the most specific route.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    table: Arc<Table>,
    /// What comes before them, if there is anything.
    edge: Option<Arc<Edge>>,
}

impl Routes {
    /// The routes of a config. A request that none of them claims goes to the `fallback`, with its URI as it was sent: a
    /// caller's `Router` reads paths in its own way. Without one it is answered with 404. Of two routes with one host and
    /// path the first wins; the config's check refuses them, as it does a path or a host that cannot be read, which no
    /// request could ask for.
    ///
    /// The `fallback` runs on the runtime of `users`, if that is another than the connections'. Tunnels run as tasks on
    /// `tunnels`.
    pub(crate) fn new(
        routes: &[Route],
        fallback: Option<Router>,
        users: Option<Handle>,
        tunnels: &TaskTracker,
    ) -> Self {
        let mut table = Table::default();
        for (index, route) in routes.iter().enumerate() {
            let Ok((is_folder, Reading { path, compared, .. })) = claim(&route.path) else {
                continue;
            };
            let id = RouteId::of_config(index);
            let claimant = Arc::new((id, Endpoint::new(&route.action, &path, tunnels)));
            let claim = |paths: &mut Paths| {
                let endpoints = if is_folder { &mut paths.below } else { &mut paths.exact };
                endpoints.entry(compared.to_vec()).or_insert_with(|| Arc::clone(&claimant));
            };
            if route.hosts.is_empty() {
                claim(&mut table.every_host);
            }
            for host in route.hosts.iter().filter_map(|host| host::claim(host).ok()) {
                claim(table.hosts.entry(host).or_default());
            }
            table.routes.push(claimant);
        }
        for paths in table.hosts.values_mut().chain([&mut table.every_host]) {
            paths.redirect_to_folders();
        }
        // `[http] body_limit` is the limit of a body, not axum's own default.
        table.fallback = fallback.map(|fallback| -> Box<dyn Handler> {
            let fallback = fallback.layer(DefaultBodyLimit::disable());
            match users {
                Some(runtime) => Box::new(Offloaded::new(fallback, runtime)),
                None => Box::new(fallback),
            }
        });
        Self { table: Arc::new(table), edge: None }
    }

    /// Puts these rules before the routes.
    pub(crate) fn behind(self, edge: Edge) -> Self {
        Self { edge: Some(Arc::new(edge)), ..self }
    }

    /// What has happened between this server and each upstream; one that two routes lead to is there twice.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = UpstreamFigures> {
        self.table.routes.iter().filter_map(|routed| match &routed.1 {
            Endpoint::Proxy(proxy) => Some(proxy.figures()),
            _ => None,
        })
    }
}

#[derive(Debug, Default)]
struct Table {
    /// By the hosts that they are for, as they are claimed.
    hosts: BTreeMap<String, Paths>,
    /// Those for every host.
    every_host: Paths,
    /// Each of the config's, whatever it is for.
    routes: Vec<Arc<Routed>>,
    fallback: Option<Box<dyn Handler>>,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    /// By their paths, as they are compared.
    exact: BTreeMap<Vec<u8>, Arc<Routed>>,
    /// By their folders, which end in a slash.
    below: BTreeMap<Vec<u8>, Arc<Routed>>,
}

/// A route, and what answers there.
type Routed = (RouteId, Endpoint);

impl Paths {
    /// The most specific route of a path: that of the exact path, or of the longest folder above it.
    fn find(&self, path: &[u8]) -> Option<&Arc<Routed>> {
        let folders =
            || (1..=path.len()).rev().map(|end| &path[..end]).filter(|folder| folder.ends_with(b"/"));
        self.exact.get(path).or_else(|| folders().find_map(|folder| self.below.get(folder)))
    }

    /// Lets the path of a folder of files without its slash lead to the folder, where it has no route.
    fn redirect_to_folders(&mut self) {
        for (folder, routed) in &self.below {
            let folder = folder.strip_suffix(b"/").unwrap_or_default();
            if let (id, Endpoint::Files(_)) = &**routed
                && !folder.is_empty()
            {
                let to_folder = || Arc::new((*id, Endpoint::ToFolder));
                self.exact.entry(folder.to_vec()).or_insert_with(to_folder);
            }
        }
    }
}

/// The answering side of a route, ready to be called.
#[derive(Clone, Debug)]
enum Endpoint {
    Respond(Respond),
    Status,
    Files(Files),
    /// The folder of a route of files, asked for without its slash.
    ToFolder,
    Proxy(Proxy),
}

impl Endpoint {
    fn new(action: &Action, path: &str, tunnels: &TaskTracker) -> Self {
        match action {
            Action::Respond(config) => Self::Respond(Respond::new(config)),
            Action::Status => Self::Status,
            Action::Files(config) => Self::Files(Files::new(config, path)),
            Action::Proxy(config) => Self::Proxy(Proxy::new(config, tunnels)),
        }
    }

    /// True if the answer depends on the path.
    fn reads_the_path(&self) -> bool {
        match self {
            Self::Respond(_) | Self::Status => false,
            Self::Files(_) | Self::ToFolder | Self::Proxy(_) => true,
        }
    }
}

impl Table {
    /// The route with the most specific host, and of those the one with the most specific path.
    fn find(&self, host: Option<&str>, path: &[u8]) -> Option<&Arc<Routed>> {
        let of_host = |host| host::claims(host).filter_map(|claim| self.hosts.get(claim));
        let routed = host.and_then(|host| of_host(host).find_map(|paths| paths.find(path)));
        routed.or_else(|| self.every_host.find(path))
    }

    /// The route of a request; `None` where no route claims it. Where the answer depends on the path, the request is
    /// given the one that was compared.
    fn route(&self, request: &mut Request) -> Result<Option<&Arc<Routed>>, String> {
        let sent = request.uri().path();
        let reading = match path::read(sent) {
            Ok(reading) => reading,
            // RFC 9112, section 3.2: the server as a whole, or the host of a tunnel.
            Err(Unreadable::Relative) if matches!(sent, "" | "*") => return Ok(None),
            Err(unreadable) => return Err(format!("the path {unreadable}")),
        };
        let host = if self.hosts.is_empty() { None } else { host::of(request) };
        let routed = self.find(host.as_deref(), &reading.compared);
        if let Some(reader) = routed.filter(|routed| routed.1.reads_the_path()) {
            if let Some(undivided) = &reading.undivided
                && !self.find(host.as_deref(), undivided).is_some_and(|other| Arc::ptr_eq(reader, other))
            {
                return Err("an encoded slash or a backslash decides on the route of the path".into());
            }
            if reading.path != sent {
                let path = reading.path.into_owned();
                path::replace(request, &path)
                    .map_err(|error| format!("the path cannot be passed on: {error}"))?;
            }
        }
        Ok(routed)
    }
}

impl Handler for Routes {
    fn answer(&self, mut request: Request, in_flight: InFlight) -> Answering {
        let at_once = |response| Either::Left(ready(response));
        if let Some(edge) = &self.edge
            && let Some(response) = edge.answer(&mut request, in_flight.tls())
        {
            return at_once(response);
        }
        let endpoint = match (self.table.route(&mut request), &self.table.fallback) {
            (Ok(Some(routed)), _) => {
                let (id, endpoint) = &**routed;
                in_flight.routed(*id);
                endpoint
            }
            (Ok(None), Some(fallback)) => {
                in_flight.routed(RouteId::ROUTER);
                return fallback.answer(request, in_flight);
            }
            (Ok(None), None) => return at_once(unclaimed(&request)),
            (Err(reason), _) => return at_once(text(StatusCode::BAD_REQUEST, &reason)),
        };
        match endpoint {
            Endpoint::Respond(respond) => at_once(respond.answer(request.method())),
            Endpoint::Status => at_once(status::answer(request.uri())),
            Endpoint::ToFolder => at_once(files::to_folder(request.uri(), "")),
            Endpoint::Files(files) => Either::Right(Box::pin(files.answer(request, in_flight))),
            Endpoint::Proxy(proxy) => Either::Right(Box::pin(proxy.answer(request, in_flight))),
        }
    }
}

/// The answer where nothing is served. `OPTIONS *` asks for the server itself, which is there; it is the only request
/// that may (RFC 9112, section 3.2.4).
fn unclaimed(request: &Request) -> Response {
    match (request.uri().path(), request.method()) {
        ("*", &Method::OPTIONS) => StatusCode::NO_CONTENT.into_response(),
        ("*", _) => text(StatusCode::BAD_REQUEST, "only OPTIONS asks for *"),
        _ => text(StatusCode::NOT_FOUND, "nothing is served at this path"),
    }
}

/// A number of digits alone; the largest there is for those beyond it.
fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// An error's answer: its reason in one line of text.
fn text(status: StatusCode, reason: &str) -> Response {
    (status, format!("{reason}\n")).into_response()
}

#[cfg(test)]
mod tests;
