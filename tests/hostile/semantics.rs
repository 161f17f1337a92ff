//! The meaning of requests, as RFC 9110 and 9112 have it: bytes, and what is answered and passed on.

use std::fs;

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, files, proxy, respond};
use crate::wire::{Message, say, statuses};

/// A route that refuses whatever is below it.
fn forbidden(path: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nrespond = {{ status = 403, body = \"forbidden\" }}\n")
}

/// The only answer to a request that asks for the connection to be closed.
fn answer(site: &Site, request: &str) -> Message {
    let answers = say(site.http, request.as_bytes());
    let mut rest = &answers[..];
    let message = Message::parse(&mut rest)
        .unwrap_or_else(|wrong| panic!("{wrong}: {} to {request}", answers.escape_ascii()));
    assert!(rest.is_empty(), "one answer to {request}, and then {}", rest.escape_ascii());
    message
}

fn status(message: &Message) -> u16 {
    message.start.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
}

// ---------------------------------------------------------------- paths

/// A request target, the status that answers it, and the target that the upstream gets.
type Spelling = (&'static str, u16, Option<&'static str>);

/// RFC 3986, section 6.2.2: spellings of one path are one path.
const SPELLINGS: [Spelling; 68] = [
    // Below a route that refuses, whatever the spelling.
    ("/up/private/x", 403, None),
    ("/up/%70rivate/x", 403, None),
    ("/%75%70/private/x", 403, None),
    ("/up//private/x", 403, None),
    ("//up/private/x", 403, None),
    ("///up///private///x", 403, None),
    ("/up/./private/x", 403, None),
    ("/./up/private/x", 403, None),
    ("/up/a/../private/x", 403, None),
    ("/up/a//../private/x", 403, None),
    ("/a/../up/private/x", 403, None),
    ("/up/a/%2e%2e/private/x", 403, None),
    ("/up/a/.%2E/private/x", 403, None),
    ("/up/%2e/private/x", 403, None),
    ("/up/private/.", 403, None),
    ("/up/private/x/..", 403, None),
    ("/up/private//", 403, None),
    ("/up/private%2fx", 403, None),
    ("/up/private%2F", 403, None),
    ("/up/%2fprivate/x", 403, None),
    ("/up%2fprivate/x", 403, None),
    ("/up/private%5cx", 403, None),
    ("/up/%40admin/x", 403, None),
    ("http://a/up/%70rivate/x", 403, None),
    ("http://a//up/private/x", 403, None),
    ("/up/../secret", 403, None),
    ("/up/%2e%2e/secret", 403, None),
    ("/up/x/../../secret", 403, None),
    ("/%73ecret", 403, None),
    ("/secret?/../up/x", 403, None),
    // Above the root there is nothing.
    ("/..", 400, None),
    ("/../up/x", 400, None),
    ("/up/../../up/x", 400, None),
    ("/%2e%2e/up/x", 400, None),
    ("//../up/x", 400, None),
    ("http://a/../up/x", 400, None),
    // Not to be read, or in more than one way.
    ("/up/%", 400, None),
    ("/up/%7", 400, None),
    ("/up/%zz", 400, None),
    ("/up/x%00", 400, None),
    ("/up/x%2f..%2fprivate/x", 400, None),
    ("/up/%2e%2e%2fsecret", 400, None),
    ("/up/..%5csecret", 400, None),
    ("/up/x%2f.", 400, None),
    ("/closed/open%2fx", 400, None),
    ("/closed/open%5Cx", 400, None),
    // Passed on as it was compared, the query as it came.
    ("/up/x", 200, Some("/up/x")),
    ("/up", 404, None),
    ("/up/", 200, Some("/up/")),
    ("/%75p/%61%7e%2D%5f", 200, Some("/up/a~-_")),
    ("/up/%c3%a9%2a", 200, Some("/up/%C3%A9%2A")),
    ("/up/%40%3a", 200, Some("/up/%40%3A")),
    ("/up//x//y//", 200, Some("/up/x/y/")),
    ("/up/./x/../y/.", 200, Some("/up/y/")),
    ("/up/x/..", 200, Some("/up/")),
    ("/up/...", 200, Some("/up/...")),
    ("/up/x/..y", 200, Some("/up/x/..y")),
    ("/up/group%2fproject", 200, Some("/up/group%2Fproject")),
    ("/up/a%5cb", 200, Some("/up/a%5Cb")),
    ("/up/%252e%252e/private/x", 200, Some("/up/%252e%252e/private/x")),
    ("/up/{a}|é", 200, Some("/up/%7Ba%7D%7C%C3%A9")),
    ("/up/a\\b", 200, Some("/up/a%5Cb")),
    ("/up/private\\x", 403, None),
    ("/up/x?%70=//&..=/../%zz", 200, Some("/up/x?%70=//&..=/../%zz")),
    ("http://a/up/%78?y", 200, Some("/up/x?y")),
    ("/up/private/../x", 200, Some("/up/x")),
    ("/closed/open/x", 200, Some("/closed/open/x")),
    ("/closed//%6fpen/x", 200, Some("/closed/open/x")),
];

#[test]
fn every_spelling_of_a_path_meets_the_same_route_and_only_what_was_compared_is_passed_on() {
    let recorder = Recorder::start();
    let tables = [
        forbidden("/up/private/*"),
        forbidden("/up/@admin/*"),
        forbidden("/secret"),
        forbidden("/closed/*"),
        proxy("/closed/open/*", recorder.address, ""),
        proxy("/up/*", recorder.address, ""),
    ];
    let site = Site::start(IMPATIENT, &tables.concat());
    let mut wrong = Vec::new();
    for (target, expected, passed) in SPELLINGS {
        let before = recorder.requests().len();
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answered = statuses(&say(site.http, request.as_bytes()));
        let requests = recorder.requests();
        let got: Vec<_> =
            requests[before..].iter().filter_map(|request| request.start.split(' ').nth(1)).collect();
        if answered != [expected] || got != passed.as_slice() {
            wrong.push(format!("{target}: answered {answered:?}, passed {got:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert_eq!(recorder.malformed(), [""; 0]);
}

#[test]
fn a_path_that_is_too_long_once_it_is_encoded_is_not_passed_on_as_it_came() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let target = format!("/{}", "{".repeat(30_000));
    let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&answer(&site, &request)), 400);
    assert_eq!(recorder.requests(), []);
}

/// Files with a folder that must not be had.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["hidden", "sub"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
        fs::write(folder.path().join(name).join("in.txt"), name).expect("a file");
    }
    fs::write(folder.path().join("in.txt"), "0123456789abcdefghij").expect("a file");
    folder
}

#[test]
fn every_spelling_of_a_files_path_is_that_file_or_none() {
    let folder = folder();
    let tables =
        files("/files/*", folder.path()) + &forbidden("/files/hidden/*") + &respond("/fixed", "fixed");
    let site = Site::start(IMPATIENT, &tables);
    let mut wrong = Vec::new();
    for (target, expected) in [
        ("/files/in.txt", 200),
        ("/files/%69n%2etxt", 200),
        ("/files//in.txt", 200),
        ("/files/./sub/../in.txt", 200),
        ("//files/in.txt", 200),
        ("/files/sub//in.txt", 200),
        ("http://a/files/%69n.txt", 200),
        ("/files/in.txt/", 404),
        ("/files/in.txt%2f", 404),
        ("/files/in.txt%2F.", 400),
        ("/files/sub%2fin.txt", 404),
        ("/files%2fin.txt", 400),
        ("/files/sub%5cin.txt", 404),
        ("/files/in.txt%00", 400),
        ("/files/hidden/in.txt", 403),
        ("/files/%68idden/in.txt", 403),
        ("/files//hidden/in.txt", 403),
        ("/files/sub/../hidden/in.txt", 403),
        ("/files/hidden%2fin.txt", 403),
        ("/files/hidden%5cin.txt", 403),
        ("/files/../files/hidden/in.txt", 403),
        ("/files/../../files/in.txt", 400),
        ("/fixed", 200),
        ("/%66ixed", 200),
        ("//./fixed", 200),
        ("/fixed/", 404),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answered = statuses(&say(site.http, request.as_bytes()));
        if answered != [expected] {
            wrong.push(format!("{target}: {answered:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_request_for_the_server_itself_is_answered_by_it() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    // RFC 9112, section 3.2.4: only OPTIONS asks for "*".
    for (method, expected) in [("OPTIONS", 204), ("GET", 400), ("POST", 400)] {
        let request = format!("{method} * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&answer(&site, &request)), expected, "{method}");
    }
    assert_eq!(recorder.requests(), []);
}

// ---------------------------------------------------------------- trailers

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

// ---------------------------------------------------------------- what is asked of an answer

/// Sends each request of a table on a connection of its own. A row has the standard and its section, the request with
/// its fields (`Host` and `Connection` are added), the status, fields of the answer (behind "!" those it has not), and the
/// body; fields are set apart by " & ". `{name}` stands for its text in `names`.
fn try_all(site: &Site, names: &[(&str, &str)], table: &str) {
    let mut wrong = Vec::new();
    let rows = table.lines().map(str::trim).filter(|row| !row.is_empty() && !row.starts_with('#'));
    for row in rows {
        let filled = names.iter().fold(row.to_owned(), |row, (name, text)| row.replace(name, text));
        let cells: Vec<_> = filled.split('|').map(str::trim).collect();
        let [_, sent, status, expected, body] = cells[..] else { panic!("five cells in {row}") };
        let mut lines = sent.split(" & ");
        let line = lines.next().unwrap_or_default();
        let fields: Vec<_> = lines.collect();
        let request =
            [&[&format!("{line} HTTP/1.1"), "Host: a", "Connection: close"], &fields[..], &["", ""]];
        let answer = say(site.http, request.concat().join("\r\n").as_bytes());
        let answer = String::from_utf8(answer).expect("text");
        let (head, got) = answer.split_once("\r\n\r\n").expect("a head");
        let has = |field: &str| head.lines().any(|line| line.starts_with(field));
        let is_as_expected = |field: &str| match field.strip_prefix('!') {
            Some(field) => !has(field),
            None => has(field),
        };
        if !head.starts_with(&format!("HTTP/1.1 {status} "))
            || !expected.split(" & ").all(is_as_expected)
            || got.trim_end() != body
        {
            wrong.push(format!("{row}\n\tis answered by {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const WHOLE: &str = "0123456789abcdefghij";

/// A site of files, and the entity tag of its file of 20 bytes, which was last modified in 2001.
fn dated_files(more: &str) -> (tempfile::TempDir, Site, String) {
    let folder = folder();
    for name in ["in.txt", "in.txt.gz"] {
        let file = fs::File::create(folder.path().join(name)).expect("a file");
        std::io::Write::write_all(&mut &file, WHOLE.as_bytes()).expect("its content");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
            .expect("a date");
    }
    fs::write(folder.path().join("empty"), "").expect("a file");
    let tables = format!(
        "[[route]]\npath = \"/files/*\"\nfiles = {{ root = \"{}\"{more} }}\n",
        folder.path().display()
    );
    let site = Site::start(IMPATIENT, &tables);
    let whole = answer(&site, "GET /files/in.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let etag = whole.field("etag").expect("an entity tag").to_owned();
    (folder, site, etag)
}

#[test]
fn ranges_of_a_file_are_those_of_the_standard() {
    let (_folder, site, etag) = dated_files("");
    let names = [
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
        ("{all}", "content-length: 20 & accept-ranges: bytes & !content-range"),
        ("{unsatisfiable}", "content-range: bytes */20 & content-length: 0"),
    ];
    try_all(
        &site,
        &names,
        r#"
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-99999 | 206 | content-range: bytes 0-19/20 & content-length: 20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-20 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-1 | 206 | content-range: bytes 19-19/20 | j
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-99999999999999999999999 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=0-99999 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=5-99999999999999999999999 | 206 | content-range: bytes 5-19/20 | 56789abcdefghij
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=05-06 | 206 | content-range: bytes 5-6/20 & content-length: 2 | 56
        9110, 14.1 | GET /files/in.txt & Range: BYTES=0-0 | 206 | content-range: bytes 0-0/20 | 0
        9110, 15.3.7 | GET /files/in.txt & Range: bytes=1-2 | 206 | etag: {etag} & last-modified: Sun, 09 Sep 2001 01:46:40 GMT & date: | 12
        9110, 15.5.17 | GET /files/in.txt & Range: bytes=20- | 416 | {unsatisfiable} |
        9110, 15.5.17 | GET /files/in.txt & Range: bytes=99999999999999999999999- | 416 | {unsatisfiable} |
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-0 | 416 | {unsatisfiable} |
        9110, 14.1.2 | GET /files/empty & Range: bytes=0- | 416 | content-range: bytes */0 |
        9110, 14.1.2 | GET /files/empty & Range: bytes=-5 | 200 | content-length: 0 |
        # A malformed range is ignored, as the whole is better than none (section 14.2).
        9110, 14.2 | GET /files/in.txt & Range: bytes=5-2 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes= | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=- | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=a-b | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=+1-2 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1,3-4 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1 & Range: bytes=3-4 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: lines=0-1 | 200 | {all} | {whole}
        9110, 14.2 | HEAD /files/in.txt & Range: bytes=0-1 | 200 | {all} |
        9110, 14.2 | HEAD /files/in.txt & Range: bytes=99- | 200 | {all} |
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: {etag} | 206 | date: | 0
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: W/{etag} | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: "other" | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=99- & If-Range: "other" | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:40 GMT | 206 | date: | 0
        9110, 5.6.7 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sunday, 09-Sep-01 01:46:40 GMT | 206 | date: | 0
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:41 GMT | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.2.2 | GET /files/in.txt & Range: bytes=0-0 & If-None-Match: {etag} | 304 | !content-range |
        9110, 13.2.2 | GET /files/in.txt & Range: bytes=0-0 & If-Match: "other" | 412 | !content-range |
    "#,
    );
}

#[test]
fn conditions_on_a_file_are_those_of_the_standard() {
    let (_folder, site, etag) = dated_files(", cache_control = \"max-age=5\"");
    let names = [
        ("{all}", "content-length: 20 & etag: {etag}"),
        (
            "{unmodified}",
            "etag: {etag} & cache-control: max-age=5 & date: & !content-type & !content-encoding",
        ),
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
    ];
    try_all(
        &site,
        &names,
        r#"
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: W/{etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: * | 304 | {unmodified} |
        9110, 13.1.2 | HEAD /files/in.txt & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: "a", "b,c" , {etag} | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: "a" & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: {etag} & If-None-Match: "a" | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: "a" & If-None-Match: "b" | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun Sep  9 01:46:40 2001 | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-None-Match: & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Match: * & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: yesterday | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-None-Match: "a" & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT & If-Modified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: {etag} | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: * | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: W/{etag} | 412 | content-length: 0 |
        9110, 13.1.1 | GET /files/in.txt & If-Match: "a" | 412 |  |
        9110, 5.3 | GET /files/in.txt & If-Match: "a" & If-Match: {etag} | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 412 |  |
        9110, 13.1.4 | GET /files/in.txt & If-Match: {etag} & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.2.1 | GET /files/none & If-Match: * | 404 | date: | no such file
        9110, 15.5.6 | POST /files/in.txt & Content-Length: 0 | 405 | allow: GET, HEAD, OPTIONS | files answer GET and HEAD only
        9110, 15.5.6 | TRACE /files/in.txt | 405 | allow: GET, HEAD, OPTIONS | files answer GET and HEAD only
        9110, 9.3.7 | OPTIONS /files/in.txt | 204 | allow: GET, HEAD, OPTIONS & !content-length |
        9110, 9.3.2 | HEAD /files/in.txt | 200 | {all} |
        9110, 9.3.2 | HEAD /files/none | 404 | content-length: 13 |
        9110, 10.2.2 | GET /files?a=//b | 307 | location: /files/?a=//b |
        9110, 10.2.2 | GET //files/sub?a | 307 | location: /files/sub/?a |
        # Nothing is encoded here: no answer depends on what a client accepts.
        9110, 12.5.5 | GET /files/in.txt & Accept-Encoding: gzip | 200 | !vary & !content-encoding | {whole}
    "#,
    );
}

#[test]
fn a_precompressed_file_is_negotiated_as_the_standard_says() {
    let (folder, site, etag) = dated_files(", precompressed = true");
    fs::write(folder.path().join("in.txt.gz"), "zipped").expect("a file");
    let names = [
        ("{plain}", "vary: accept-encoding & !content-encoding & content-length: 20"),
        (
            "{zipped}",
            "vary: accept-encoding & content-encoding: gzip & content-length: 6 & content-type: text/plain",
        ),
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
    ];
    try_all(
        &site,
        &names,
        r"
        9110, 12.5.3 | GET /files/in.txt | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip | 200 | {zipped} | zipped
        9110, 12.5.3 | HEAD /files/in.txt & Accept-Encoding: gzip | 200 | {zipped} |
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: GZIP;q=0.1 | 200 | {zipped} | zipped
        9110, 5.3 | GET /files/in.txt & Accept-Encoding: br & Accept-Encoding: gzip | 200 | {zipped} | zipped
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip;q=0 | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip;q=0.000, *;q=0.5 | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: identity | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: | 200 | {plain} | {whole}
        9110, 15.4.5 | GET /files/in.txt & If-None-Match: {etag} | 304 | vary: accept-encoding & etag: {etag} |
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1 & Accept-Encoding: gzip | 206 | content-range: bytes 0-1/6 & content-encoding: gzip & vary: accept-encoding | zi
    ",
    );
}

#[test]
fn a_file_was_never_modified_after_its_answer() {
    let (folder, site, _) = dated_files("");
    let file = fs::File::options().write(true).open(folder.path().join("in.txt")).expect("the file");
    let now = std::time::SystemTime::now();
    for ahead in [0, 3, 86_400] {
        file.set_modified(now + std::time::Duration::from_secs(ahead)).expect("a date");
        for more in ["", "Range: bytes=0-1\r\n", "If-None-Match: *\r\n"] {
            let request = format!("GET /files/in.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n");
            let answer = answer(&site, &request);
            let date =
                |field| httpdate::parse_http_date(answer.field(field).expect("a date")).expect("a date");
            assert!(date("last-modified") <= date("date"), "{answer:?}");
        }
    }
}

#[test]
fn a_fixed_answer_has_a_length_where_one_may_be() {
    let tables: String = [200, 204, 205, 304, 404]
        .map(|status| format!("[[route]]\npath = \"/{status}\"\nrespond = {{ status = {status} }}\n"))
        .concat();
    let site = Site::start(IMPATIENT, &tables);
    // RFC 9110, section 8.6: 204 has none, and that of 304 would be the length of what is not sent.
    try_all(
        &site,
        &[],
        r"
        9110, 8.6 | GET /200 | 200 | content-length: 0 & date: |
        9110, 8.6 | GET /204 | 204 | !content-length & date: |
        9110, 15.3.6 | GET /205 | 205 | content-length: 0 |
        9110, 8.6 | GET /304 | 304 | !content-length |
        9110, 8.6 | HEAD /304 | 304 | !content-length |
        9110, 8.6 | HEAD /204 | 204 | !content-length |
        9110, 8.6 | HEAD /404 | 404 | content-length: 0 |
    ",
    );
}

// ---------------------------------------------------------------- what passes through the proxy

/// A proxy in front of an upstream that answers so.
fn in_front_of(upstream_says: &str) -> (Recorder, Site) {
    let recorder = Recorder::answering(upstream_says);
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    (recorder, site)
}

#[test]
fn an_upstreams_answer_has_one_length_or_is_none() {
    // RFC 9112, section 6.3.
    let mut wrong = Vec::new();
    for (method, answer, expected) in [
        ("GET", "200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "200 | content-length: 5 | hello"),
        (
            "GET",
            "200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "200 | content-length: 5 | hello",
        ),
        ("GET", "200 OK\r\nContent-Length: 005\r\n\r\nhello", "200 | content-length: 5 | hello"),
        ("GET", "200 OK\r\nContent-Length: 5, 6\r\n\r\nhello", "502"),
        ("GET", "200 OK\r\nContent-Length: 5,\r\n\r\nhello", "502"),
        ("GET", "200 OK\r\nContent-Length:\r\n\r\nhello", "502"),
        ("GET", "200 OK\r\nContent-Length: +5\r\n\r\nhello", "502"),
        (
            "GET",
            "200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "200 | transfer-encoding: chunked | 5\r\nhello\r\n0",
        ),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "200 | transfer-encoding: chunked | 5\r\nhello\r\n0",
        ),
        ("HEAD", "200 OK\r\nContent-Length: 5, 5\r\n\r\n", "200 | content-length: 5 | "),
        ("HEAD", "200 OK\r\nContent-Length: 5, 6\r\n\r\n", "502"),
        ("HEAD", "200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "502"),
        ("HEAD", "200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "200 | "),
        ("GET", "304 Not Modified\r\nContent-Length: 5, 5\r\n\r\n", "304 | "),
        ("GET", "204 No Content\r\nContent-Length: 5\r\n\r\n", "204 | "),
    ] {
        let (_recorder, site) = in_front_of(&format!("HTTP/1.1 {answer}"));
        let request = format!("{method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let got = String::from_utf8(say(site.http, request.as_bytes())).expect("text");
        let (head, body) = got.split_once("\r\n\r\n").expect("a head");
        let framing =
            head.lines().filter(|line| line.starts_with("content-length") || line.contains("chunked"));
        let status = head.split(' ').nth(1).expect("a status");
        let got = match status {
            "502" => "502".to_owned(),
            _ => [&[status], &framing.collect::<Vec<_>>()[..], &[body.trim_end()]].concat().join(" | "),
        };
        if got != expected {
            wrong.push(format!("{method} {answer:?}: {got:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_field_that_only_looks_like_one_of_framing_or_routing_is_not_passed_on() {
    let (recorder, site) = in_front_of("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let request = "POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nContent_Length: 500\r\n\
        CONTENT_LENGTH: 500\r\nTransfer_Encoding: chunked\r\nTransfer.Encoding: chunked\r\nKeep_Alive: 5\r\n\
        Proxy_Connection: keep-alive\r\nProxy_Authorization: x\r\nX_Forwarded_Host: evil\r\nX_Real_IP: 6.6.6.6\r\n\
        HTTP2_Settings: x\r\nHTTP2-Settings: x\r\nMax_Forwards: 0\r\nX_Own: kept\r\nX-Own_Too: kept\r\n\r\nhello";
    assert_eq!(status(&answer(&site, request)), 200);
    let request = recorder.requests().remove(0);
    assert_eq!(request.body, b"hello");
    let expected = [
        "content-length",
        "forwarded",
        "host",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-own_too",
        "x_own",
    ];
    let mut names: Vec<_> = request.fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn an_answer_may_have_hundreds_of_fields() {
    let cookies: Vec<_> = (0..600).map(|n| format!("Set-Cookie: c{n}=v\r\n")).collect();
    let (_recorder, site) =
        in_front_of(&format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", cookies.concat()));
    let answer = answer(&site, "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&answer), 200);
    let cookies: Vec<_> = answer.fields.iter().filter(|(name, _)| name == "set-cookie").collect();
    assert_eq!(cookies.len(), 600);
    assert!(
        cookies.iter().enumerate().all(|(n, (_, cookie))| *cookie == format!("c{n}=v")),
        "in their order"
    );
}

#[test]
fn a_space_before_the_colon_of_an_answers_field_is_removed() {
    // RFC 9112, section 5.1. Of a request it is refused.
    let (_recorder, site) = in_front_of("HTTP/1.1 200 OK\r\nX-Own : kept\r\nContent-Length\t: 2\r\n\r\nok");
    let answer = answer(&site, "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(
        (status(&answer), answer.field("x-own"), &*answer.body),
        (200, Some("kept"), b"ok".as_slice())
    );
}

#[test]
fn the_upstream_learns_through_whom_a_request_came() {
    let (recorder, site) = in_front_of("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    // RFC 9110, section 7.6.3: the version is that of the message as it was received.
    for (request, via) in [
        ("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "1.1 steadfast"),
        ("GET /a HTTP/1.0\r\nHost: a\r\n\r\n", "1.0 steadfast"),
        (
            "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nVia: 1.0 fred, 2 lucy (edge)\r\nVia: 1.1 joe\r\n\r\n",
            "1.0 fred, 2 lucy (edge), 1.1 joe, 1.1 steadfast",
        ),
        ("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close, via\r\nVia: 1.0 fred\r\n\r\n", "1.1 steadfast"),
    ] {
        say(site.http, request.as_bytes());
        assert_eq!(recorder.requests().last().expect("a request").field("via"), Some(via));
    }
}

#[test]
fn an_expectation_of_a_client_that_knows_none_is_not_passed_on() {
    let (recorder, site) = in_front_of("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    // RFC 9110, section 10.1.1.
    for (request, passed) in [
        ("POST /a HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi", None),
        (
            "POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi",
            Some("100-continue"),
        ),
    ] {
        let answers = say(site.http, request.as_bytes());
        let interim = answers.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(interim, passed.is_some(), "{}", answers.escape_ascii());
        assert_eq!(recorder.requests().last().expect("a request").field("expect"), passed);
    }
}

#[test]
fn a_request_goes_no_further_than_it_may() {
    let (recorder, site) = in_front_of("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    // RFC 9110, section 7.6.2: for OPTIONS and TRACE, and for these alone.
    for (method, written, expected, passed) in [
        ("OPTIONS", "0", 204, None),
        ("TRACE", "0", 501, None),
        ("OPTIONS", "00", 204, None),
        ("OPTIONS", "1", 200, Some("0")),
        ("TRACE", "7", 200, Some("6")),
        ("OPTIONS", "99999999999999999999", 200, Some("18446744073709551614")),
        ("OPTIONS", "a few", 200, Some("a few")),
        ("GET", "0", 200, Some("0")),
        ("GET", "7", 200, Some("7")),
    ] {
        let before = recorder.requests().len();
        let request = format!(
            "{method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nMax-Forwards: {written}\r\n\r\n"
        );
        assert_eq!(status(&answer(&site, &request)), expected, "{method} {written}");
        let requests = recorder.requests();
        let got: Vec<_> = requests[before..].iter().map(|request| request.field("max-forwards")).collect();
        assert_eq!(got, passed.map(Some).as_slice(), "{method} {written}");
    }
}
