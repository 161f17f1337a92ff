//! The fields that a proxy takes out of a message's head, and those that it puts in.

use std::net::IpAddr;
use std::ops::Range;

use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, InvalidHeaderValue, MAX_FORWARDS, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use bytes::Bytes;

use crate::daemon::http::routes::number;
use crate::server::request_id::{RequestId, X_REQUEST_ID};
use crate::server::{InFlight, Peer, trace};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The fields of one hop only (RFC 9110, section 7.6.1), and those that older software takes for such. `Trailer` is
/// not among them: it announces the trailers, and the safe ones are passed on.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// The number of fields that [`to_upstream`] adds to a client's request: room for them is made at once.
const ADDED: usize = 7;

/// The protocol a client asks to change to. HTTP/1.0 has no upgrades (RFC 9110, section 7.8), and `h2c` is no longer
/// one (RFC 9113, section 3.1): a tunnel of it would carry requests that no route has seen.
pub(super) fn requested_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE)?;
    let is_h2c = |protocol: &[u8]| protocol.eq_ignore_ascii_case(b"h2c");
    (version == Version::HTTP_11
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
        && !protocols(asked).any(is_h2c))
    .then(|| asked.clone())
}

/// True if an answer switches to protocols that were `asked` for, and says to which (RFC 9110, sections 7.8 and 15.2.2).
pub(super) fn switches_to(asked: &HeaderValue, headers: &HeaderMap) -> bool {
    let mut agreed = headers.get_all(UPGRADE).iter().flat_map(protocols).peekable();
    let is_asked = |agreed: &[u8]| protocols(asked).any(|asked| asked.eq_ignore_ascii_case(agreed));
    agreed.peek().is_some() && agreed.all(is_asked)
}

/// The protocols in a field `Upgrade`.
fn protocols(upgrade: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let protocols = upgrade.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    protocols.filter(|protocol| !protocol.is_empty())
}

/// True if a message's body is in chunks; `None` if it is in another transfer coding: this proxy offers no others, and
/// cannot decode them (RFC 9112, section 6.1).
pub(super) fn is_chunked(headers: &HeaderMap) -> Option<bool> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Some(false) };
    let is_chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    (is_chunked && codings.next().is_none()).then_some(true)
}

/// Counts down `Max-Forwards` of `OPTIONS` and `TRACE` (RFC 9110, section 7.6.2). Returns false if the request
/// may not be forwarded any more.
pub(super) fn may_be_forwarded(method: &Method, headers: &mut HeaderMap) -> bool {
    if ![Method::OPTIONS, Method::TRACE].contains(method) {
        return true;
    }
    let Some(left) = headers.get(MAX_FORWARDS).and_then(|left| number(left.as_bytes())) else {
        return true;
    };
    left.checked_sub(1).is_some_and(|left| {
        headers.insert(MAX_FORWARDS, left.into());
        true
    })
}

/// Reduces the `Content-Length` of an upstream's answer to one number, however often it is given. Returns false
/// if its values are not one valid number (RFC 9112, section 6.3). Where there are chunks it is removed.
pub(super) fn settle_length(headers: &mut HeaderMap, is_chunked: bool) -> bool {
    if is_chunked {
        headers.remove(CONTENT_LENGTH);
        return true;
    }
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    match (lines.next(), lines.next()) {
        (None, _) => return true,
        (Some(line), None) if is_settled(line.as_bytes()) => return true,
        _ => {}
    }
    let lengths =
        headers.get_all(CONTENT_LENGTH).iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    // hyper does not accept the largest number as the length of a body either.
    let mut lengths = lengths.map(|length| number(length.trim_ascii()).filter(|length| *length < u64::MAX));
    let Some(length) = lengths.next().flatten().filter(|first| lengths.all(|other| other == Some(*first)))
    else {
        return false;
    };
    headers.insert(CONTENT_LENGTH, length.into());
    true
}

/// True of a length as everyone writes it: there is nothing to settle.
fn is_settled(length: &[u8]) -> bool {
    // Every number of 19 digits is less than the largest one.
    matches!(length, [b'0'] | [b'1'..=b'9', ..]) && length.len() < 20 && length.iter().all(u8::is_ascii_digit)
}

/// Makes the headers of a client's request those of the request to the upstream. `Host` stays as the client sent it,
/// or becomes that of an absolute URI (RFC 9112, section 3.2.2).
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    version: Version,
    uri: &Uri,
    client: &InFlight,
    id: &RequestId,
    upgrade: Option<HeaderValue>,
) {
    let takes_trailers = headers.get_all(TE).iter().any(|te| {
        let codings = te.as_bytes().split(|b| *b == b',');
        codings.into_iter().any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    // Of a trusted proxy, [`ORIGIN`] stays.
    let is_believed = |name: &HeaderName| client.is_trusted() && ORIGIN.contains(name);
    remove_hop_by_hop(headers, |name| {
        looks_like_steering(name.as_str()) || (is_claim_of_origin(name) && !is_believed(name))
    });
    headers.reserve(ADDED);
    if version == Version::HTTP_10 {
        // HTTP/1.0 has no `Expect` (RFC 9110, section 10.1.1).
        headers.remove(EXPECT);
    }

    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    } else if takes_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }

    if let Some(host) = uri.authority().and_then(|authority| host_and_port(authority.as_str())) {
        headers.insert(HOST, host);
    }
    add_origin(headers, client);
    // The version is the one that the request came in (RFC 9110, section 7.6.3).
    let via = match version {
        Version::HTTP_10 => "1.0 steadfast",
        Version::HTTP_2 => "2.0 steadfast",
        _ => "1.1 steadfast",
    };
    append(headers, VIA, Ok(HeaderValue::from_static(via)));
    headers.insert(X_REQUEST_ID, id.value());
    trace::pass_on(headers, id);
}

/// Makes the headers of the upstream's answer those of the answer to the client. Upgrades are passed through, so the
/// upstream's `Upgrade` field is kept (RFC 9110, section 7.8).
pub(crate) fn to_client(status: StatusCode, headers: &mut HeaderMap) {
    let upgrade = match status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED => headers.get(UPGRADE).cloned(),
        _ => None,
    };
    remove_hop_by_hop(headers, |_| false);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// An interim answer of the upstream's as it is sent to the client. It has no content, and so no length.
pub(super) fn interim(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut headers = headers.clone();
    remove_hop_by_hop(&mut headers, |_| false);
    headers.remove(CONTENT_LENGTH);
    let mut head = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in &headers {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes the fields of one hop, and others that are not to be passed on. Most messages have few, and no trailers: each
/// field is looked at once, and searched for only if it is there.
fn remove_hop_by_hop(headers: &mut HeaderMap, is_other: impl Fn(&HeaderName) -> bool) {
    let mut removed = Vec::new();
    let mut announces_trailers = false;
    for name in headers.keys() {
        announces_trailers |= *name == TRAILER;
        if HOP_BY_HOP.contains(&name.as_str()) || is_other(name) {
            removed.push(name.clone());
        }
    }
    // `Host` and `Content-Length` are for every hop, whatever `Connection` says.
    let listed: Vec<HeaderName> = if removed.contains(&CONNECTION) {
        connection_options(headers)
            .filter(|option| !HOP_BY_HOP.contains(option))
            .filter_map(|option| option.parse().ok())
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect()
    } else {
        Vec::new()
    };
    for name in removed.iter().chain(&listed) {
        headers.remove(name);
    }
    if announces_trailers {
        keep_safe_trailers(headers, &listed);
    }
}

/// Fields that are defined to come after a body (RFC 9110, section 8.8.3; RFC 9530; Server Timing; gRPC).
const TRAILERS: [&str; 7] = [
    "content-digest",
    "etag",
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "repr-digest",
    "server-timing",
];

/// Fields of no standard that many frameworks let replace the method or the path.
const REPLACING: [&str; 5] =
    ["x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Keeps only the safe ones of the trailers that a message announces. hyper sends no trailers that are not announced.
///
/// A recipient may treat a trailer as a field of the head, although it has not been checked like one. So a standard
/// field is passed on only if it is defined as a trailer (RFC 9110, section 6.5.1): a list of the unsafe ones would be
/// incomplete with every new field. Names of no standard, `X-..`, are passed on, but for those that say where a request
/// comes from or goes to.
fn keep_safe_trailers(headers: &mut HeaderMap, of_this_hop: &[HeaderName]) {
    let is_safe = |name: &HeaderName| {
        let text = name.as_str();
        let replaces = || REPLACING.iter().any(|other| same_to_cgi(text, other));
        let is_private = || text.starts_with("x-") && !is_claim_of_origin(name) && !replaces();
        !of_this_hop.contains(name) && (TRAILERS.contains(&text) || is_private())
    };
    let announced = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    let announced = announced.flat_map(|value| value.split(',')).map(str::trim);
    let safe = announced.filter(|name| name.parse().is_ok_and(|name| is_safe(&name)));
    let safe = safe.collect::<Vec<_>>().join(", ");
    match HeaderValue::try_from(safe) {
        Ok(safe) if !safe.is_empty() => _ = headers.insert(TRAILER, safe),
        _ => _ = headers.remove(TRAILER),
    }
}

/// The fields in which a trusted proxy says where the request comes from.
const ORIGIN: [HeaderName; 4] = [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO];

/// True if a field says where a request comes from, or which it is: `Forwarded`, `X-Forwarded-*`, `X-Real-IP`,
/// `X-Request-Id`; also written with underscores; and `Proxy`, which CGI and its heirs take for the variable `HTTP_PROXY`.
fn is_claim_of_origin(name: &HeaderName) -> bool {
    let name = name.as_str();
    let is = |claim: &str| same_to_cgi(name, claim);
    name.get(..12).is_some_and(|start| same_to_cgi(start, "x-forwarded-"))
        || is("forwarded")
        || is("x-real-ip")
        || is("x-request-id")
        || is("proxy")
}

/// True of a name that has no meaning of its own to this proxy, or to HTTP, so that it may be given one.
pub(in crate::daemon::http) fn is_free(name: &HeaderName) -> bool {
    const OTHERS: [&str; 6] =
        ["authorization", "connection", "content-type", "cookie", "traceparent", "tracestate"];
    let has = |names: &[&str]| names.iter().any(|other| same_to_cgi(name.as_str(), other));
    !(has(&OTHERS) || has(&HOP_BY_HOP) || has(&STEERING) || has(&REPLACING) || is_claim_of_origin(name))
}

/// Fields that say where a message ends or goes, beside [`HOP_BY_HOP`].
const STEERING: [&str; 6] = ["content-length", "expect", "host", "max-forwards", "trailer", "via"];

/// True of a field that CGI and its successors take for one that steers a message: `Content_Length` is not the length
/// here, but may be behind the upstream.
fn looks_like_steering(name: &str) -> bool {
    let is_odd = name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && byte != b'-');
    is_odd && STEERING.iter().chain(&HOP_BY_HOP).any(|other| same_to_cgi(name, other))
}

/// True if two names are one to CGI and its heirs, which do not tell a hyphen from an underscore, nor some of them from
/// any other mark.
pub(in crate::daemon::http) fn same_to_cgi(name: &str, other: &str) -> bool {
    let is_same = |(a, b): (u8, u8)| a == b || (b == b'-' && !a.is_ascii_alphanumeric());
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(is_same)
}

/// Says where the request comes from: `X-Forwarded-*` as everyone does, `Forwarded` as RFC 7239 does. What a trusted
/// proxy has said comes first.
fn add_origin(headers: &mut HeaderMap, client: &InFlight) {
    let host = headers.get(HOST).cloned();
    let mut forwarded = Vec::with_capacity(128);
    forwarded.extend(b"for=");
    let address = match client.peer() {
        // An IPv4 client of an IPv6 socket has a mapped address: its IPv4 one is passed on.
        Peer::Tcp(address) => match address.ip().to_canonical() {
            IpAddr::V4(address) => push(&mut forwarded, |text| push_octets(text, address.octets())),
            IpAddr::V6(address) => {
                // Colons and brackets need the quotes (section 6).
                forwarded.extend(b"\"[");
                let range = push(&mut forwarded, |text| text.extend(address.to_string().as_bytes()));
                forwarded.extend(b"]\"");
                range
            }
        },
        Peer::Unix => push(&mut forwarded, |text| text.extend(b"unknown")),
    };
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        forwarded.extend(b";host=\"");
        for byte in host.bytes() {
            if matches!(byte, b'\\' | b'"') {
                forwarded.push(b'\\');
            }
            forwarded.push(byte);
        }
        forwarded.push(b'"');
    }
    let scheme = if client.is_over_tls() { "https" } else { "http" };
    forwarded.extend(b";proto=");
    forwarded.extend(scheme.as_bytes());
    let forwarded = Bytes::from(forwarded);

    if client.peer() != Peer::Unix {
        append(headers, X_FORWARDED_FOR, HeaderValue::from_maybe_shared(forwarded.slice(address)));
    }
    // What anyone else has said was removed.
    let is_said = |headers: &HeaderMap, name| client.is_trusted() && headers.contains_key(name);
    if let Some(host) = host
        && !is_said(headers, X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !is_said(headers, X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    append(headers, FORWARDED, HeaderValue::from_maybe_shared(forwarded));
}

/// Adds to a text; returns where that is in it.
fn push(text: &mut Vec<u8>, add: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
    let start = text.len();
    add(text);
    start..text.len()
}

/// Adds an IPv4 address, as `Display` writes it at ten times the cost, which each request would bear.
fn push_octets(text: &mut Vec<u8>, octets: [u8; 4]) {
    for (number, octet) in octets.into_iter().enumerate() {
        if number > 0 {
            text.push(b'.');
        }
        if octet >= 100 {
            text.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            text.push(b'0' + octet / 10 % 10);
        }
        text.push(b'0' + octet % 10);
    }
}

/// Adds an element to a list, and puts the list on one line: not every reader joins several. An element that no field
/// can have is left out.
fn append(headers: &mut HeaderMap, name: HeaderName, element: Result<HeaderValue, InvalidHeaderValue>) {
    let Ok(element) = element else { return };
    if headers.append(&name, element) {
        let texts: Vec<_> = headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()).collect();
        if let Ok(list) = HeaderValue::try_from(texts.join(", ")) {
            headers.insert(name, list);
        }
    }
}

/// An authority without its user information, which is no part of `Host`.
pub(super) fn host_and_port(authority: &str) -> Option<HeaderValue> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    HeaderValue::try_from(host).ok()
}
