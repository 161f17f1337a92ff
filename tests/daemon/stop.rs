//! A stop asked for while there is work: what was begun is finished, and nobody waits for nothing.

use std::time::Duration;

use steadfast::{Daemon, Exit};
use steadfast_harness::print_figure;
use tokio::time::Instant;
use tracing::Level;

use crate::client::Lost;
use crate::handlers::{Gate, events, router};
use crate::service::Service;

/// The keys of a stop that waits for nothing but work.
const NO_LINGER: &str = "shutdown.linger = \"0s\"\n";

fn with(gate: &Gate) -> impl FnOnce(Daemon) -> Daemon {
    let route = gate.route();
    |daemon| daemon.router(router().route("/gate", route))
}

/// The one report of a stop, as its fields.
fn report<const N: usize>(service: &Service, fields: [&str; N]) -> [String; N] {
    let events = service.log.events();
    let reports: Vec<_> = events.iter().filter(|e| e.message.starts_with("stopped by")).collect();
    assert_eq!(reports.len(), 1, "{events:?}");
    fields.map(|name| reports[0].field(name).to_owned())
}

// ---------------------------------------------------------------------------
// Requests in flight
// ---------------------------------------------------------------------------

#[tokio::test]
async fn a_request_in_flight_is_answered_and_its_connection_closed_in_good_form() {
    let gate = Gate::new();
    let mut service = Service::start(NO_LINGER, with(&gate)).await;
    let mut client = service.held(&gate, "/gate").await;

    service.begin_stop().await;
    assert!(service.still_runs().await);
    gate.open();
    let response = client.receive().await.unwrap();
    assert_eq!((response.status, response.text()), (200, "passed"));
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(client.receive().await, Err(Lost::Closed));
    assert_eq!(service.exit().await, Exit::Clean);
    assert_eq!(report(&service, ["cause", "finished", "cut"]), ["the caller", "1", "0"]);
    assert_eq!(service.log.at(Level::WARN).len(), 0);
}

#[tokio::test]
async fn a_body_still_being_sent_is_received_to_its_end() {
    let mut service = Service::start(NO_LINGER, |daemon| daemon.router(router())).await;
    let mut client = service.connect().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    client.receive_head().await.unwrap();

    service.begin_stop().await;
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    let mut body = Vec::new();
    while let Some(chunk) = client.receive_chunk().await.unwrap() {
        body.extend(chunk);
    }
    assert_eq!(body, b"onetwo");
    assert_eq!(service.exit().await, Exit::Clean);
}

#[tokio::test]
async fn a_handler_that_streams_for_ever_can_end_when_the_stop_begins() {
    let mut service = Service::start(NO_LINGER, |daemon| {
        let stopping = daemon.stopping();
        daemon.router(router().route("/events", events(stopping)))
    })
    .await;
    let mut client = service.connect().await;
    client.ask("/events").await;
    client.receive_head().await.unwrap();
    assert_eq!(client.receive_chunk().await.unwrap().unwrap(), b"data: hello\n\n");

    service.begin_stop().await;
    assert_eq!(client.receive_chunk().await.unwrap().unwrap(), b"data: goodbye\n\n");
    assert_eq!(client.receive_chunk().await.unwrap(), None);
    assert_eq!(service.exit().await, Exit::Clean);
}

#[tokio::test]
async fn a_drain_without_a_deadline_waits_as_long_as_it_takes() {
    let gate = Gate::new();
    let keys = "shutdown.linger = \"0s\"\nshutdown.deadline = \"never\"\n";
    let mut service = Service::start_with_stopped_clock(keys, with(&gate)).await;
    let mut client = service.held(&gate, "/gate").await;

    service.begin_stop().await;
    tokio::time::sleep(Duration::from_secs(10 * 3600)).await;
    assert!(service.still_runs().await);
    gate.open();
    assert_eq!(client.receive().await.unwrap().text(), "passed");
    assert_eq!(service.exit().await, Exit::Clean);
}

#[tokio::test]
async fn the_admin_child_is_there_until_the_last_request_is_answered() {
    let gate = Gate::new();
    let mut service = Service::start(NO_LINGER, with(&gate)).await;
    let mut client = service.held(&gate, "/gate?not=shown").await;

    service.begin_stop().await;
    let refused = || std::os::unix::net::UnixStream::connect(service.http_socket()).is_err();
    service.wait_for_status("closed to new clients", |_| refused()).await;
    assert_eq!(service.admin("/livez").await.status, 200);
    let ready = service.admin("/readyz").await;
    assert_eq!((ready.status, ready.text()), (503, "draining\n"));
    let status = service.status().await;
    assert_eq!(status["phase"], "draining");
    assert_eq!(status["drain"]["cause"], "the caller");
    assert!(status["drain"]["left"].as_f64().unwrap() <= 30.0, "{status:#}");
    let request = &status["requests"][0];
    assert_eq!((&request["method"], &request["path"]), (&"GET".into(), &"/gate".into()));
    assert_eq!(request["waiting_for"], "the handler");

    gate.open();
    client.receive().await.unwrap();
    assert_eq!(service.exit().await, Exit::Clean);
    assert!(std::os::unix::net::UnixStream::connect(service.folder().join("admin.sock")).is_err());
}

// ---------------------------------------------------------------------------
// Idle connections
// ---------------------------------------------------------------------------

/// The longest that a stop with nothing to wait for may take on a machine that has much else to do.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_idle_daemon_stops_at_once() {
    let mut service = Service::start("", |daemon| daemon).await;
    let began = Instant::now();
    assert_eq!(service.stop().await, Exit::Clean);
    print_figure("an idle stop", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_thousand_idle_connections_do_not_hold_a_stop_without_linger() {
    let mut service = Service::start(NO_LINGER, |daemon| daemon.router(router())).await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = service.connect().await;
        client.get("/").await.unwrap();
        clients.push(client);
    }
    let began = Instant::now();
    assert_eq!(service.stop().await, Exit::Clean);
    print_figure("a stop with 1,000 idle connections", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    for client in &mut clients {
        assert_eq!(client.receive().await, Err(Lost::Closed));
    }
}

#[tokio::test]
async fn an_idle_connection_may_ask_once_more_while_the_stop_lingers() {
    for rest in [Duration::ZERO, Duration::from_secs(1)] {
        let add = |daemon: Daemon| daemon.router(router());
        let mut service = Service::start_with_stopped_clock("shutdown.linger = \"1s\"\n", add).await;
        let mut client = service.connect().await;
        client.get("/").await.unwrap();
        tokio::time::sleep(rest).await;

        service.begin_stop().await;
        let response = client.get("/path/once-more").await.unwrap();
        assert_eq!(response.text(), "once-more");
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(client.receive().await, Err(Lost::Closed));
        assert_eq!(service.exit().await, Exit::Clean);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_connection_that_stays_idle_is_closed_after_linger() {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock("shutdown.linger = \"3s\"\n", add).await;
    let mut client = service.connect().await;
    client.get("/").await.unwrap();
    assert_eq!(service.stop().await, Exit::Clean);
    let took = service.stopped_in();
    assert!((3..4).contains(&took.as_secs()), "{took:?}");
    assert_eq!(client.receive().await, Err(Lost::Closed));
}

#[tokio::test]
async fn linger_ends_when_the_last_connection_has() {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock("shutdown.linger = \"1h\"\n", add).await;
    let mut client = service.connect().await;
    client.get("/").await.unwrap();
    service.begin_stop().await;
    client.get("/").await.unwrap();
    assert_eq!(service.exit().await, Exit::Clean);
    let took = service.stopped_in();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

// ---------------------------------------------------------------------------
// The delay
// ---------------------------------------------------------------------------

const DELAY: &str = "shutdown.delay = \"10s\"\nshutdown.linger = \"0s\"\n";

#[tokio::test]
async fn within_the_delay_readiness_fails_and_everything_is_still_answered() {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock(DELAY, add).await;
    assert_eq!(service.admin("/readyz").await.status, 200);
    let mut old = service.connect().await;
    old.get("/").await.unwrap();

    service.begin_stop().await;
    assert_eq!(service.admin("/readyz").await.status, 503);
    assert_eq!(service.admin("/livez").await.status, 200);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut new = service.connect().await;
    for client in [&mut old, &mut new] {
        assert_eq!(client.get("/").await.unwrap().text(), "hello");
    }
    assert_eq!(service.exit().await, Exit::Clean);
    let took = service.stopped_in();
    assert!((10..11).contains(&took.as_secs()), "{took:?}");
    assert!(service.try_connect().await.is_err());
}

#[tokio::test]
async fn within_the_delay_every_answer_asks_its_client_to_connect_elsewhere() {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock(DELAY, add).await;
    let mut client = service.connect().await;
    assert_eq!(client.get("/").await.unwrap().header("connection"), None);
    service.begin_stop().await;
    let response = client.get("/").await.unwrap();
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(client.receive().await, Err(Lost::Closed));
    assert_eq!(service.exit().await, Exit::Clean);
}

#[tokio::test]
async fn the_deadline_counts_from_the_end_of_the_delay() {
    let add = |daemon: Daemon| daemon.router(router());
    let keys = "shutdown.delay = \"10s\"\nshutdown.linger = \"0s\"\nshutdown.deadline = \"5s\"\n";
    let mut service = Service::start_with_stopped_clock(keys, add).await;
    let mut client = service.connect().await;
    client.ask("/never").await;
    assert_eq!(service.stop().await, Exit::Cut);
    let took = service.stopped_in();
    assert!((15..17).contains(&took.as_secs()), "{took:?}");
    assert_eq!(client.receive().await, Err(Lost::Closed));
}
