//! The yardstick: `axum::serve` with one route that gives steadfast's answer, and nothing around it.
//!
//! Like steadfast it says where it listens and when it is ready. Its command line is steadfast's, and ignored.

use std::net::Ipv4Addr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::any;
use sd_notify::NotifyState;
use tokio::net::TcpListener;

const BODY: &str = include_str!("../hello.html");

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = any(async || ([(CONTENT_TYPE, "text/html; charset=utf-8")], BODY));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        eprintln!("listening child=\"http\" address={}", listener.local_addr()?);
        sd_notify::notify(&[NotifyState::Ready])?;
        axum::serve(listener, Router::new().route("/", answer)).await
    })
}
