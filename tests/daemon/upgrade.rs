//! A tunnel, such as a WebSocket, is work in flight.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use steadfast::{Daemon, Exit};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::{Message, protocol::Role};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::task::TaskTracker;
use tracing::Level;

use crate::handlers::router;
use crate::service::Service;

const KEYS: &str = "shutdown.linger = \"0s\"\nshutdown.deadline = \"4s\"\n";

/// Says back what it hears.
async fn echo(mut request: Request) -> Response {
    let key = request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes();
    let accept = derive_accept_key(key);
    let upgrade = hyper::upgrade::on(&mut request);
    TaskTracker::new().spawn(async move {
        let upgraded = TokioIo::new(upgrade.await.expect("the answer says so"));
        let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, &accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn service() -> Service {
    let add = |daemon: Daemon| daemon.router(router().route("/socket", get(echo)));
    Service::start_with_stopped_clock(KEYS, add).await
}

async fn web_socket(service: &Service) -> WebSocketStream<UnixStream> {
    let stream = UnixStream::connect(service.http_socket()).await.unwrap();
    client_async("ws://test/socket", stream).await.unwrap().0
}

async fn say(socket: &mut WebSocketStream<UnixStream>, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
}

#[tokio::test]
async fn a_web_socket_speaks_both_ways_and_is_no_idle_connection() {
    let service = service().await;
    let mut socket = web_socket(&service).await;
    say(&mut socket, "before").await;
    let status = service.status().await;
    assert_eq!(status["connections"]["tunnel"], 1);
    assert_eq!(status["requests"][0]["path"], "/socket");
    // Longer than any timeout of a request.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    say(&mut socket, "after").await;
}

#[tokio::test]
async fn a_stop_waits_for_a_web_socket() {
    let mut service = service().await;
    let mut socket = web_socket(&service).await;
    say(&mut socket, "before").await;
    service.begin_stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    say(&mut socket, "while it drains").await;
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    drop(socket);
    assert_eq!(service.exit().await, Exit::Clean);
    assert_eq!(service.log.at(Level::WARN).len(), 0);
}

#[tokio::test]
async fn a_web_socket_that_stays_is_cut_at_the_deadline_and_named() {
    let mut service = service().await;
    let mut quiet = web_socket(&service).await;
    assert_eq!(service.stop().await, Exit::Cut);
    let took = service.stopped_in();
    assert!((4..6).contains(&took.as_secs()), "{took:?}");
    let cuts = service.log.at(Level::WARN);
    assert_eq!(cuts.len(), 1, "{cuts:?}");
    assert_eq!((cuts[0].field("method"), cuts[0].field("path")), ("GET", "/socket"));
    assert_eq!(cuts[0].field("waiting_for"), "either side of the upgraded connection");
    assert!(quiet.next().await.is_none_or(|message| message.is_err()));
}

#[tokio::test]
async fn an_upgrade_that_comes_while_the_stop_lingers_is_one_all_the_same() {
    let add = |daemon: Daemon| daemon.router(router().route("/socket", get(echo)));
    let keys = "shutdown.delay = \"5s\"\nshutdown.linger = \"1s\"\n";
    let mut service = Service::start_with_stopped_clock(keys, add).await;
    service.begin_stop().await;
    let mut socket = web_socket(&service).await;
    say(&mut socket, "late").await;
    drop(socket);
    assert_eq!(service.exit().await, Exit::Clean);
}
