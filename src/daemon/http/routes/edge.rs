//! What a request meets before its route, where there is `[https]`: the way to TLS, and the certificates of clients.

use axum::extract::Request;
use axum::http::header::{LOCATION, TRAILER};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::proxy::headers::same_to_cgi;
use super::{host, path, text};
use crate::daemon::http::https::{self, Asked};
use crate::tls::Session;

/// The place of the files by which a CA sees that a name is its owner's; it asks for them without TLS (RFC 8555,
/// section 8.3).
const ACME: &str = "/.well-known/acme-challenge/";

/// The port that goes without saying (RFC 9110, section 4.2.2).
pub(in crate::daemon::http) const HTTPS_PORT: u16 = 443;

/// The rules that hold for the requests of every route.
#[derive(Debug)]
pub(crate) struct Edge {
    /// The port at which requests that came without TLS are to come with it.
    redirect_to: Option<u16>,
    /// The hosts whose clients are asked for certificates.
    asked: Asked,
    /// True if these must have one, which nobody has without TLS.
    is_required: bool,
    /// The field that has the subject of the client's certificate.
    subject: Option<HeaderName>,
}

impl Edge {
    /// Those of the section; with a port, requests that come without TLS are sent there.
    pub(crate) fn new(config: &https::Config, redirect_to: Option<u16>) -> Self {
        Self {
            redirect_to,
            asked: config.asked(),
            is_required: config.is_required(),
            subject: config.client_subject_header.clone(),
        }
    }

    /// The answer to a request that goes no further. Any other has the subject of its client's certificate, and no other.
    pub(super) fn answer(&self, request: &mut Request, tls: Option<&Session>) -> Option<Response> {
        let response = match tls {
            None => self.answer_without_tls(request),
            // RFC 9110, section 15.5.20. Otherwise who has shown no certificate gets, on a connection to a host that asks
            // for none, the answers of one that asks.
            Some(session) => self.is_misdirected(request, session).then(|| {
                text(
                    StatusCode::MISDIRECTED_REQUEST,
                    "this host takes other certificates of clients than the one that the connection was opened to",
                )
            }),
        };
        if response.is_some() {
            return response;
        }
        if let Some(field) = &self.subject {
            set_subject(request, field, tls.and_then(Session::client));
        }
        None
    }

    fn answer_without_tls(&self, request: &Request) -> Option<Response> {
        if is_for_acme(request) {
            return None;
        }
        match self.redirect_to {
            // A path that cannot be read has no place elsewhere either, and is answered here.
            Some(port) if path::read(request.uri().path()).is_ok() => Some(redirect(request, port)),
            // Otherwise another port leads to what the handshake guards.
            _ if self.is_required && self.asked.has(host::of(request).as_deref()) => Some(text(
                StatusCode::FORBIDDEN,
                "this host is served over TLS, to clients with a certificate",
            )),
            _ => None,
        }
    }

    fn is_misdirected(&self, request: &Request, session: &Session) -> bool {
        let opened_to = session.server_name();
        let host = host::of(request);
        // A request of HTTP/1.0 may name no host: it means that one.
        let meant = host.as_deref().or(opened_to);
        matches!(self.asked, Asked::Of(_)) && self.asked.has(opened_to) != self.asked.has(meant)
    }
}

/// True of a path that a CA asks for: a token below that place, in base64url. An upstream may read any other in its own way,
/// `..;` as a step up.
fn is_for_acme(request: &Request) -> bool {
    let token = request.uri().path().strip_prefix(ACME).unwrap_or_default();
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The answer that sends a request to the same host and target over TLS. Its method and body are to stay (308).
fn redirect(request: &Request, port: u16) -> Response {
    let Some(host) = host::written(request).filter(|host| !host.is_empty()) else {
        return text(
            StatusCode::BAD_REQUEST,
            "this is served over TLS, and the request has no Host to go on to",
        );
    };
    let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let location = if port == HTTPS_PORT {
        format!("https://{host}{target}")
    } else {
        format!("https://{host}:{port}{target}")
    };
    match HeaderValue::try_from(location) {
        Ok(location) => (StatusCode::PERMANENT_REDIRECT, [(LOCATION, location)]).into_response(),
        Err(_) => text(StatusCode::BAD_REQUEST, "the request's target cannot stand in a Location"),
    }
}

/// Sets the field to a subject, if there is one. What a client has put there is removed, however it writes the name, and also
/// if it announces it as a trailer.
fn set_subject(request: &mut Request, field: &HeaderName, subject: Option<&str>) {
    let headers = request.headers_mut();
    let is_field = |name: &str| same_to_cgi(name, field.as_str());
    let claims: Vec<_> = headers.keys().filter(|name| is_field(name.as_str())).cloned().collect();
    for claim in claims {
        headers.remove(claim);
    }
    let announces = |trailer: &HeaderValue| {
        let names = trailer.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.filter_map(|name| HeaderName::from_bytes(name).ok()).any(|name| is_field(name.as_str()))
    };
    if headers.get_all(TRAILER).iter().any(announces) {
        headers.remove(TRAILER);
    }
    if let Some(subject) = subject.and_then(|subject| HeaderValue::from_str(subject).ok()) {
        headers.insert(field, subject);
    }
}
