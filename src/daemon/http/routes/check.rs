//! The rules of a `[[route]]`.

use std::collections::HashMap;

use axum::http::uri::Authority;
use axum::http::{HeaderName, StatusCode, header};

use super::host::Invalid;
use super::path::Reading;
use super::proxy::Upstream;
use super::{Action, Route, claim, files, host, proxy, respond};
use crate::rules::Check;
use crate::server::address::check_socket_path;

/// The text of a mistake that says what is expected of a route's host.
pub(crate) const HOST: &str = "a host such as \"example.org\", or \"*.example.org\" for all below it";
/// The same of its path.
pub(crate) const PATH: &str = "a path such as \"/health\", or \"/app/*\" for everything below";
/// The same of the root of `files`.
pub(crate) const ROOT: &str = "the absolute path of a directory";
/// The same of the index of `files`.
pub(crate) const INDEX: &str = "a file's name, such as \"index.html\", or false for none";
/// The same of the status of `respond`.
pub(crate) const STATUS: &str = "a status from 200 to 599";
/// The same of the upstream of `proxy`.
pub(crate) const UPSTREAM: &str = "\"http://HOST:PORT\" or \"unix:/path\"";

/// The most headers that an answer may be given.
const MOST_HEADERS: usize = 100;

/// The headers that frame a message or control its connection, which only the server may set.
static FRAMING: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Checks each route by itself, and that no two have one host and path.
pub(crate) fn check_routes(routes: &[Route], check: &mut Check) {
    // Keyed by host and path as they are compared, however they are spelled.
    let mut claims: HashMap<(Option<String>, bool, Vec<u8>), String> = HashMap::new();
    for (index, route) in routes.iter().enumerate() {
        check.table(&format!("route[{index}]"), |check| {
            route.check(check);
            let Ok((is_folder, reading)) = claim(&route.path) else { return };
            let mut claim = |key: &str, host: Option<&str>| {
                let claimed = host.map(host::claim).transpose();
                let Ok(claimed) = claimed else { return };
                let claimed = (claimed, is_folder, reading.compared.to_vec());
                let Some(first) = claims.get(&claimed) else {
                    claims.insert(claimed, check.path(key));
                    return;
                };
                let (what, expected) = match host {
                    None => (format!("two routes have the path {:?}", route.path), "another path"),
                    Some(host) if first.starts_with(&check.path("host[")) => {
                        (format!("this route has the host {host:?} twice"), "each host once")
                    }
                    Some(host) => (
                        format!("two routes have the host {host:?} and the path {:?}", route.path),
                        "another host, or another path",
                    ),
                };
                check.note(key, what, expected).also(first, "the first is here");
            };
            if route.hosts.is_empty() {
                claim("path", None);
            }
            for (index, host) in route.hosts.iter().enumerate() {
                claim(&format!("host[{index}]"), Some(host));
            }
        });
    }
}

impl Route {
    fn check(&self, check: &mut Check) {
        for (index, host) in self.hosts.iter().enumerate() {
            check_host(host, &format!("host[{index}]"), "host", "the route is for every host then", check);
        }
        check_path(&self.path, check);
        match &self.action {
            Action::Respond(respond) => check.table("respond", |check| respond.check(check)),
            Action::Status => {}
            Action::Files(files) => check.table("files", |check| files.check(check)),
            Action::Proxy(proxy) => check.table("proxy", |check| proxy.check(check)),
        }
    }
}

/// Notes what is wrong with a host at `key` in the list `name`; `without` is what holds if there is no such list.
pub(in crate::daemon::http) fn check_host(
    host: &str,
    key: &str,
    name: &str,
    without: &str,
    check: &mut Check,
) {
    let Err(invalid) = host::claim(host) else { return };
    let violation = check.note(key, format!("`{name}` {invalid}"), HOST);
    match invalid {
        Invalid::Star if host == "*" => violation.help(format!("leave `{name}` out: {without}")),
        Invalid::Star => violation.help("it stands for any number of labels"),
        Invalid::Port | Invalid::Url => {
            violation.help("write the host alone: it stands for every port and both schemes")
        }
        Invalid::NotAscii(_) => {
            violation.help("write it as clients send it, in Punycode (\"xn--...\"); `idn2 NAME` prints that")
        }
        Invalid::Empty | Invalid::Character(_) | Invalid::Label | Invalid::Long | Invalid::Number => {
            violation
        }
    };
}

fn check_path(path: &str, check: &mut Check) {
    let fixed = path.strip_suffix("/*").unwrap_or(path);
    // RFC 3986, section 3.3: what a path in a request can hold. Anything else would never be asked for.
    let stranger =
        fixed.chars().find(|char| !char.is_ascii_alphanumeric() && !"/-._~!$&'()+,;=:@%*".contains(*char));
    if !path.starts_with('/') {
        check.note("path", "`path` does not begin with \"/\"", PATH);
    } else if fixed.contains('*') {
        check.note("path", "`path` has a \"*\" that is not its whole last segment", PATH);
    } else if stranger == Some('?') {
        check.note("path", "`path` has a query", PATH).help("a route is chosen by its path alone");
    } else if let Some(char) = stranger {
        check
            .note("path", format!("`path` has {char:?}, which no request's path can have"), PATH)
            .help("write it percent-encoded, as clients do");
    } else {
        match claim(path) {
            Ok((_, Reading { undivided: None, .. })) => {}
            Ok(_) => {
                check
                    .note("path", "`path` has an encoded slash or backslash", PATH)
                    .help("write it as a slash: both are compared as one");
            }
            Err(unreadable) => _ = check.note("path", format!("`path` {unreadable}"), PATH),
        }
    }
}

impl respond::Config {
    fn check(&self, check: &mut Check) {
        let status = self.status.as_u16();
        // 1xx announce an answer and are none (RFC 9110, section 15.2).
        if !(200..=599).contains(&status) {
            check.note("status", format!("`status` is {status}"), STATUS);
        }
        // RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5.
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
        if bodiless.contains(&self.status) && !self.body.is_empty() {
            let also = check.path("status");
            check
                .note("body", format!("an answer of status {status} has no body"), "none")
                .also(also, "the status");
        }
        if self.headers.len() > MOST_HEADERS {
            let what = format!("`headers` has {} headers", self.headers.len());
            check.note("headers", what, format!("at most {MOST_HEADERS}"));
        }
        for name in self.headers.keys().filter(|name| FRAMING.contains(name)) {
            check
                .note(&format!("headers.{name}"), format!("`{name}` is set by the server"), "another header")
                .help("leave it out: it is different on each connection");
        }
    }
}

impl files::Config {
    fn check(&self, check: &mut Check) {
        if !self.root.is_absolute() {
            check
                .note("root", "`root` is not absolute", ROOT)
                .help("a service has no working directory of its own");
        }
        let is_name = |index: &String| !index.contains(['/', '\0']) && !matches!(&**index, "" | "." | "..");
        if !self.index.as_ref().is_none_or(is_name) {
            check.note("index", "`index` is not the name of a file", INDEX);
        }
    }
}

impl proxy::Config {
    fn check(&self, check: &mut Check) {
        match &self.to {
            Upstream::Http(authority) => check_upstream(authority, check),
            Upstream::Unix(path) => check_socket_path(path, "to", "to", UPSTREAM, check),
        }
        check.delay("retry_for", self.retry_for);
        check.timeout("connect_timeout", self.connect_timeout);
        check.timeout("timeout", self.timeout);
    }
}

fn check_upstream(authority: &Authority, check: &mut Check) {
    match authority.port_u16() {
        None => _ = check.note("to", "`to` has no port", UPSTREAM),
        Some(0) => _ = check.note("to", "`to` has port 0, where nobody can be reached", UPSTREAM),
        // User information has no meaning here: credentials for an upstream go into a header.
        Some(_) if authority.as_str().contains('@') => {
            check.note("to", "`to` has no valid host", UPSTREAM);
        }
        Some(_) => {}
    }
}
