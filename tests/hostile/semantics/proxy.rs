//! What the proxy passes on, in either direction.

use super::{answer, status};
use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy};
use crate::wire::say;

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
        "traceparent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-own_too",
        "x-request-id",
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
