//! An upstream that is not there yet is waited for.

use super::*;

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
