//! Promises about proxied requests, kept with real upstreams on sockets of their own.

mod absent;
mod clients;
mod early;
mod failing;
mod idle;
mod passed_on;
mod slow;
mod upgrades;
mod waiting;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;

use axum::Router;
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::daemon::http::routes::{Action, Route, Routes};
use crate::server::Server;
use crate::server::address::Address;
use crate::server::limits::Limits;
use crate::server::listener::Listener;
use crate::server::{Handler, Peer, Registry, Totals, Waiting};
use crate::systemd::activation::Inherited;

const SECOND: Duration = Duration::from_secs(1);

/// A task that nobody waits for: it ends with the test's runtime.
fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) -> tokio::task::JoinHandle<F::Output> {
    TaskTracker::new().spawn(task)
}

fn config(to: Upstream) -> Config {
    Config { to, retry_for: 10 * SECOND, connect_timeout: 5 * SECOND, timeout: 60 * SECOND }
}

fn http(address: SocketAddr) -> Upstream {
    Upstream::Http(address.to_string().parse().expect("an authority"))
}

fn proxied(config: Config) -> Routes {
    let route = Route::new("/*", Action::Proxy(config));
    Routes::new(&[route], None, None, &TaskTracker::new())
}

/// Serves a proxy on loopback as the daemon does.
fn serve_proxy(config: Config) -> SocketAddr {
    let address = Address::Tcp("127.0.0.1:0".parse().expect("an address"));
    let listeners = Listener::bind(&address, &mut Inherited::default()).expect("a listener");
    let Address::Tcp(address) = listeners[0].address() else { unreachable!("it was of TCP") };
    let limits = Limits::default();
    let registry = Registry::new(Totals::unobserved());
    let server = Server::new(listeners, proxied(config), registry, limits);
    spawn(async move { server.serve().await });
    address
}

/// Serves an upstream on loopback.
async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves an upstream, and a proxy before it. Returns the proxy's address.
async fn in_front_of(upstream: Router) -> SocketAddr {
    let upstream = serve(upstream).await;
    serve_proxy(config(http(upstream)))
}

/// An upstream on a unix socket that does as it is told with each connection: its number, from 0, and its stream.
/// In memory but for the kernel, so that a paused clock does not run ahead of it.
struct Scripted {
    folder: tempfile::TempDir,
}

impl Scripted {
    fn absent() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn new<F: Future<Output: Send> + Send + 'static>(
        script: impl Fn(usize, UnixStream) -> F + Send + 'static,
    ) -> Self {
        let upstream = Self::absent();
        upstream.start(script);
        upstream
    }

    fn start<F: Future<Output: Send> + Send + 'static>(
        &self,
        script: impl Fn(usize, UnixStream) -> F + Send + 'static,
    ) {
        let listener = UnixListener::bind(self.path()).expect("a listener");
        spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.expect("a connection");
                spawn(script(number, stream));
            }
        });
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("upstream.sock")
    }

    fn config(&self) -> Config {
        config(Upstream::Unix(self.path()))
    }

    fn proxied(&self) -> Routes {
        proxied(self.config())
    }
}

/// Reads the head of a message, and no more.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the rest of the head"));
    }
    String::from_utf8(head).expect("text")
}

/// The head of the next message; none if the connection ends instead.
async fn next_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the rest");
    String::from_utf8(rest).expect("text")
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), what: &str) {
    stream.write_all(what.as_bytes()).await.expect("to be read");
}

/// Sends bytes on a connection of their own and reads until it is closed.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    say(&mut stream, request).await;
    rest(&mut stream).await
}

fn get(path: &str) -> Request {
    Request::get(path).body(Body::empty()).expect("a request")
}

async fn ask(routes: &Routes, request: Request) -> Response {
    routes.answer(request, InFlight::of(Peer::Unix)).await
}

/// A request that can be given up.
fn asking(routes: Routes) -> Pin<Box<dyn Future<Output = Response> + Send>> {
    Box::pin(async move { ask(&routes, get("/")).await })
}

async fn text_of(response: Response) -> String {
    let body = response.into_body().collect().await.expect("a whole body");
    String::from_utf8(body.to_bytes().into()).expect("text")
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Answers with the request's head, as text.
async fn told(request: Request) -> String {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")));
    format!("{} {}\n{}", request.method(), request.uri(), headers.collect::<String>())
}

/// Reads whatever comes.
async fn never_answer(_: usize, mut stream: UnixStream) {
    let mut waste = [0; 4096];
    while stream.read(&mut waste).await.is_ok_and(|n| n > 0) {}
}
