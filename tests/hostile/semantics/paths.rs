//! A path and its spellings: which route answers, and what is passed on.

use super::{answer, folder, status};
use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, files, proxy, respond};
use crate::wire::{say, statuses};

/// A route that refuses whatever is below it.
fn forbidden(path: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nrespond = {{ status = 403, body = \"forbidden\" }}\n")
}

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
