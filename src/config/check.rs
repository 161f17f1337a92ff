//! From what is written to what is meant: the defaults of what is not given, and the rules that span several values.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use toml::Spanned;

use super::Config;
use super::diagnostic::{Mistake, Span};
use super::value::Proxy;
use super::written::{self, File, Key};
use crate::daemon::http::routes::{Action, Route, claim, files, proxy, respond};
use crate::daemon::{admin, http, shutdown, supervisor};
use crate::server::address::Address;
use crate::server::limits::{Limits, Trusted};
use crate::{handover, logging};

/// The config that a file means. It is worth something only while there is no mistake.
pub(super) fn config(file: File, mistakes: &mut Vec<Mistake>) -> Config {
    let http = file.http.or(written::Http::default());
    let admin = file.admin.or(written::Admin::default());
    let default = Config::default();
    let limits = default.http.limits;

    let http_listen = Listen::new("[http]", http.listen, default.http.listen);
    let admin_listen = Listen::new("[admin]", admin.listen, default.admin.listen);
    http_listen.somewhere(mistakes);
    apart(&[&http_listen, &admin_listen], mistakes);

    Config {
        http: http::Config {
            listen: http_listen.addresses(),
            limits: Limits {
                max_connections: http.max_connections.or(limits.max_connections),
                connections_per_client: http.connections_per_client.or(limits.connections_per_client),
                requests_per_connection: http
                    .requests_per_connection
                    .given()
                    .map_or(limits.requests_per_connection, |n| n.into_inner() as u64),
                header_timeout: http.header_timeout.or(limits.header_timeout),
                header_limit: http.header_limit.or(limits.header_limit),
                keepalive_timeout: http.keepalive_timeout.or(limits.keepalive_timeout),
                read_timeout: http.read_timeout.or(limits.read_timeout),
                write_timeout: http.write_timeout.or(limits.write_timeout),
                body_limit: http.body_limit.or(limits.body_limit),
            },
            trusted_proxies: trusted(http.trusted_proxies.or(Vec::new())),
            routes: routes(file.route.or(Vec::new()), mistakes),
        },
        admin: admin::Config { listen: admin_listen.addresses() },
        shutdown: shutdown(file.shutdown.or(written::Shutdown::default()), &default.shutdown),
        handover: handover(file.handover.or(written::Handover::default()), &default.handover),
        supervision: supervision(
            file.supervision.or(written::Supervision::default()),
            &default.supervision,
            mistakes,
        ),
        log: log(file.log.or(written::Log::default()), &default.log),
    }
}

fn trusted(written: Vec<Spanned<Proxy>>) -> Trusted {
    let mut trusted = Trusted::default();
    for proxy in written {
        match proxy.into_inner() {
            Proxy::Network(network) => trusted.networks.push(network),
            Proxy::Unix => trusted.unix = true,
        }
    }
    trusted
}

fn shutdown(written: written::Shutdown, default: &shutdown::Config) -> shutdown::Config {
    shutdown::Config {
        delay: written.delay.or(default.delay),
        linger: written.linger.or(default.linger),
        deadline: written.deadline.or(default.deadline),
    }
}

fn handover(written: written::Handover, default: &handover::Config) -> handover::Config {
    handover::Config {
        connections: written.connections.or(default.connections),
        tunnels: written.tunnels.or(default.tunnels),
        ready_timeout: written.ready_timeout.or(default.ready_timeout),
    }
}

fn supervision(
    written: written::Supervision,
    default: &supervisor::Config,
    mistakes: &mut Vec<Mistake>,
) -> supervisor::Config {
    let refused = written.backoff.refused() || written.backoff_max.refused();
    let place = written.backoff.at().or(written.backoff_max.at()).cloned();
    let meant = supervisor::Config {
        max_restarts: written.max_restarts.or(default.max_restarts),
        window: written.window.or(default.window),
        backoff: written.backoff.or(default.backoff),
        backoff_max: written.backoff_max.or(default.backoff_max),
    };
    if meant.backoff > meant.backoff_max
        && !refused
        && let Some(place) = place
    {
        let what =
            format!("`backoff`, {:?}, is longer than `backoff_max`, {:?}", meant.backoff, meant.backoff_max);
        mistakes.push(Mistake::new(place, what, "expected the first wait to be no longer than the longest"));
    }
    meant
}

fn log(written: written::Log, default: &logging::Config) -> logging::Config {
    logging::Config {
        level: written.level.or(default.level),
        target: written.target.or(default.target),
        format: written.format.or(default.format),
        access: written.access.or(default.access),
        slow: written.slow.or(default.slow),
    }
}

// ---- addresses -----------------------------------------------------------------------------------------------

/// The addresses of one section, each with its place in the file unless it is a default.
struct Listen {
    section: &'static str,
    list: Option<Span>,
    addresses: Vec<(Address, Option<Span>)>,
}

impl Listen {
    fn new(section: &'static str, written: Key<Vec<Spanned<Address>>>, default: Vec<Address>) -> Self {
        let (list, addresses) = match written {
            Key::Absent => (None, default.into_iter().map(|address| (address, None)).collect()),
            Key::Refused(_) => (None, Vec::new()),
            Key::Given { value, .. } => (
                Some(value.span()),
                value
                    .into_inner()
                    .into_iter()
                    .map(|address| {
                        let span = address.span();
                        (address.into_inner(), Some(span))
                    })
                    .collect(),
            ),
        };
        Self { section, list, addresses }
    }

    fn somewhere(&self, mistakes: &mut Vec<Mistake>) {
        if let Some(list) = self.list.clone().filter(|_| self.addresses.is_empty()) {
            mistakes.push(Mistake::new(list, "`listen` is empty", "expected at least one address"));
        }
    }

    fn unless_given(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(|(address, _)| address.to_string()).collect();
        format!("{} listens on {} unless its `listen` says otherwise", self.section, addresses.join(", "))
    }

    fn addresses(self) -> Vec<Address> {
        self.addresses.into_iter().map(|(address, _)| address).collect()
    }
}

/// Nothing can listen twice on one address, nor on every address of a port and on one of them.
fn apart(sections: &[&Listen], mistakes: &mut Vec<Mistake>) {
    let all = || {
        let entries =
            sections.iter().flat_map(|section| section.addresses.iter().map(move |entry| (*section, entry)));
        entries.filter(|(_, (address, _))| !matches!(address, Address::Tcp(address) if address.port() == 0))
    };
    let mut taken: HashMap<&Address, (&Listen, &Option<Span>)> = HashMap::new();
    for (section, (address, span)) in all() {
        match taken.get(address) {
            Some(first) => mistakes.extend(twice(address, (section, span), *first)),
            None => _ = taken.insert(address, (section, span)),
        }
    }
    for (section, (address, span)) in all() {
        let Address::Tcp(one) = address else { continue };
        let every = match one.ip() {
            ip if ip.is_unspecified() => continue,
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        if let Some(first) = taken.get(&Address::Tcp(SocketAddr::new(every, one.port()))) {
            mistakes.extend(twice(address, (section, span), *first));
        }
    }
}

/// What to say of an address that is listened on at two places, of which one is in the file.
fn twice(
    address: &Address,
    (section, here): (&Listen, &Option<Span>),
    (first, there): (&Listen, &Option<Span>),
) -> Option<Mistake> {
    let mistake = |span: &Span| {
        Mistake::new(span.clone(), format!("{address} is listened on twice"), "expected another address")
    };
    match (here, there) {
        (Some(here), Some(there)) => Some(mistake(here).also(there.clone(), "it is listened on here")),
        (Some(given), None) => Some(mistake(given).help(first.unless_given())),
        (None, Some(given)) => Some(mistake(given).help(section.unless_given())),
        (None, None) => None,
    }
}

// ---- routes --------------------------------------------------------------------------------------------------

fn routes(written: Vec<Spanned<written::Route>>, mistakes: &mut Vec<Mistake>) -> Vec<Route> {
    // By what they claim, however that is spelled.
    let mut paths: HashMap<(bool, Vec<u8>), Span> = HashMap::new();
    let mut routes = Vec::new();
    for route in written {
        let whole = route.span();
        let mut route = route.into_inner();
        let path = std::mem::take(&mut route.path);
        if path.at().is_none() {
            mistakes.push(Mistake::new(whole.clone(), "this route has no path", "expected a `path` in it"));
        }
        let action = action(route, whole, mistakes);
        let Some(path) = path.given() else { continue };
        let Ok((is_folder, reading)) = claim(path.get_ref()) else { continue };
        let claimed = (is_folder, reading.compared.into_owned());
        if let Some(first) = paths.get(&claimed) {
            let what = format!("two routes have the path {:?}", path.get_ref());
            mistakes.push(
                Mistake::new(path.span(), what, "expected another path")
                    .also(first.clone(), "the first is here"),
            );
            continue;
        }
        paths.insert(claimed, path.span());
        routes.extend(action.map(|action| Route { path: path.into_inner(), action }));
    }
    routes
}

fn action(route: written::Route, whole: Span, mistakes: &mut Vec<Mistake>) -> Option<Action> {
    let mut given: Vec<_> = [route.respond.at(), route.status.at(), route.files.at(), route.proxy.at()]
        .into_iter()
        .flatten()
        .collect();
    given.sort_by_key(|span| span.start);
    match given[..] {
        [] => {
            let expected = "expected one of `respond`, `status`, `files`, `proxy` in it";
            mistakes.push(Mistake::new(whole, "this route has no answer", expected));
        }
        [first, ref more @ ..] => mistakes.extend(more.iter().map(|second| {
            let second =
                Mistake::new((*second).clone(), "this route has two answers", "expected only one of them");
            second.also(first.clone(), "the first is here")
        })),
    }
    if let Some(written) = route.respond.given() {
        Some(Action::Respond(respond(written.into_inner(), mistakes)))
    } else if route.status.given().is_some() {
        Some(Action::Status)
    } else if let Some(written) = route.files.given() {
        files(written, mistakes).map(Action::Files)
    } else {
        route.proxy.given().and_then(|written| proxy(written, mistakes)).map(Action::Proxy)
    }
}

fn respond(written: written::Respond, mistakes: &mut Vec<Mistake>) -> respond::Config {
    let status_at = written.status.at().cloned();
    let status = written.status.or(StatusCode::OK);
    let body = written.body.given();
    if let (Some(body), Some(status_at)) = (&body, status_at)
        && !body.get_ref().is_empty()
        && matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
    {
        let what = format!("an answer of status {} has no body", status.as_u16());
        mistakes.push(Mistake::new(body.span(), what, "expected none").also(status_at, "the status"));
    }
    let body = body.map(Spanned::into_inner).unwrap_or_default();

    let mut headers = HeaderMap::new();
    for (name, value) in written.headers.or(Vec::new()) {
        if let (Some(content_type), &header::CONTENT_TYPE) = (written.content_type.at(), name.get_ref()) {
            let mistake =
                Mistake::new(name.span(), "the content type is given twice", "expected it only once");
            mistakes.push(mistake.also(content_type.clone(), "it is given here"));
        }
        headers.insert(name.into_inner(), value);
    }
    if let Some(content_type) = written.content_type.given() {
        headers.insert(header::CONTENT_TYPE, content_type.into_inner());
    } else if let Some(likely) = likely_type(&body) {
        headers.entry(header::CONTENT_TYPE).or_insert(likely);
    }
    respond::Config { status, headers, body }
}

/// The type of a body whose type is not given: what begins with a tag is HTML, all else is plain text.
fn likely_type(body: &str) -> Option<HeaderValue> {
    match body.trim_start().chars().next()? {
        '<' => Some(HeaderValue::from_static("text/html; charset=utf-8")),
        _ => Some(HeaderValue::from_static("text/plain; charset=utf-8")),
    }
}

fn files(written: Spanned<written::Files>, mistakes: &mut Vec<Mistake>) -> Option<files::Config> {
    let whole = written.span();
    let written = written.into_inner();
    if written.root.at().is_none() {
        mistakes.push(Mistake::new(whole, "`files` has no root", "expected a `root` in it"));
    }
    Some(files::Config {
        root: written.root.given()?.into_inner(),
        index: written.index.or(Some("index.html".to_owned())),
        precompressed: written.precompressed.or(false),
        cache_control: written.cache_control.given().map(Spanned::into_inner),
    })
}

fn proxy(written: Spanned<written::Proxy>, mistakes: &mut Vec<Mistake>) -> Option<proxy::Config> {
    let whole = written.span();
    let written = written.into_inner();
    if written.to.at().is_none() {
        mistakes.push(Mistake::new(whole, "`proxy` has no upstream", "expected a `to` in it"));
    }
    Some(proxy::Config {
        to: written.to.given()?.into_inner(),
        retry_for: written.retry_for.or(Duration::from_secs(10)),
        connect_timeout: written.connect_timeout.or(Duration::from_secs(5)),
        timeout: written.timeout.or(Duration::from_secs(60)),
    })
}
