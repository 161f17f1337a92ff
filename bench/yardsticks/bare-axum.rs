//! The yardstick for what steadfast adds to its HTTP library: `axum::serve` with nothing around it. It has no registry
//! of connections, no metrics, no limits, no drain, no handover.
//!
//! usage: bare-axum ADDRESS ROUTES
//!
//! It answers `/`, and as many routes more as it is told, and says when it is ready.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::any;
use sd_notify::NotifyState;
use tokio::net::TcpSocket;

const BODY: &str = include_str!("hello.html");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bare-axum ADDRESS ROUTES".into());
    };
    let answer = || any(async || ([(CONTENT_TYPE, "text/html; charset=utf-8")], BODY));
    let router = (0..count.parse()?).fold(Router::new().route("/", answer()), |router, n: u32| {
        router.route(&format!("/route/{n:05}"), answer())
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // As many may wait as with the others.
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address.parse()?)?;
        let listener = socket.listen(4096)?;
        sd_notify::notify(&[NotifyState::Ready])?;
        axum::serve(listener, router).await?;
        Ok(())
    })
}
