//! The yardstick of another way to restart: hyper under ecdysis, Cloudflare's library for graceful restarts. At SIGHUP
//! the program starts itself again, the next process inherits the listener, and this one answers what it has and exits.
//!
//! usage: ecdysis-hyper ADDRESS PIDFILE
//!
//! It is what the library's own example does, with HTTP in the place of an echo: connections are asked to close once
//! another process serves, and nothing is carried.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;

use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const BODY: &[u8] = include_bytes!("hello.html");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(pid_file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: ecdysis-hyper ADDRESS PIDFILE".into());
    };
    let address: SocketAddr = address.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut builder = TokioEcdysisBuilder::new(SignalKind::hangup())?;
        builder.stop_on_signal(SignalKind::terminate())?;
        builder.set_pid_file(pid_file);
        let mut connections = builder.build_listen_tcp(StopOnShutdown::Yes, address, |socket, address| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })?;
        let (_ecdysis, replaced) = builder.ready()?;

        let (tracker, stopping) = (TaskTracker::new(), CancellationToken::new());
        let mut replaced = pin!(replaced);
        loop {
            tokio::select! {
                _ = &mut replaced => break,
                Some(accepted) = connections.next() => {
                    tracker.spawn(serve(accepted?, stopping.clone()));
                }
            }
        }
        stopping.cancel();
        tracker.close();
        tracker.wait().await;
        Ok(())
    })
}

/// One connection: to its client's end, or to its next answer once the server is to stop.
async fn serve(stream: TcpStream, stopping: CancellationToken) {
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = pin!(connection);
    tokio::select! {
        // A client that breaks off is nobody's mistake.
        _ = connection.as_mut() => {}
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    Ok(response)
}
