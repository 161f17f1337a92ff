//! Trailers, which are passed on where they can do no harm.

use super::{answer, status};
use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy};
use crate::wire::Message;

/// Fields that must not come after a body (RFC 9110, section 6.5.1), or concern one hop, also by their other names.
const UNSAFE_TRAILERS: [&str; 79] = [
    // Framing and routing.
    "Transfer-Encoding",
    "Content-Length",
    "Host",
    "Trailer",
    "TE",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "Upgrade",
    "HTTP2-Settings",
    "Via",
    "Content_Length",
    "Transfer_Encoding",
    // The client that it comes from.
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Prefix",
    "X_Forwarded_For",
    "X-Real-IP",
    "Proxy",
    "From",
    "Origin",
    "Referer",
    "User-Agent",
    // Authentication.
    "Authorization",
    "Proxy-Authorization",
    "Proxy-Authenticate",
    "WWW-Authenticate",
    "Cookie",
    "Cookie2",
    "Set-Cookie",
    "Set-Cookie2",
    "Client-Cert",
    // Request modifiers.
    "Cache-Control",
    "Pragma",
    "Expect",
    "Max-Forwards",
    "Range",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Prefer",
    "Priority",
    "Early-Data",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Sec-Fetch-Site",
    "Sec-WebSocket-Key",
    "Access-Control-Request-Method",
    // Response control.
    "Age",
    "Date",
    "Expires",
    "Last-Modified",
    "Location",
    "Retry-After",
    "Vary",
    "Warning",
    "Allow",
    "Alt-Svc",
    "Refresh",
    "Clear-Site-Data",
    "Strict-Transport-Security",
    "Access-Control-Allow-Origin",
    "Content-Security-Policy",
    // The format of the body.
    "Content-Encoding",
    "Content-Type",
    "Content-Range",
    "Content-Language",
    "Content-Location",
    "Content-Disposition",
    // Named by Connection below.
    "X-Hop",
    "X-Other-Hop",
];

/// Fields that may.
const SAFE_TRAILERS: [&str; 6] =
    ["X-Checksum", "Grpc-Status", "Server-Timing", "Content-Digest", "Repr-Digest", "ETag"];

/// A chunked body with every trailer, each with its own name for a value, after this head.
fn with_trailers(head: &str) -> String {
    let names: Vec<_> = UNSAFE_TRAILERS.iter().chain(&SAFE_TRAILERS).copied().collect();
    let trailers: Vec<_> = names.iter().map(|name| format!("{name}: the-{name}\r\n")).collect();
    format!(
        "{head}Connection: close, X-Hop\r\nConnection: x-other-hop\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\
         Trailer: {}\r\n\r\n5\r\nhello\r\n0\r\n{}\r\n",
        names[..50].join(", "),
        names[50..].join(","),
        trailers.concat(),
    )
}

fn assert_safe(message: &Message) {
    let all: Vec<_> = message.fields.iter().chain(&message.trailers).collect();
    assert!(!all.iter().any(|(_, value)| value.contains("the-x-hop")), "{message:?}");
    let came: Vec<_> = message.trailers.iter().map(|(name, _)| name.clone()).collect();
    let mut safe = SAFE_TRAILERS.map(str::to_ascii_lowercase);
    safe.sort();
    let mut sorted = came.clone();
    sorted.sort();
    assert_eq!(sorted, safe);
    // Only these are announced.
    let announced = message.fields.iter().filter(|(name, _)| name == "trailer");
    let announced =
        announced.flat_map(|(_, names)| names.split(',')).map(|name| name.trim().to_ascii_lowercase());
    let mut announced: Vec<_> = announced.collect();
    announced.sort();
    assert_eq!(announced, safe);
}

#[test]
fn of_a_requests_trailers_only_the_safe_ones_reach_the_upstream() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let request = with_trailers("POST /a HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(status(&answer(&site, &request)), 200);
    assert_safe(&recorder.requests()[0]);
    // Unless the client's next hop was to keep them to itself.
    let request = request.replace("close, X-Hop", "close, Trailer, X-Hop");
    assert_eq!(status(&answer(&site, &request)), 200);
    assert_eq!(recorder.requests()[1].trailers, []);
}

#[test]
fn of_an_answers_trailers_only_the_safe_ones_reach_the_client_and_only_if_it_takes_any() {
    let recorder = Recorder::answering(with_trailers("HTTP/1.1 200 OK\r\n"));
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let request = "GET /a HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, close\r\n\r\n";
    assert_safe(&answer(&site, request));
    let request = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(answer(&site, request).trailers, []);
}
