//! A connection that rests is taken apart and put together again; nobody can tell.

use std::cell::Cell;
use std::time::Duration;

use axum::body::Body;
use axum::routing::post;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use steadfast::Daemon;
use tokio_util::task::TaskTracker;

use crate::handlers::{Gate, router};
use crate::service::{Service, open_connections};

/// Longer than any look of the sweep takes to come round.
const A_REST: Duration = Duration::from_secs(1);
/// A rest is no timeout.
const PATIENT: &str = "http.header_timeout = \"24h\"\nhttp.keepalive_timeout = \"24h\"\n";

async fn service() -> Service {
    Service::start_with_stopped_clock(PATIENT, |daemon| daemon.router(router())).await
}

async fn parked(service: &Service) -> u64 {
    service.status().await["connections"]["parked"].as_u64().unwrap()
}

async fn wait_for_none_open(service: &Service) {
    service.wait_for_status("without connections", |s| open_connections(s) == 0).await;
}

#[tokio::test]
async fn a_connection_is_parked_before_its_first_request_and_right_after_each_answer() {
    let service = service().await;
    let mut client = service.connect().await;
    service.wait_for_status("accepted", |s| s["connections"]["parked"] == 1).await;
    for name in ["before", "after"] {
        assert_eq!(client.get(&format!("/path/{name}")).await.unwrap().text(), name);
        service.wait_for_status("parked", |s| s["connections"]["parked"] == 1).await;
    }
    assert_eq!(service.status().await["totals"]["connections"], 1);
}

#[tokio::test]
async fn a_connection_rests_and_answers_any_number_of_times() {
    let service = service().await;
    let mut client = service.connect().await;
    for n in 0..200 {
        let name = format!("time-{n}");
        assert_eq!(client.get(&format!("/path/{name}")).await.unwrap().text(), name);
        tokio::time::sleep(A_REST).await;
        assert_eq!(parked(&service).await, 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_rests_is_forgotten() {
    let service = service().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = service.connect().await;
        client.get("/").await.unwrap();
        clients.push(client);
    }
    tokio::time::sleep(A_REST).await;
    assert_eq!(parked(&service).await, 10);
    drop(clients);
    wait_for_none_open(&service).await;
}

#[tokio::test]
async fn half_a_head_that_came_with_the_request_before_is_not_lost_by_a_rest() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("GET /path/one HTTP/1.1\r\nHost: test\r\n\r\nGET /path/two HT").await;
    assert_eq!(client.receive().await.unwrap().text(), "one");
    tokio::time::sleep(A_REST * 3).await;
    client.send("TP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!(client.receive().await.unwrap().text(), "two");
}

const SMUGGLED: &str = "GET /path/smuggled HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_small_body_that_nobody_read_is_thrown_away_and_never_taken_for_a_request() {
    let service = service().await;
    for rest in [Duration::ZERO, A_REST] {
        let mut client = service.connect().await;
        let length = SMUGGLED.len();
        client.send(format!("POST /ignore HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")).await;
        assert_eq!(client.receive().await.unwrap().text(), "ignored");
        tokio::time::sleep(rest).await;
        client.send(SMUGGLED).await;
        assert_eq!(client.get("/path/next").await.unwrap().text(), "next", "after {rest:?}");
    }
}

#[tokio::test]
async fn a_large_body_that_nobody_read_closes_the_connection_and_is_never_taken_for_a_request() {
    let service = service().await;
    for rest in [Duration::ZERO, A_REST] {
        let mut client = service.connect().await;
        let head = "POST /ignore HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n";
        client.send(head).await;
        let answer = client.receive().await.unwrap();
        assert_eq!((answer.text(), answer.header("connection")), ("ignored", Some("close")));
        tokio::time::sleep(rest).await;
        client.send(SMUGGLED).await;
        let answers = String::from_utf8(client.rest().await).unwrap();
        assert_eq!(answers, "", "after {rest:?}");
    }
}

// ---------------------------------------------------------------------------
// Any stream of requests, cut anywhere
// ---------------------------------------------------------------------------

/// One request: its bytes, and whether its answer has no body.
#[derive(Clone, Debug)]
struct Request {
    bytes: Vec<u8>,
    is_head: bool,
}

fn request() -> impl Strategy<Value = Request> {
    let name = "[a-z]{1,12}";
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let plain = |bytes: String| Request { bytes: bytes.into_bytes(), is_head: false };
    prop_oneof![
        name.prop_map(move |n| plain(format!("GET /path/{n} HTTP/1.1\r\nHost: test\r\n\r\n"))),
        name.prop_map(|n| Request {
            bytes: format!("HEAD /path/{n} HTTP/1.1\r\nHost: test\r\n\r\n").into_bytes(),
            is_head: true,
        }),
        Just(plain("GET /chunks HTTP/1.1\r\nHost: test\r\n\r\n".into())),
        Just(plain("GET /nowhere HTTP/1.1\r\nHost: test\r\n\r\n".into())),
        (prop::bool::ANY, body).prop_map(|(streamed, body)| {
            let path = if streamed { "/echo" } else { "/length" };
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
            Request { bytes: [head.as_bytes(), &body].concat(), is_head: false }
        }),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 0..4).prop_map(|chunks| {
            let mut bytes =
                b"POST /length HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in chunks {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            Request { bytes, is_head: false }
        }),
    ]
}

/// Requests, and where to rest between their bytes.
fn stream_with_rests() -> impl Strategy<Value = (Vec<Request>, Vec<prop::sample::Index>)> {
    (prop::collection::vec(request(), 1..6), prop::collection::vec(any::<prop::sample::Index>(), 0..6))
}

/// The answers to a stream of requests that is sent with rests after so many bytes; and how often a rest parked it.
async fn answers(service: &Service, requests: &[Request], rests: &[usize]) -> (Vec<String>, u64) {
    let stream: Vec<u8> = requests.iter().flat_map(|r| r.bytes.clone()).collect();
    let mut client = service.connect().await;
    let mut sent = 0;
    let mut parkings = 0;
    for &rest in rests {
        client.send(&stream[sent..rest]).await;
        sent = rest;
        tokio::time::sleep(A_REST).await;
        parkings += parked(service).await;
    }
    client.send(&stream[sent..]).await;
    let mut answers = Vec::new();
    for request in requests {
        let answer = if request.is_head { client.receive_head().await } else { client.receive().await };
        let mut answer = answer.expect("every request has an answer");
        answer.headers.retain(|(name, _)| name != "date" && name != "x-request-id");
        answers.push(format!("{answer:?}"));
    }
    assert!(client.is_open_and_silent().await, "an answer nobody asked for");
    drop(client);
    wait_for_none_open(service).await;
    (answers, parkings)
}

#[test]
fn a_rest_at_any_byte_changes_no_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = runtime.block_on(service());
    let parkings = Cell::new(0);
    TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() })
        .run(&stream_with_rests(), |(requests, rests)| {
            let length: usize = requests.iter().map(|r| r.bytes.len()).sum();
            let mut rests: Vec<_> = rests.iter().map(|at| at.index(length + 1)).collect();
            // The end of one request, where the next begins, is the likeliest place.
            rests.push(requests[0].bytes.len());
            rests.sort_unstable();
            runtime.block_on(async {
                let (expected, _) = answers(&service, &requests, &[]).await;
                let (got, parked) = answers(&service, &requests, &rests).await;
                parkings.set(parkings.get() + parked);
                prop_assert_eq!(got, expected);
                Ok(())
            })
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let parkings = parkings.get();
    assert!(parkings >= 200, "parked only {parkings} times in 200 streams");
}

#[tokio::test]
async fn a_body_that_is_read_behind_the_next_head_is_not_taken_for_the_next_body() {
    let (reading, late) = (Gate::new(), Gate::new());
    let (before_reading, before_answering) = (reading.clone(), late.clone());
    // Answers at once, and reads the body in a task of its own, a step before and the rest after the gate.
    let early = post(async move |mut body: Body| {
        assert!(body.frame().now_or_never().is_none());
        TaskTracker::new().spawn(async move {
            before_reading.pass().await;
            while body.frame().await.is_some() {}
            before_reading.pass().await;
        });
        "early"
    });
    let ignores = post(async move || {
        before_answering.pass().await;
        "ignored"
    });
    let add = |daemon: Daemon| daemon.router(router().route("/early", early).route("/held", ignores));
    let service = Service::start("", add).await;
    let mut client = service.connect().await;
    client.send("POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(client.receive().await.unwrap().text(), "early");
    let body = "GET /path/smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
    let head = format!("POST /held HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send("hello".to_owned() + &head).await;
    late.arrived().await;
    reading.arrived().await;
    reading.open();
    reading.arrived().await;
    late.open();
    assert_eq!(client.receive().await.unwrap().text(), "ignored");
    client.send(body).await;
    client.ask("/path/asked").await;
    assert_eq!(client.receive().await.unwrap().text(), "asked");
}
