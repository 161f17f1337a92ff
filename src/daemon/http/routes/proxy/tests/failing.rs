//! An upstream that fails: what may be sent again is, and the client learns the rest.

use super::*;

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
async fn use_once(router: &Routes) {
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
        sleep(Duration::from_millis(200)).await;
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
    assert!(text.contains("method=GET path=\"/path\" query=\"q\""), "{text}");
    assert!(text.contains("error=\"no answer from the upstream: "), "{text}");
}

/// Closes each connection after a few answers, at once or a moment later, and tells of each path that it was asked for.
async fn fickle(number: usize, mut stream: UnixStream, came: UnboundedSender<String>) {
    for _ in 0..=number % 4 {
        let Some(head) = next_head(&mut stream).await else { return };
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        say(&mut stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())).await;
        let _ = came.send(path);
    }
    if !number.is_multiple_of(3) {
        sleep(Duration::from_micros(number as u64 % 500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_upstream_that_closes_at_any_time_everybody_gets_the_answer_to_the_own_request_alone() {
    let (came, mut told) = unbounded_channel();
    let upstream = Scripted::new(move |number, stream| fickle(number, stream, came.clone()));
    let router = upstream.proxied();
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let router = router.clone();
            spawn(async move {
                for number in 0..200 {
                    let method = if number % 2 == 0 { Method::GET } else { Method::POST };
                    let path = format!("/{method}/{client}/{number}");
                    let request = Request::builder().method(&method).uri(&path).body(Body::empty());
                    let response = ask(&router, request.expect("a request")).await;
                    match response.status() {
                        StatusCode::OK => assert_eq!(text_of(response).await, path),
                        // Sent just when the upstream closed.
                        status => assert_eq!((status, method), (StatusCode::BAD_GATEWAY, Method::POST)),
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("every answer to be its own");
    }
    let mut posted = std::collections::HashSet::new();
    while let Ok(path) = told.try_recv() {
        assert!(path.starts_with("/GET/") || posted.insert(path.clone()), "{path} was sent twice");
    }
    assert!(!posted.is_empty());
}
