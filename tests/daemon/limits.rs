//! No client takes more than its share: of bytes, of time, of connections.

use std::time::Duration;

use axum::body::Body;
use axum::routing::post;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::client::Lost;
use crate::handlers::{Gate, router};
use crate::service::Service;

/// The latest that the sweep over the connections may come.
const SWEEP: Duration = Duration::from_secs(1);

fn assert_about(took: Duration, limit: Duration) {
    assert!((limit..limit + SWEEP).contains(&took), "{took:?} instead of {limit:?}");
}

// ---------------------------------------------------------------------------
// Bytes
// ---------------------------------------------------------------------------

const ONE_KIB: &str = "http.body_limit = \"1KiB\"\n";

#[tokio::test]
async fn a_body_announced_too_large_is_refused_with_413_before_it_is_sent() {
    let service = Service::start(ONE_KIB, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    client.send("POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 1025\r\n\r\n").await;
    let response = client.receive().await.unwrap();
    assert_eq!((response.status, response.text()), (413, "the body is larger than 1024 bytes\n"));
}

#[tokio::test]
async fn the_413_reaches_a_client_that_sends_its_whole_body_first() {
    let service = Service::start(ONE_KIB, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    let body = "x".repeat(100_000);
    client
        .send(format!("POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .await;
    assert_eq!(client.receive().await.unwrap().status, 413);
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_refused_with_413() {
    let service = Service::start(ONE_KIB, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    client.send("POST /length HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let chunk = format!("200\r\n{}\r\n", "x".repeat(0x200));
    for _ in 0..3 {
        client.send(&chunk).await;
    }
    assert_eq!(client.receive().await.unwrap().status, 413);
}

#[tokio::test]
async fn a_body_as_large_as_the_limit_is_taken() {
    let service = Service::start(ONE_KIB, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    let body = "x".repeat(1024);
    client.send(format!("POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 1024\r\n\r\n{body}")).await;
    assert_eq!(client.receive().await.unwrap().text(), "1024");
}

#[tokio::test]
async fn the_configs_limit_counts_where_the_routers_own_would_be_smaller() {
    let service = Service::start("http.body_limit = \"4MiB\"\n", |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    let body = "x".repeat(3 << 20);
    client
        .send(format!("POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len()))
        .await;
    client.send(&body).await;
    assert_eq!(client.receive().await.unwrap().text(), body.len().to_string());
}

// ---------------------------------------------------------------------------
// Time
// ---------------------------------------------------------------------------

const TIMEOUTS: &str = "http.header_timeout = \"10s\"\nhttp.keepalive_timeout = \"75s\"\n";

#[tokio::test]
async fn half_a_head_is_answered_with_408_after_the_header_timeout() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    let began = Instant::now();
    client.send("GET / HTT").await;
    let response = client.receive().await.unwrap();
    assert_about(began.elapsed(), Duration::from_secs(10));
    assert_eq!((response.status, response.header("connection")), (408, Some("close")));
    assert_eq!(client.receive().await, Err(Lost::Closed));
}

#[tokio::test]
async fn a_head_that_trickles_in_has_no_more_time_than_another() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    let began = Instant::now();
    let mut bytes = 0;
    while client.is_open_and_silent().await {
        client.send(if bytes == 0 { "GET / HTTP/1.1\r\nX: " } else { "x" }).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        bytes += 1;
        assert!(bytes < 60, "it is still served");
    }
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_silently_after_the_header_timeout() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let began = Instant::now();
    let mut client = service.connect().await;
    assert_eq!(client.receive().await, Err(Lost::Closed));
    assert_about(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test]
async fn an_idle_connection_is_closed_silently_after_the_keepalive_timeout() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    client.get("/").await.unwrap();
    let began = Instant::now();
    assert_eq!(client.receive().await, Err(Lost::Closed));
    assert_about(began.elapsed(), Duration::from_secs(75));
}

/// The sweep's step, in a clock that stands while anyone has anything to do.
const STEP: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_keepalive_timeout_is_exact_to_the_step_of_the_sweep_however_short_it_is() {
    for limit in [100, 250, 400, 1000].map(Duration::from_millis) {
        let keys = format!("http.keepalive_timeout = \"{}ms\"\n", limit.as_millis());
        let service = Service::start_with_stopped_clock(&keys, |daemon| daemon.router(router())).await;
        let mut client = service.connect().await;
        client.get("/").await.unwrap();
        let began = Instant::now();
        assert_eq!(client.receive().await, Err(Lost::Closed));
        let took = began.elapsed();
        // Milliseconds are what the daemon counts in.
        assert!(
            (limit..=limit + STEP + Duration::from_millis(2)).contains(&took),
            "{took:?} instead of {limit:?}"
        );
        tokio::time::resume();
    }
}

#[tokio::test]
async fn each_request_starts_the_keepalive_timeout_anew() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn half_a_head_after_an_idle_time_is_answered_with_408_too() {
    let service = Service::start_with_stopped_clock(TIMEOUTS, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    client.get("/").await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let began = Instant::now();
    client.send("GET").await;
    assert_eq!(client.receive().await.unwrap().status, 408);
    assert_about(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test]
async fn a_handler_may_take_longer_than_every_timeout_of_its_client() {
    let gate = Gate::new();
    let add = |daemon: steadfast::Daemon| daemon.router(router().route("/gate", gate.route()));
    let service = Service::start_with_stopped_clock(TIMEOUTS, add).await;
    let mut client = service.held(&gate, "/gate").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    gate.open();
    assert_eq!(client.receive().await.unwrap().text(), "passed");
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_has_its_whole_read_timeout_from_when_it_is_waited_for() {
    const BUSY: Duration = Duration::from_millis(2500);
    let busy = post(async |body: Body| {
        tokio::time::sleep(BUSY).await;
        axum::body::to_bytes(body, usize::MAX).await.map_or(0, |body| body.len()).to_string()
    });
    let add = |daemon: steadfast::Daemon| daemon.router(router().route("/busy", busy));
    let service = Service::start_with_stopped_clock("http.read_timeout = \"3s\"\n", add).await;
    let mut client = service.connect().await;
    client.send("POST /busy HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf").await;
    let began = Instant::now();
    assert_eq!(client.receive().await.unwrap().status, 408);
    assert_about(began.elapsed(), BUSY + Duration::from_secs(3));
}

/// Reads a body in a task of its own, and answers with its length.
fn elsewhere() -> axum::routing::MethodRouter {
    post(async |body: Body| {
        let read = TaskTracker::new().spawn(axum::body::to_bytes(body, usize::MAX));
        read.await.expect("no panic").map_or(0, |body| body.len()).to_string()
    })
}

async fn service_reading_elsewhere(keys: &str) -> Service {
    let add = |daemon: steadfast::Daemon| daemon.router(router().route("/elsewhere", elsewhere()));
    Service::start_with_stopped_clock(keys, add).await
}

fn begin_chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
}

#[tokio::test]
async fn bytes_of_a_body_in_chunks_that_bring_its_reader_nothing_do_not_end_the_wait_for_the_client() {
    // What comes first, and what comes later, of which the reader is given nothing.
    const BODIES: [(&str, &str); 8] = [
        ("", "5"),
        ("", "5\r\n"),
        ("", "5;extension"),
        ("5\r\nhello", "\r\n"),
        ("5\r\nhello\r\n", "0"),
        ("5\r\nhello\r\n", "0\r\n"),
        ("5\r\nhello\r\n0\r\n", "X"),
        ("5\r\nhello\r\n0\r\n", "X: trailer\r\n"),
    ];
    let service = service_reading_elsewhere("http.read_timeout = \"3s\"\n").await;
    for path in ["/length", "/elsewhere"] {
        for (first, later) in BODIES {
            let mut client = service.connect().await;
            client.send(begin_chunked(path) + first).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.send(later).await;
            let began = Instant::now();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let request = &service.status().await["requests"][0];
            assert_eq!(request["waiting_for"], "the client to send the body", "{path} {first:?} {later:?}");
            assert_eq!(client.receive().await.unwrap().status, 408);
            assert_about(began.elapsed(), Duration::from_secs(3));
        }
    }
}

#[tokio::test]
async fn an_extension_or_a_trailer_that_trickles_in_is_answered_with_408_after_the_grace() {
    const GRACE: Duration = Duration::from_secs(5);
    let service = service_reading_elsewhere(
        "http.read_timeout = \"1h\"\nhttp.min_rate = \"240B\"\nhttp.min_rate_grace = \"5s\"\n",
    )
    .await;
    for path in ["/length", "/elsewhere"] {
        for begun in ["5;", "5\r\nhello\r\n0\r\nX: "] {
            let mut client = service.connect().await;
            client.send(begin_chunked(path) + begun).await;
            let began = Instant::now();
            while client.is_open_and_silent().await {
                assert!(began.elapsed() < 2 * GRACE, "{path} {begun:?}: it is still waited for");
                tokio::time::sleep(Duration::from_millis(200)).await;
                client.send("x").await;
            }
            assert!(began.elapsed() >= GRACE, "{path} {begun:?}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test]
async fn a_body_that_has_come_is_not_waited_for_however_late_its_handler_reads_it() {
    let late = post(async |mut body: Body| {
        // Asks once, in vain, and turns to something else.
        assert!(body.frame().now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(600)).await;
        axum::body::to_bytes(body, usize::MAX).await.map_or(0, |body| body.len()).to_string()
    });
    let add = |daemon: steadfast::Daemon| daemon.router(router().route("/late", late));
    let service = Service::start_with_stopped_clock("http.read_timeout = \"3s\"\n", add).await;
    let mut client = service.connect().await;
    client.send("POST /late HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n").await;
    service.wait_for_status("waiting for it", |s| s["requests"][0]["path"] == "/late").await;
    client.send("hello").await;
    assert_eq!(client.receive().await.unwrap().text(), "5");
}

// ---------------------------------------------------------------------------
// Connections
// ---------------------------------------------------------------------------

#[tokio::test]
async fn beyond_max_connections_a_client_waits_and_is_served_when_another_closes() {
    let service = Service::start("http.max_connections = 2\n", |daemon| daemon.router(router())).await;
    let mut first = service.connect().await;
    let mut second = service.connect().await;
    first.get("/").await.unwrap();
    second.get("/").await.unwrap();

    let mut waiting: Vec<_> = [service.connect().await, service.connect().await].into();
    for client in &mut waiting {
        client.ask("/path/waited").await;
    }
    // A request that is served meanwhile shows that the others could have been.
    for _ in 0..20 {
        assert_eq!(second.get("/").await.unwrap().status, 200);
        for client in &mut waiting {
            assert!(client.is_open_and_silent().await);
        }
    }
    assert_eq!(service.status().await["totals"]["connections"], 2);

    drop(first);
    let third = waiting.remove(0).receive().await.unwrap();
    assert_eq!((third.status, third.text()), (200, "waited"));
    drop(second);
    assert_eq!(waiting.remove(0).receive().await.unwrap().text(), "waited");
}

#[tokio::test]
async fn a_stop_answers_those_who_still_wait_at_the_limit() {
    let gate = Gate::new();
    let add = |daemon: steadfast::Daemon| daemon.router(router().route("/gate", gate.route()));
    let mut service = Service::start("http.max_connections = 1\nshutdown.linger = \"0s\"\n", add).await;
    let mut first = service.held(&gate, "/gate").await;
    let mut second = service.connect().await;
    second.ask("/").await;

    service.begin_stop().await;
    assert_eq!(second.receive().await.unwrap().text(), "hello");
    gate.open();
    assert_eq!(first.receive().await.unwrap().text(), "passed");
    assert_eq!(service.exit().await, steadfast::Exit::Clean);
}
