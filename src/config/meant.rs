//! Makes the config as it is meant out of the file as it is written: a value that is not given has its default, and of
//! one that is given the place in the file is noted, so that the rules of each section can point there.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use toml::Spanned;

use super::diagnostic::{Mistake, Span};
use super::places::Places;
use super::value::Proxy;
use super::written::{self, File, Key};
use crate::daemon::http::https;
use crate::daemon::http::routes::check::HOST;
use crate::daemon::http::routes::{Action, Route, files, proxy, respond};
use crate::daemon::{Config, admin, http, shutdown, supervisor};
use crate::server::limits::{Limits, Trusted};
use crate::tls::certificates::CertificateFiles;
use crate::{handover, logging};

/// The config that a file means, and the places of its values. Valid only if there is no mistake.
pub(super) fn config(file: File, mistakes: &mut Vec<Mistake>) -> (Config, Places) {
    let mut places = Places::default();
    file.note("", &mut places);
    let default = Config::default();
    let mut config = Config { http: http(file.http, default.http, &mut places), ..Config::default() };
    config.https = file.https.given().map(|written| https(written.into_inner(), &mut places, mistakes));
    config.http.routes = routes(file.route.or(Vec::new()), &mut places, mistakes);
    config.admin = admin(file.admin, default.admin, &mut places);
    config.shutdown = shutdown(file.shutdown, &default.shutdown, &mut places);
    config.handover = handover(file.handover, &default.handover, &mut places);
    config.supervision = supervision(file.supervision, &default.supervision, &mut places);
    config.log = log(file.log, &default.log, &mut places);
    if let Err(violations) = config.check() {
        mistakes.extend(violations.0.into_iter().filter_map(|violation| places.mistake(violation)));
    }
    (config, places)
}

/// A section, whose keys' places are noted.
macro_rules! section {
    ($written:expr, $key:literal, $places:expr) => {{
        let section = $written.or(Default::default());
        section.note(concat!($key, "."), $places);
        section
    }};
}

fn http(written: Key<written::Http>, default: http::Config, places: &mut Places) -> http::Config {
    let written = section!(written, "http", places);
    let limits = default.limits;
    http::Config {
        listen: list(written.listen, "http.listen", default.listen, places),
        threads: written.threads.or(default.threads),
        limits: Limits {
            max_connections: written.max_connections.or(limits.max_connections),
            connections_per_client: written.connections_per_client.or(limits.connections_per_client),
            requests_per_connection: written
                .requests_per_connection
                .given()
                .map_or(limits.requests_per_connection, |n| n.into_inner() as u64),
            header_timeout: written.header_timeout.or(limits.header_timeout),
            header_limit: written.header_limit.or(limits.header_limit),
            keepalive_timeout: written.keepalive_timeout.or(limits.keepalive_timeout),
            read_timeout: written.read_timeout.or(limits.read_timeout),
            write_timeout: written.write_timeout.or(limits.write_timeout),
            min_rate: written.min_rate.or(limits.min_rate),
            min_rate_grace: written.min_rate_grace.or(limits.min_rate_grace),
            tunnel_idle_timeout: written.tunnel_idle_timeout.or(limits.tunnel_idle_timeout),
            body_limit: written.body_limit.or(limits.body_limit),
            at_limit: limits.at_limit,
        },
        h2c: written.h2c.or(default.h2c),
        trusted_proxies: trusted(written.trusted_proxies.or(Vec::new())),
        redirect_to_https: written.redirect_to_https.or(default.redirect_to_https),
        routes: default.routes,
    }
}

fn https(written: written::Https, places: &mut Places, mistakes: &mut Vec<Mistake>) -> https::Config {
    written.note("https.", places);
    // In code that is every host, as in the file it is where the key is left out.
    if let Key::Given { value, .. } = &written.client_hosts
        && value.get_ref().is_empty()
    {
        let mistake = Mistake::new(value.span(), "`client_hosts` is empty", format!("expected {HOST}"));
        mistakes.push(mistake.help("leave it out: the clients of every host are asked then".to_owned()));
    }
    let default = https::Config::new(certificates(written.certificates, places, mistakes));
    https::Config {
        listen: list(written.listen, "https.listen", default.listen, places),
        min_version: written.min_version.or(default.min_version),
        http2: written.http2.or(default.http2),
        client_ca: written.client_ca.given().map(Spanned::into_inner),
        client_auth: written.client_auth.given().map(Spanned::into_inner),
        client_crl: written.client_crl.given().map(Spanned::into_inner),
        client_hosts: list(written.client_hosts, "https.client_hosts", default.client_hosts, places),
        client_subject_header: written.client_subject_header.given().map(Spanned::into_inner),
        hsts: written.hsts.given().map(Spanned::into_inner),
        certificates: default.certificates,
    }
}

fn certificates(
    written: Key<Vec<Spanned<written::Certificate>>>,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> Vec<CertificateFiles> {
    let mut meant = Vec::new();
    for (index, certificate) in written.or(Vec::new()).into_iter().enumerate() {
        let key = format!("https.certificates[{index}]");
        let whole = certificate.span();
        let certificate = certificate.into_inner();
        places.give(&key, whole.clone());
        certificate.note(&format!("{key}."), places);
        for (name, at) in [("chain", certificate.chain.at()), ("key", certificate.key.at())] {
            if at.is_none() {
                let what = format!("this certificate has no `{name}`");
                mistakes.push(Mistake::new(whole.clone(), what, format!("expected a `{name}` in it")));
                places.refuse(format!("{key}.{name}"));
            }
        }
        meant.push(CertificateFiles::new(
            certificate.chain.or(PathBuf::new()),
            certificate.key.or(PathBuf::new()),
        ));
    }
    meant
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

fn admin(written: Key<written::Admin>, default: admin::Config, places: &mut Places) -> admin::Config {
    let written = section!(written, "admin", places);
    admin::Config { listen: list(written.listen, "admin.listen", default.listen, places) }
}

/// The elements of a list, each of whose places is noted.
fn list<T>(written: Key<Vec<Spanned<T>>>, key: &str, default: Vec<T>, places: &mut Places) -> Vec<T> {
    let Some(elements) = written.given() else { return default };
    let mut meant = Vec::new();
    for (index, element) in elements.into_inner().into_iter().enumerate() {
        places.give(format!("{key}[{index}]"), element.span());
        meant.push(element.into_inner());
    }
    meant
}

fn shutdown(
    written: Key<written::Shutdown>,
    default: &shutdown::Config,
    places: &mut Places,
) -> shutdown::Config {
    let written = section!(written, "shutdown", places);
    shutdown::Config {
        delay: written.delay.or(default.delay),
        linger: written.linger.or(default.linger),
        deadline: written.deadline.or(default.deadline),
    }
}

fn handover(
    written: Key<written::Handover>,
    default: &handover::Config,
    places: &mut Places,
) -> handover::Config {
    let written = section!(written, "handover", places);
    handover::Config {
        connections: written.connections.or(default.connections),
        tunnels: written.tunnels.or(default.tunnels),
        ready_timeout: written.ready_timeout.or(default.ready_timeout),
        deadline: written.deadline.or(default.deadline),
        predecessors: written.predecessors.or(default.predecessors),
        last_good: written.last_good.or(default.last_good),
    }
}

fn supervision(
    written: Key<written::Supervision>,
    default: &supervisor::Config,
    places: &mut Places,
) -> supervisor::Config {
    let written = section!(written, "supervision", places);
    supervisor::Config {
        max_restarts: written.max_restarts.or(default.max_restarts),
        window: written.window.or(default.window),
        backoff: written.backoff.or(default.backoff),
        backoff_max: written.backoff_max.or(default.backoff_max),
    }
}

fn log(written: Key<written::Log>, default: &logging::Config, places: &mut Places) -> logging::Config {
    let written = section!(written, "log", places);
    logging::Config {
        level: written.level.or(default.level),
        target: written.target.or(default.target),
        format: written.format.or(default.format),
        access: written.access.or(default.access),
        slow: written.slow.or(default.slow),
        access_format: written.access_format.or(default.access_format),
        access_file: written.access_file.or(default.access_file.clone()),
    }
}

// ---- routes --------------------------------------------------------------------------------------------------

fn routes(
    written: Vec<Spanned<written::Route>>,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, route) in written.into_iter().enumerate() {
        let whole = route.span();
        let mut route = route.into_inner();
        let key = format!("route[{index}]");
        route.note(&format!("{key}."), places);
        let hosts = match std::mem::take(&mut route.host) {
            Key::Absent => Vec::new(),
            Key::Given { value, .. } => value.into_inner(),
            // No host, which is not every host: that might have the path already.
            Key::Refused(at) => vec![Spanned::new(at, String::new())],
        };
        let path = std::mem::take(&mut route.path);
        if path.at().is_none() {
            mistakes.push(Mistake::new(whole.clone(), "this route has no path", "expected a `path` in it"));
            places.refuse(format!("{key}.path"));
        }
        let action = action(route, whole, &key, places, mistakes);
        let mut meant = Route::new(path.or("/".to_owned()), action);
        for (index, host) in hosts.into_iter().enumerate() {
            places.give(format!("{key}.host[{index}]"), host.span());
            meant.hosts.push(host.into_inner());
        }
        routes.push(meant);
    }
    routes
}

fn action(
    route: written::Route,
    whole: Span,
    key: &str,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> Action {
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
        Action::Respond(respond(written.into_inner(), &format!("{key}.respond"), places, mistakes))
    } else if let Some(written) = route.files.given() {
        Action::Files(files(written, &format!("{key}.files"), places, mistakes))
    } else if let Some(written) = route.proxy.given() {
        proxy(written, &format!("{key}.proxy"), places, mistakes).map_or(Action::Status, Action::Proxy)
    } else {
        Action::Status
    }
}

fn respond(
    written: written::Respond,
    key: &str,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> respond::Config {
    written.note(&format!("{key}."), places);
    let mut headers = HeaderMap::new();
    for (name, value) in written.headers.or(Vec::new()) {
        if let (Some(content_type), &header::CONTENT_TYPE) = (written.content_type.at(), name.get_ref()) {
            let mistake =
                Mistake::new(name.span(), "the content type is given twice", "expected it only once");
            mistakes.push(mistake.also(content_type.clone(), "it is given here"));
        }
        places.give(format!("{key}.headers.{}", name.get_ref()), name.span());
        headers.insert(name.into_inner(), value);
    }
    let body = written.body.or(String::new());
    if let Some(content_type) = written.content_type.given() {
        headers.insert(header::CONTENT_TYPE, content_type.into_inner());
    } else if let Some(likely) = likely_type(&body) {
        headers.entry(header::CONTENT_TYPE).or_insert(likely);
    }
    respond::Config { status: written.status.or(StatusCode::OK), headers, body }
}

/// The type of a body whose type is not given: what begins with a tag is HTML, all else is plain text.
fn likely_type(body: &str) -> Option<HeaderValue> {
    match body.trim_start().chars().next()? {
        '<' => Some(HeaderValue::from_static("text/html; charset=utf-8")),
        _ => Some(HeaderValue::from_static("text/plain; charset=utf-8")),
    }
}

fn files(
    written: Spanned<written::Files>,
    key: &str,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> files::Config {
    let whole = written.span();
    let written = written.into_inner();
    written.note(&format!("{key}."), places);
    if written.root.at().is_none() {
        mistakes.push(Mistake::new(whole, "`files` has no root", "expected a `root` in it"));
        places.refuse(format!("{key}.root"));
    }
    let default = files::Config::new(written.root.or(PathBuf::new()));
    files::Config {
        index: written.index.or(default.index),
        precompressed: written.precompressed.or(default.precompressed),
        cache_control: written.cache_control.given().map(Spanned::into_inner),
        root: default.root,
    }
}

fn proxy(
    written: Spanned<written::Proxy>,
    key: &str,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) -> Option<proxy::Config> {
    let whole = written.span();
    let written = written.into_inner();
    written.note(&format!("{key}."), places);
    if written.to.at().is_none() {
        mistakes.push(Mistake::new(whole, "`proxy` has no upstream", "expected a `to` in it"));
    }
    let default = proxy::Config::new(written.to.given()?.into_inner());
    Some(proxy::Config {
        retry_for: written.retry_for.or(default.retry_for),
        connect_timeout: written.connect_timeout.or(default.connect_timeout),
        timeout: written.timeout.or(default.timeout),
        to: default.to,
    })
}
