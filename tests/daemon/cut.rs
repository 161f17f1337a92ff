//! The deadline: nothing can hold a stop beyond it, and what it cuts is named.

use std::time::Duration;

use steadfast::{BoxError, Daemon, Exit};
use tracing::Level;

use crate::client::{Client, Lost};
use crate::handlers::router;
use crate::service::{Event, Service};

const KEYS: &str = "shutdown.linger = \"1s\"\nshutdown.deadline = \"4s\"\n";

/// A service and how long its stop took, after a client has done something to it that does not end by itself.
async fn stop_with(begun: &str) -> (Service, Client, Exit, Duration) {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock(KEYS, add).await;
    let mut client = service.connect().await;
    client.send(begun).await;
    service.wait_for_status("with its connection", |s| s["totals"]["connections"] == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let exit = service.stop().await;
    let took = service.stopped_in();
    (service, client, exit, took)
}

/// The one request that was cut.
fn the_cut(service: &Service) -> Event {
    let mut warnings = service.log.at(Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.remove(0)
}

async fn assert_cut(begun: &str, method: &str, path: &str, waiting_for: &str) -> Client {
    let (service, client, exit, took) = stop_with(begun).await;
    assert_eq!(exit, Exit::Cut);
    assert_eq!(took.as_secs(), 4, "{took:?}");
    let cut = the_cut(&service);
    let fields = ["method", "path", "peer", "waiting_for"].map(|name| cut.field(name));
    assert_eq!(fields, [method, path, "unix", waiting_for]);
    let age: u64 = cut.field("duration_usec").parse().unwrap();
    assert!((6_000_000..7_000_000).contains(&age), "{age} µs");
    let sent: u64 = cut.field("bytes_sent").parse().unwrap();
    let begins = format!("cut by the deadline: {method} {path} from unix after ");
    assert!(cut.message.starts_with(&begins), "{}", cut.message);
    let ends = format!(", {sent} bytes sent, waiting for {waiting_for}");
    assert!(cut.message.ends_with(&ends), "{}", cut.message);
    let report = service.wait_for("the report", |e| e.message.starts_with("stopped by")).await;
    assert_eq!((report.field("finished"), report.field("cut")), ("0", "1"));
    client
}

#[tokio::test]
async fn a_handler_that_does_not_end_is_cut_and_named() {
    let begun = "GET /never?secret=1 HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut client = assert_cut(begun, "GET", "/never", "the handler").await;
    assert_eq!(client.receive().await, Err(Lost::Closed));
}

#[tokio::test]
async fn a_body_that_does_not_come_but_is_not_needed_holds_nothing() {
    // The route is for POST alone: the answer is there, and it is whole.
    let begun = "PUT /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf";
    let (_, mut client, exit, took) = stop_with(begun).await;
    assert_eq!((exit, client.receive().await.unwrap().status), (Exit::Clean, 405));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_cut_and_named() {
    let begun = "POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf";
    let mut client = assert_cut(begun, "POST", "/length", "the client to send the body").await;
    assert_eq!(client.receive().await, Err(Lost::Closed));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_and_named() {
    let begun = "GET /endless HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut client = assert_cut(begun, "GET", "/endless", "the client to read the answer").await;
    let got = client.rest().await.len();
    assert!(got > 1000, "{got} bytes");
    assert!(!client.rest().await.ends_with(b"0\r\n\r\n"), "the answer seems whole");
}

#[tokio::test]
async fn every_request_is_named_and_no_idle_connection_is() {
    let add = |daemon: Daemon| daemon.router(router().fallback(std::future::pending::<&str>));
    let mut service = Service::start_with_stopped_clock(KEYS, add).await;
    let mut idle = service.connect().await;
    idle.get("/").await.unwrap();
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = service.connect().await;
        client.ask(&format!("/number/{n:02}")).await;
        clients.push(client);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(service.stop().await, Exit::Cut);
    let named: Vec<_> = service.log.at(Level::WARN);
    let named: Vec<_> = named.iter().map(|e| e.field("path").to_owned()).collect();
    let expected: Vec<_> = (0..20).map(|n| format!("/number/{n:02}")).collect();
    assert_eq!(named, expected, "the oldest first");
}

#[tokio::test]
async fn a_client_that_says_nothing_cannot_hold_the_stop() {
    let (service, mut client, exit, took) = stop_with("").await;
    assert_eq!(exit, Exit::Clean);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(client.receive().await, Err(Lost::Closed));
    assert_eq!(service.log.at(Level::WARN).len(), 0);
}

#[tokio::test]
async fn a_client_that_sent_half_a_head_cannot_hold_the_stop() {
    for half in ["G", "GET / HTTP/1.1\r\nHost: te"] {
        let (_, mut client, exit, took) = stop_with(half).await;
        assert_eq!(exit, Exit::Clean, "no request was begun");
        assert!(took < Duration::from_secs(5), "{took:?}");
        client.rest().await;
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_client_that_asks_again_and_again_cannot_hold_the_stop() {
    let add = |daemon: Daemon| daemon.router(router());
    let mut service = Service::start_with_stopped_clock(KEYS, add).await;
    let mut client = service.connect().await;
    let ask_for_ever = async {
        while client.get("/").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (exit, ()) = tokio::join!(service.stop(), ask_for_ever);
    assert_eq!(exit, Exit::Clean);
    let took = service.stopped_in();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn what_can_finish_before_the_deadline_is_not_cut_with_the_rest() {
    let gate = crate::handlers::Gate::new();
    let route = gate.route();
    let add = |daemon: Daemon| daemon.router(router().route("/gate", route));
    let mut service = Service::start_with_stopped_clock(KEYS, add).await;
    let (mut lucky, mut late) = (service.connect().await, service.connect().await);
    lucky.ask("/gate").await;
    late.ask("/never").await;
    gate.arrived().await;
    service.begin_stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.open();
    assert_eq!(lucky.receive().await.unwrap().text(), "passed");
    assert_eq!(service.exit().await, Exit::Cut);
    assert_eq!(the_cut(&service).field("path"), "/never");
    assert_eq!(late.receive().await, Err(Lost::Closed));
    let report = service.wait_for("the report", |e| e.message.starts_with("stopped by")).await;
    assert_eq!((report.field("finished"), report.field("cut")), ("1", "1"));
}

#[tokio::test]
async fn a_child_that_is_cut_takes_no_finished_request_out_of_the_report() {
    let gate = crate::handlers::Gate::new();
    let route = gate.route();
    let add = |daemon: Daemon| {
        daemon
            .router(router().route("/gate", route))
            .child("worker", async |_| std::future::pending::<Result<(), BoxError>>().await)
    };
    let mut service = Service::start_with_stopped_clock(KEYS, add).await;
    let mut client = service.held(&gate, "/gate").await;
    service.begin_stop().await;
    gate.open();
    assert_eq!(client.receive().await.unwrap().text(), "passed");
    assert_eq!(service.exit().await, Exit::Cut);
    let report = service.wait_for("the report", |e| e.message.starts_with("stopped by")).await;
    assert_eq!((report.field("finished"), report.field("cut")), ("1", "1"));
}
