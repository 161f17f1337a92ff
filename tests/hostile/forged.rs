//! The claims of a client about itself.

use crate::recorder::Recorder;
use crate::site::{IMPATIENT, Site, proxy};
use crate::wire::{Message, say, statuses};

const CLAIMS: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Port: 666\r\nX-Forwarded-Prefix: /evil\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\n\
    X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6;host=evil;proto=https\r\nfOrWaRdEd: for=6.6.6.7\r\nProxy: http://evil\r\n";

/// The request with these fields as the upstream gets it.
fn passed(limits: &str, fields: &str) -> Message {
    let recorder = Recorder::start();
    let site = Site::start(&format!("{IMPATIENT}{limits}"), &proxy("/*", recorder.address, ""));
    let request = format!("GET /a HTTP/1.1\r\nHost: me:80\r\nConnection: close\r\n{fields}\r\n");
    assert_eq!(statuses(&say(site.http, request.as_bytes())), [200]);
    recorder.requests().remove(0)
}

#[test]
fn a_stranger_is_not_believed_where_a_request_comes_from() {
    for limits in ["", "trusted_proxies = [\"10.0.0.0/8\", \"::1\", \"unix\"]"] {
        let request = passed(limits, CLAIMS);
        assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(request.field("x-forwarded-host"), Some("me:80"));
        assert_eq!(request.field("x-forwarded-proto"), Some("http"));
        assert_eq!(request.field("forwarded"), Some("for=127.0.0.1;host=\"me:80\";proto=http"));
        for (name, value) in &request.fields {
            assert!(!value.contains("6.6.6") && !value.contains("evil") && value != "666", "{name}: {value}");
        }
    }
}

#[test]
fn a_trusted_proxy_is_believed_and_added_to() {
    let request = passed("trusted_proxies = [\"127.0.0.0/8\"]", CLAIMS);
    assert_eq!(request.field("x-forwarded-for"), Some("6.6.6.6, 127.0.0.1"));
    assert_eq!(request.field("x-forwarded-host"), Some("evil"));
    assert_eq!(request.field("x-forwarded-proto"), Some("https"));
    let forwarded = request.field("forwarded").unwrap();
    assert!(
        forwarded.starts_with("for=6.6.6.6;host=evil;proto=https, for=6.6.6.7, for=127.0.0.1"),
        "{forwarded}"
    );
    // Fields about an origin that this proxy does not set are not passed on, whoever sends them.
    for gone in ["x-forwarded-port", "x-forwarded-prefix", "x_forwarded_for", "x-real-ip", "proxy"] {
        assert_eq!(request.field(gone), None);
    }
}

#[test]
fn what_connection_lists_is_gone_but_never_what_the_message_stands_on() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    let request = "POST /a HTTP/1.1\r\nHost: me\r\nConnection: close, X-Secret, Host, Content-Length, X-Forwarded-For, Forwarded\r\n\
        X-Secret: x\r\nContent-Length: 5\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: Basic eA==\r\n\r\nhello";
    assert_eq!(statuses(&say(site.http, request.as_bytes())), [200]);
    let request = recorder.requests().remove(0);
    assert_eq!((request.field("host"), request.field("content-length")), (Some("me"), Some("5")));
    assert_eq!(request.body, b"hello");
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert!(request.field("forwarded").is_some());
    for gone in ["x-secret", "keep-alive", "te", "proxy-authorization", "connection", "transfer-encoding"] {
        assert_eq!(request.field(gone), None);
    }
}

#[test]
fn nothing_in_a_request_becomes_a_field_of_its_own() {
    let recorder = Recorder::start();
    let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
    for request in [
        "GET /a%0d%0aX-Injected:%20y HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n",
        "GET /a?b=%0d%0a%0d%0aGET%20/x HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n",
        "GET http://b\"c/a HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n",
        "GET http://user:word@evil:80/a HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: me\";for=6.6.6.6;x=\"\r\nConnection: close\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: me\r\nConnection: close\r\nTrailer: X-Injected, Host\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Injected: y\r\nHost: evil\r\nContent-Length: 7\r\n\r\n",
    ] {
        let answered = statuses(&say(site.http, request.as_bytes()));
        assert!(matches!(answered[..], [200 | 400]), "{request:?}: {answered:?}");
    }
    assert_eq!(recorder.malformed(), [""; 0]);
    for request in recorder.requests() {
        assert_eq!(request.field("x-injected"), None, "{request:?}");
        let host = request.field("host").unwrap();
        assert!(["me", "evil:80"].contains(&host), "{request:?}");
        assert!(!request.field("forwarded").unwrap().contains("6.6.6.6"), "{request:?}");
        // Of the trailers only what can do no harm there goes on.
        assert!(request.trailers.iter().all(|(name, _)| name == "x-injected"), "{request:?}");
    }
}

#[test]
fn an_upstreams_answer_is_one_answer_for_the_client() {
    for (answer, status) in [
        // Two lengths, or a length and chunks: no telling where the answer ends.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", 502),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", 502),
        ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", 502),
        ("HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n", 502),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 Smuggled\r\nContent-Length: 0\r\n\r\n",
            200,
        ),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", 204),
        ("HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 Smuggled\r\nContent-Length: 0\r\n\r\n", 304),
    ] {
        let recorder = Recorder::answering(answer);
        let site = Site::start(IMPATIENT, &proxy("/*", recorder.address, ""));
        // On one connection, so that whatever is left of the first answer would be the second.
        let requests =
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answers = say(site.http, requests.as_bytes());
        assert_eq!(statuses(&answers), [status, status], "{answer:?}: {}", answers.escape_ascii());
        assert!(!answers.escape_ascii().to_string().contains("Smuggled"), "{}", answers.escape_ascii());
    }
}
