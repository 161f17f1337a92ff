//! What a proxied request is promised, against real upstreams on sockets of their own.

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
use tower::ServiceExt;

use super::*;
use crate::daemon::http::routes::{Action, Route, router};
use crate::server::Server;
use crate::server::access::AccessLog;
use crate::server::address::Address;
use crate::server::limits::Limits;
use crate::server::listener::Listener;
use crate::server::{Peer, Registry, Waiting};
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

fn proxied(config: Config) -> Router {
    let route = Route { path: "/*".into(), action: Action::Proxy(config) };
    router(&[route], None, &TaskTracker::new())
}

/// Serves a proxy on loopback as the daemon does.
fn serve_proxy(config: Config) -> SocketAddr {
    let address = Address::Tcp("127.0.0.1:0".parse().expect("an address"));
    let listeners = Listener::bind(&address, &mut Inherited::default()).expect("a listener");
    let Address::Tcp(address) = listeners[0].address() else { unreachable!("it was of TCP") };
    let limits = Limits::default();
    let registry = Registry::new(metrics::Histogram::noop(), AccessLog::off());
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

    fn proxied(&self) -> Router {
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

async fn ask(router: &Router, request: Request) -> Response {
    router.clone().oneshot(request).await.expect("a router never fails")
}

/// A request that can be given up.
fn asking(router: Router) -> Pin<Box<dyn Future<Output = Response> + Send>> {
    Box::pin(async move { ask(&router, get("/")).await })
}

async fn text_of(response: Response) -> String {
    let body = response.into_body().collect().await.expect("a whole body");
    String::from_utf8(body.to_bytes().into()).expect("text")
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

// ---------------------------------------------------------------- what is passed on

/// Answers with the request's head, as text.
async fn told(request: Request) -> String {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")));
    format!("{} {}\n{}", request.method(), request.uri(), headers.collect::<String>())
}

#[tokio::test]
async fn query_and_host_reach_the_upstream_unchanged_and_the_path_as_the_routes_read_it() {
    let proxy = in_front_of(Router::new().fallback(told)).await;
    let request = "GET /a%2fb/../{c}//d?e=%20&f HTTP/1.1\r\nHost: the.client:81\r\nConnection: close\r\n\r\n";
    let answer = exchange(proxy, request).await;
    assert!(answer.contains("GET /{c}/d?e=%20&f\n"), "{answer}");
    assert!(answer.contains("\nhost: the.client:81\n"), "{answer}");
}

#[tokio::test]
async fn the_host_of_an_absolute_uri_counts() {
    let proxy = in_front_of(Router::new().fallback(told)).await;
    let request = "GET http://me@absolute:82/x HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    let answer = exchange(proxy, request).await;
    assert!(answer.contains("GET /x\n"), "{answer}");
    assert!(answer.contains("\nhost: absolute:82\n"), "{answer}");
    assert!(answer.contains("\nx-forwarded-host: absolute:82\n"), "{answer}");
}

#[tokio::test]
async fn an_upstream_on_a_unix_socket_answers_as_well() {
    let upstream = Scripted::new(async |_, mut stream| {
        let asked = head(&mut stream).await;
        say(&mut stream, &format!("HTTP/1.1 200 OK\r\n\r\n{asked}")).await;
    });
    let asked = text_of(ask(&upstream.proxied(), get("/unix?q")).await).await;
    assert!(asked.starts_with("GET /unix?q HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nhost: localhost\r\n"), "{asked}");
}

#[tokio::test]
async fn what_concerns_one_hop_stays_on_it() {
    let upstream = Router::new().fallback(async |request: Request| {
        let answer = [
            ("connection", "x-mine, keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ];
        (answer, told(request).await)
    });
    let proxy = in_front_of(upstream).await;
    let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Secret, host, content-length\r\nX-Secret: 1\r\n\
        Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nTE: gzip\r\nUpgrade: a\r\n\
        Proxy: evil\r\nX-Kept: 1\r\n\r\n";
    let answer = exchange(proxy, request).await.to_lowercase();
    let (answer, asked) = answer.split_once("\r\n\r\n").expect("a head");
    for gone in ["connection", "x-secret", "keep-alive", "proxy", "te:", "upgrade", "evil"] {
        assert!(!asked.contains(gone), "{gone} in {asked}");
    }
    assert!(asked.contains("x-kept: 1") && asked.contains("host: h"), "{asked}");
    for gone in ["x-mine", "keep-alive", "proxy-", "upgrade"] {
        assert!(!answer.contains(gone), "{gone} in {answer}");
    }
    assert!(answer.contains("x-kept: 1"), "{answer}");
}

#[tokio::test]
async fn the_upstream_learns_who_asks_and_not_what_the_client_claims() {
    let upstream = serve(Router::new().fallback(told)).await;
    let router = proxied(config(http(upstream)));
    let registry = Registry::new(metrics::Histogram::noop(), AccessLog::off());
    let peer = Peer::Tcp("[2001:db8::1]:4711".parse().expect("an address"));
    let mut request = Request::get("/")
        .header("host", "h:1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x_forwarded_for", "6.6.6.6")
        .header("X-Forwarded-Port", "666")
        .header("x-real-ip", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .body(Body::empty())
        .expect("a request");
    request.extensions_mut().insert(InFlight(registry.open(peer, false)));
    let asked = text_of(ask(&router, request).await).await;
    assert!(!asked.contains("666") && !asked.contains("6.6.6.6"), "{asked}");
    assert!(asked.contains("\nx-forwarded-for: 2001:db8::1\n"), "{asked}");
    assert!(asked.contains("\nx-forwarded-host: h:1\n"), "{asked}");
    assert!(asked.contains("\nx-forwarded-proto: http\n"), "{asked}");
    assert!(asked.contains("\nforwarded: for=\"[2001:db8::1]\";host=\"h:1\";proto=http\n"), "{asked}");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let proxy = in_front_of(Router::new().fallback(async |request: Request| request.into_body())).await;
    for method in ["POST", "GET"] {
        let mut client = TcpStream::connect(proxy).await.expect("a connection");
        let request = format!("{method} / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        say(&mut client, &(request + "3\r\none\r\n")).await;
        head(&mut client).await;
        let mut chunk = [0; 8];
        client.read_exact(&mut chunk).await.expect("the first chunk, before the last was sent");
        assert_eq!(&chunk, b"3\r\none\r\n");
        say(&mut client, "3\r\ntwo\r\n0\r\n\r\n").await;
        let mut end = [0; 13];
        client.read_exact(&mut end).await.expect("the rest");
        assert_eq!(&end, b"3\r\ntwo\r\n0\r\n\r\n");
    }
}

#[tokio::test]
async fn trailers_are_passed_on_both_ways() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    let asked = spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("a connection");
        let asked = head(&mut stream).await + &head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-down\r\n\r\n").await;
        say(&mut stream, "1\r\nb\r\n0\r\nx-down: 2\r\n\r\n").await;
        asked
    });
    let request = "POST / HTTP/1.1\r\nHost: h\r\nTE: gzip, trailers\r\nConnection: close, te\r\nTrailer: X-Up\r\n\
        Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Up: 1\r\n\r\n";
    let answer = exchange(proxy, request).await;
    let asked = asked.await.expect("to be asked");
    for expected in ["te: trailers\r\n", "connection: te\r\n", "trailer: X-Up\r\n", "0\r\nx-up: 1\r\n"] {
        assert!(asked.contains(expected), "{expected} in {asked}");
    }
    assert!(answer.ends_with("\r\n\r\n1\r\nb\r\n0\r\nx-down: 2\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_without_a_body_stays_without_one() {
    for (asked, answer, expected) in [
        ("HEAD", "200 OK\r\ntransfer-encoding: chunked", None),
        ("HEAD", "200 OK\r\ncontent-length: 7", Some("content-length: 7")),
        ("GET", "204 No Content", None),
        ("GET", "304 Not Modified\r\netag: \"x\"", Some("etag: \"x\"")),
    ] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
        spawn(async move {
            let (mut stream, _) = upstream.accept().await.expect("a connection");
            head(&mut stream).await;
            say(&mut stream, &format!("HTTP/1.1 {answer}\r\n\r\n")).await;
            rest(&mut stream).await
        });
        let request = format!("{asked} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let answered = exchange(proxy, &request).await;
        let (head, body) = answered.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, "", "{asked} {answer}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        match expected {
            Some(expected) => assert!(head.contains(expected), "{head}"),
            None => assert!(!head.contains("content-length"), "{head}"),
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_the_body_up_to_the_close() {
    let streamed = async || Body::from_stream(stream::iter(["a", "b"].map(Ok::<_, Infallible>)));
    let proxy = in_front_of(Router::new().fallback(streamed)).await;
    let answer = exchange(proxy, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nab"), "{answer}");
}

#[tokio::test]
async fn an_upstream_of_http_1_0_answers_a_client_of_http_1_1() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("a connection");
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.0 200 Fine\r\n\r\nold").await;
    });
    let answer = exchange(proxy, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n3\r\nold\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn interim_answers_are_not_taken_for_the_answer() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await;
        say(&mut stream, OK).await;
        rest(&mut stream).await
    });
    let response = ask(&upstream.proxied(), get("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text_of(response).await, "ok");
}

#[tokio::test]
async fn a_body_in_an_unknown_coding_is_not_passed_on() {
    let upstream = Scripted::new(async |_, _stream| panic!("nothing to be sent"));
    let mut request = get("/");
    request.headers_mut().insert("transfer-encoding", HeaderValue::from_static("gzip, chunked"));
    assert_eq!(ask(&upstream.proxied(), request).await.status(), StatusCode::NOT_IMPLEMENTED);

    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n").await;
    });
    assert_eq!(ask(&upstream.proxied(), get("/")).await.status(), StatusCode::BAD_GATEWAY);
}

// ---------------------------------------------------------------- an upstream that is not there yet

async fn answer_ok(_: usize, mut stream: UnixStream) {
    let asked = head(&mut stream).await;
    if asked.contains("content-length: 4") {
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.expect("the body");
        assert_eq!(&body, b"body");
    }
    say(&mut stream, OK).await;
    rest(&mut stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_an_upstream_that_is_restarted() {
    let upstream = Scripted::absent();
    let router = upstream.proxied();
    let began = Instant::now();
    let post = Request::post("/").header("content-length", "4").body(Body::from("body"));
    let asked = spawn(async move { ask(&router, post.expect("a request")).await });
    // No socket, then one that nobody listens on, then an upstream.
    sleep(3 * SECOND).await;
    drop(std::os::unix::net::UnixListener::bind(upstream.path()).expect("a listener"));
    sleep(3 * SECOND).await;
    assert!(!asked.is_finished());
    std::fs::remove_file(upstream.path()).expect("a stale socket");
    upstream.start(answer_ok);
    let response = asked.await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text_of(response).await, "ok");
    assert!(began.elapsed() < 6 * SECOND + Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_waits_for_a_port_that_refuses() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = socket.local_addr().expect("its address");
    let mut request = asking(proxied(config(http(address))));
    // Bound and not listening: refused. It has to be polled before the upstream is there.
    assert!(futures_util::poll!(&mut request).is_pending());
    let listener = socket.listen(16).expect("a listener");
    spawn(async move { axum::serve(listener, Router::new().fallback(told)).await });
    assert_eq!(request.await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_stays_away_is_502_after_retry_for() {
    let began = Instant::now();
    let response = ask(&Scripted::absent().proxied(), get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(text_of(response).await, "the upstream refused connections for 10 s\n");
    assert!((10 * SECOND..11 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_is_not_waited_for() {
    let upstream = Scripted::absent();
    let router = upstream.proxied();
    let mut request = asking(router);
    assert!(futures_util::poll!(&mut request).is_pending());
    sleep(SECOND).await;
    drop(request);
    upstream.start(async |_, _stream| panic!("nobody asks any more"));
    sleep(20 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_504_after_connect_timeout() {
    // A queue of one that is full: the kernel answers no further attempt.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let listener = socket.listen(0).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SECOND, TcpStream::connect(address)).await {
        queued.push(stream);
    }
    let began = Instant::now();
    let response = ask(&proxied(config(http(address))), get("/")).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(text_of(response).await, "the upstream did not accept a connection within 5 s\n");
    assert!((5 * SECOND..6 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_upstream_that_cannot_be_is_502_at_once() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let below_a_file = Upstream::Unix(file.path().join("x.sock"));
    let response = ask(&proxied(config(below_a_file)), get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(text_of(response).await, "the upstream cannot be connected to\n");
}

// ---------------------------------------------------------------- an upstream that is slow

async fn never_answer(_: usize, mut stream: UnixStream) {
    let mut waste = [0; 4096];
    while stream.read(&mut waste).await.is_ok_and(|n| n > 0) {}
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_answer_is_504_after_timeout() {
    let upstream = Scripted::new(never_answer);
    let began = Instant::now();
    for request in [get("/"), Request::post("/").body(Body::from("body")).expect("a request")] {
        let response = ask(&upstream.proxied(), request).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(text_of(response).await, "the upstream did not answer within 60 s\n");
    }
    assert!((120 * SECOND..121 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_upload_may_take_longer_than_timeout() {
    let upstream = Scripted::new(async |_, mut stream| {
        let _ = head(&mut stream).await;
        let mut received = Vec::new();
        while !received.ends_with(b"0\r\n\r\n") {
            received.push(stream.read_u8().await.expect("the rest of the body"));
        }
        // Just in time after the last of the body.
        sleep(59 * SECOND).await;
        say(&mut stream, OK).await;
        rest(&mut stream).await
    });
    // A steady one, then one whose client is silent for three timeouts: that is not the upstream's fault.
    for pause in [30, 180] {
        let pieces = stream::iter(0..10).then(move |_| async move {
            sleep(pause * SECOND).await;
            Ok::<_, Infallible>("piece")
        });
        let request = Request::post("/").header("transfer-encoding", "chunked");
        let request = request.body(Body::from_stream(pieces)).expect("a request");
        let response = ask(&upstream.proxied(), request).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_stops_reading_is_504() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        sleep(3600 * SECOND).await;
        stream
    });
    let endless = Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(vec![0; 4096])));
    let request = Request::post("/").header("transfer-encoding", "chunked").body(endless);
    let response = ask(&upstream.proxied(), request.expect("a request")).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn silence_within_the_answer_breaks_it_off_after_timeout() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        for _ in 0..10 {
            sleep(59 * SECOND).await;
            say(&mut stream, "slow").await;
        }
        rest(&mut stream).await
    });
    let mut body = ask(&upstream.proxied(), get("/")).await.into_body();
    for _ in 0..10 {
        body.frame().await.expect("a frame").expect("without failure");
    }
    let began = Instant::now();
    let error = body.frame().await.expect("an end").expect_err("too long a silence");
    assert_eq!(error.to_string(), "the upstream was silent for 60 s within its answer");
    assert!((60 * SECOND..61 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

// ---------------------------------------------------------------- an upstream that fails

#[tokio::test]
async fn an_answer_that_is_not_http_is_502() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, "220 smtp.example ready\r\n").await;
    });
    let response = ask(&upstream.proxied(), get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(text_of(response).await, "the upstream's answer is not valid HTTP\n");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_whole_for_the_client_either() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    });
    let answer = ask(&upstream.proxied(), get("/")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.into_body().collect().await.expect_err("not whole");
}

/// Tells of each request that came to the end of its head, on which connection.
fn counting<F: Future<Output: Send> + Send + 'static>(
    script: impl Fn(usize, UnixStream, UnboundedSender<usize>) -> F + Send + 'static,
) -> (Scripted, UnboundedReceiver<usize>) {
    let (came, told) = unbounded_channel();
    (Scripted::new(move |number, stream| script(number, stream, came.clone())), told)
}

/// Answers the first request of the first connection, and reads a second one there without an answer.
async fn die_after_one(number: usize, mut stream: UnixStream, came: UnboundedSender<usize>) {
    head(&mut stream).await;
    let _ = came.send(number);
    say(&mut stream, OK).await;
    head(&mut stream).await;
    let _ = came.send(number);
}

/// Asks once, and waits until the connection is in the pool.
async fn use_once(router: &Router) {
    let response = ask(router, get("/")).await;
    assert_eq!(text_of(response).await, "ok");
    // Nothing tells when it is there; on a paused clock this returns when nothing is left to do.
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn connections_to_the_upstream_are_used_again_until_they_are_old() {
    let (upstream, mut came) = counting(async |number, mut stream, came| {
        loop {
            head(&mut stream).await;
            let _ = came.send(number);
            say(&mut stream, OK).await;
        }
    });
    let router = upstream.proxied();
    for (pause, connection) in [(Duration::ZERO, 0), (SECOND, 0), (POOL_IDLE + SECOND, 1)] {
        sleep(pause).await;
        use_once(&router).await;
        assert_eq!(came.recv().await, Some(connection));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_be_repeated_survives_a_connection_that_dies() {
    let (upstream, mut came) = counting(die_after_one);
    let router = upstream.proxied();
    use_once(&router).await;
    let response = ask(&router, get("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let sent = [came.recv().await, came.recv().await, came.recv().await];
    assert_eq!(sent, [Some(0), Some(0), Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_not_be_repeated_is_sent_once() {
    for request in [Request::post("/").body(Body::empty()), Request::put("/").body("body".into())] {
        let (upstream, mut came) = counting(die_after_one);
        let router = upstream.proxied();
        use_once(&router).await;
        let response = ask(&router, request.expect("a request")).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        drop((router, upstream));
        assert_eq!([came.recv().await, came.recv().await], [Some(0), Some(0)]);
        sleep(SECOND).await;
        assert!(came.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn any_request_survives_a_connection_that_was_closed_before() {
    let (upstream, mut came) = counting(async |number, mut stream, came| {
        head(&mut stream).await;
        let _ = came.send(number);
        say(&mut stream, OK).await;
    });
    let router = upstream.proxied();
    use_once(&router).await;
    let response = ask(&router, Request::post("/").body(Body::empty()).expect("a request")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!([came.recv().await, came.recv().await], [Some(0), Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_three_times_at_most() {
    let (upstream, mut came) = counting(async |number, mut stream, came| {
        head(&mut stream).await;
        let _ = came.send(number);
    });
    let response = ask(&upstream.proxied(), get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(text_of(response).await, "the upstream closed the connection without an answer\n");
    for number in 0..3 {
        assert_eq!(came.recv().await, Some(number));
    }
    sleep(20 * SECOND).await;
    assert!(came.is_empty());
}

/// A backend in a runtime of its own, which takes everything with it when it is shut down, as a process does.
fn backend(address: SocketAddr) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind(address)).expect("the address again");
    let answer = async || {
        sleep(Duration::from_millis(2)).await;
        "ok"
    };
    runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    runtime
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_and_started_again_is_not_noticed_by_those_who_read() {
    let reserved = TcpSocket::new_v4().expect("a socket");
    reserved.set_reuseaddr(true).expect("an option");
    reserved.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = reserved.local_addr().expect("its address");
    let router = proxied(config(http(address)));
    let stop = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (router, stop) = (router.clone(), stop.clone());
            spawn(async move {
                let mut answered = 0;
                while !stop.is_cancelled() {
                    let response = ask(&router, get("/")).await;
                    assert_eq!((response.status(), text_of(response).await.as_str()), (StatusCode::OK, "ok"));
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    for _ in 0..5 {
        let backend = tokio::task::spawn_blocking(move || backend(address)).await.expect("a backend");
        sleep(Duration::from_millis(100)).await;
        let killed = tokio::task::spawn_blocking(move || backend.shutdown_timeout(10 * SECOND));
        killed.await.expect("its sockets to be closed");
        // Nobody listens for a while.
        sleep(Duration::from_millis(50)).await;
    }
    let last = tokio::task::spawn_blocking(move || backend(address)).await.expect("a backend");
    stop.cancel();
    for client in clients {
        assert!(client.await.expect("every answer to be 200") > 0);
    }
    last.shutdown_background();
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a log").extend(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failure_is_logged_once_with_its_upstream_and_its_causes() {
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || written.clone())
        .finish();
    // With a single dispatcher, tracing asks the thread that comes by an event first whether anyone wants it, and that
    // may be another test's, without any.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _guard = tracing::subscriber::set_default(subscriber);
    // Fails three times, is resent twice, and is one failure.
    let upstream = Scripted::new(async |_, mut stream| head(&mut stream).await);
    ask(&upstream.proxied(), get("/path?q")).await;
    let text = String::from_utf8(log.0.lock().expect("a log").clone()).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("WARN") && text.contains("proxied request failed"), "{text}");
    assert!(text.contains(&format!("upstream=unix:{}", upstream.path().display())), "{text}");
    assert!(text.contains("method=GET uri=/path?q"), "{text}");
    assert!(text.contains("error=\"no answer from the upstream: "), "{text}");
}

// ---------------------------------------------------------------- a client that fails

#[tokio::test]
async fn a_client_that_is_gone_takes_its_upstream_request_along() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
        let mut client = TcpStream::connect(proxy).await.expect("a connection");
        say(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (mut stream, _) = upstream.accept().await.expect("a connection");
        head(&mut stream).await;
        say(&mut stream, answer).await;
        drop(client);
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let upstream = Scripted::new(never_answer);
    let pieces = stream::iter(0..10).map(|_| Ok::<_, Infallible>("0123456789"));
    let limited = Limited::new(Body::from_stream(pieces), 50);
    let request = Request::post("/").header("transfer-encoding", "chunked").body(Body::new(limited));
    let response = ask(&upstream.proxied(), request.expect("a request")).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_the_upstreams_fault() {
    let upstream = Scripted::new(never_answer);
    let broken = Body::from_stream(stream::iter([Ok("a"), Err(std::io::Error::other("gone"))]));
    let request = Request::post("/").header("transfer-encoding", "chunked").body(broken);
    let response = ask(&upstream.proxied(), request.expect("a request")).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

// ---------------------------------------------------------------- what a request waits for

#[tokio::test(start_paused = true)]
async fn the_registry_knows_what_a_request_waits_for() {
    let upstream = Scripted::absent();
    let router = upstream.proxied();
    let registry = Registry::new(metrics::Histogram::noop(), AccessLog::off());
    let connection = registry.open(Peer::Unix, false);
    let mut request = get("/");
    let answering = connection.begin(request.method(), request.uri(), false);
    request.extensions_mut().insert(InFlight(Arc::clone(&connection)));
    let waiting = || connection.view().map(|view| view.waiting);

    let asked = spawn(async move { ask(&router, request).await });
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamConnect));
    upstream.start(never_answer);
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamResponse));
    asked.abort();
    drop(answering);
}

// ---------------------------------------------------------------- upgrades

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: chat/1\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat/1\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_in_both_directions() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    spawn(async move {
        let (stream, _) = upstream.accept().await.expect("a connection");
        let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.expect("to be read");
            }
        }
    });
    let stream = TcpStream::connect(proxy).await.expect("a connection");
    let (mut socket, _) = tokio_tungstenite::client_async("ws://h/ws", stream).await.expect("a handshake");
    for message in [Message::text("hello"), Message::binary(vec![7; 1 << 20])] {
        socket.send(message.clone()).await.expect("to be read");
        assert_eq!(socket.next().await.expect("an echo").expect("without failure"), message);
    }
    socket.close(None).await.expect("to be closed");
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    let asked = spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("a connection");
        let asked = head(&mut stream).await;
        // The first bytes of the new protocol may come with the answer.
        say(&mut stream, &format!("{SWITCHING}early ")).await;
        let said = rest(&mut stream).await;
        say(&mut stream, &format!("heard {said}")).await;
        asked
    });
    let mut client = TcpStream::connect(proxy).await.expect("a connection");
    say(&mut client, UPGRADE).await;
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("connection: upgrade") && answer.contains("upgrade: chat/1"), "{answer}");
    say(&mut client, "the last word").await;
    client.shutdown().await.expect("an end");
    assert_eq!(rest(&mut client).await, "early heard the last word");
    let asked = asked.await.expect("to be asked");
    assert!(asked.contains("connection: upgrade") && asked.contains("upgrade: chat/1"), "{asked}");
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_answer_like_any_other() {
    let upstream =
        Router::new().fallback(async || (StatusCode::UPGRADE_REQUIRED, [("upgrade", "chat/2")], "no"));
    let proxy = in_front_of(upstream).await;
    let mut client = TcpStream::connect(proxy).await.expect("a connection");
    // On the same connection twice: it is still one of HTTP.
    for _ in 0..2 {
        say(&mut client, UPGRADE).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
        assert!(answer.contains("upgrade: chat/2"), "{answer}");
        let mut body = [0; 2];
        client.read_exact(&mut body).await.expect("a body");
        assert_eq!(&body, b"no");
    }
}

#[tokio::test]
async fn an_upgrade_nobody_asked_for_is_502() {
    let upstream = Scripted::new(async |_, mut stream| {
        head(&mut stream).await;
        say(&mut stream, SWITCHING).await;
        rest(&mut stream).await
    });
    let response = ask(&upstream.proxied(), get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(text_of(response).await, "the upstream switched protocols without being asked to\n");
}

#[tokio::test]
async fn what_is_no_upgrade_is_not_passed_on_as_one() {
    let proxy = in_front_of(Router::new().fallback(told)).await;
    for request in [
        "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: chat/1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUpgrade: chat/1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, upgrade, http2-settings\r\nUpgrade: H2C\r\n\
         HTTP2-Settings: x\r\n\r\n",
    ] {
        let answer = exchange(proxy, request).await;
        let (_, asked) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(!asked.contains("upgrade:") && !asked.contains("http2-settings"), "{asked}");
    }
}
