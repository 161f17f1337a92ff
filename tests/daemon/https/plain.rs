//! Requests with TLS and without it: how those that come without are sent to TLS, and kept there.

use axum::http::Request;
use steadfast_harness::Upstream;

use super::{Asked, CA, HELLO, Site, exchange, get, get_http2};

#[test]
fn a_request_without_tls_is_sent_on_to_tls_but_for_those_of_a_ca() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let site = Site::start_with("http.redirect_to_https = true", &[&server], "", &[], HELLO);
    let port = site.addresses()[1].port();
    let location = |target: &str, host: &str| {
        let answer =
            site.plain(&format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        let line = answer.lines().find_map(|line| line.strip_prefix("location: ")).expect("a location");
        line.to_owned()
    };
    assert_eq!(
        location("/a/../b?c=%20d", "Example.org:80"),
        format!("https://Example.org:{port}/a/../b?c=%20d")
    );
    assert_eq!(location("/", "[::1]:80"), format!("https://[::1]:{port}/"));
    assert_eq!(location("http://me@other.org:81/x", "example.org"), format!("https://other.org:{port}/x"));
    assert_eq!(
        location("/.well-known/acme-challenge/../../x", "a"),
        format!("https://a:{port}/.well-known/acme-challenge/../../x")
    );
    assert!(site.plain(&get("a").replace(" / ", " /.well-known/acme-challenge/x ")).ends_with("hello"));
    assert!(site.plain("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 400 "));
    let mut client = site.client(&Asked::of("example.org")).expect("a connection");
    assert!(exchange(&mut client, &get("example.org")).expect("an answer").ends_with("hello"));
}

#[test]
fn the_answer_to_a_request_over_tls_and_no_other_says_that_it_is_to_be_asked_over_tls() {
    let server = CA.issue("example.org", &["example.org"], |_| {});
    let upstream = Upstream::start();
    let proxy = format!("[[route]]\npath = \"/proxied\"\nproxy = \"http://{}\"\n", upstream.address());
    let site = Site::start_with(
        "http.h2c = true",
        &[&server],
        "hsts = \"max-age=31536000\"",
        &[],
        &format!("{HELLO}{proxy}"),
    );
    let said = |answer: &str| {
        let lines = answer.lines().filter_map(|line| line.strip_prefix("strict-transport-security: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let ask = |request: &str| {
        let mut client = site.client(&Asked::of("example.org")).expect("a connection");
        exchange(&mut client, request).expect("an answer")
    };
    let proxied = get("a").replace(" / ", " /proxied ");
    for request in [&get("a"), &get("a b"), "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"] {
        let answer = ask(request);
        assert_eq!(said(&answer), ["max-age=31536000"], "{request} {answer}");
        assert!(said(&site.plain(request)).is_empty(), "{request}");
    }
    let ask_http2 = |request: axum::http::request::Builder| {
        let request = request.body(()).expect("a request");
        let answer = site.over_http2(&Asked::of("example.org"), request).expect("an answer");
        let said = answer.headers().get_all("strict-transport-security").iter();
        said.map(|said| said.to_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    for request in [Request::get("https://a/"), Request::get("https://a/../x"), Request::connect("a:1")] {
        assert_eq!(ask_http2(request), ["max-age=31536000"]);
    }
    assert!(
        !site.over_plain_http2(get_http2("http://a/")).headers().contains_key("strict-transport-security")
    );
    // In the place of the upstream's own.
    std::thread::scope(|scope| {
        let with_http1 = scope.spawn(|| said(&ask(&proxied)));
        let next = || {
            let mut exchange = upstream.next_request();
            exchange.send("HTTP/1.1 204 No Content\r\nStrict-Transport-Security: max-age=0\r\n\r\n");
        };
        next();
        assert_eq!(with_http1.join().expect("an answer"), ["max-age=31536000"]);
        let with_http2 = scope.spawn(|| ask_http2(Request::get("https://a/proxied")));
        next();
        assert_eq!(with_http2.join().expect("an answer"), ["max-age=31536000"]);
    });
}
