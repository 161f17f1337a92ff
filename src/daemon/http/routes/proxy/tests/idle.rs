//! Connections to the upstream between two requests.

use super::*;
use crate::daemon::http::routes::proxy::pool::{MOST, STEP};

/// Tells the number of each connection at its first byte, and again when it ends.
async fn keep(number: usize, mut stream: UnixStream, told: UnboundedSender<(usize, &'static str)>) {
    while next_head(&mut stream).await.is_some() {
        let _ = told.send((number, "asked"));
        say(&mut stream, OK).await;
    }
    let _ = told.send((number, "closed"));
}

fn keeping() -> (Scripted, UnboundedReceiver<(usize, &'static str)>) {
    let (tell, told) = unbounded_channel();
    (Scripted::new(move |number, stream| keep(number, stream, tell.clone())), told)
}

async fn ask_for_ok(routes: &Routes) {
    assert_eq!(text_of(ask(routes, get("/")).await).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_in_time_and_nothing_runs_after_that() {
    let (upstream, mut told) = keeping();
    let tasks = TaskTracker::new();
    let route = Route::new("/*", Action::Proxy(upstream.config()));
    let routes = Routes::new(&[route], None, None, &tasks);
    assert_eq!(tasks.len(), 0);
    ask_for_ok(&routes).await;
    assert_eq!(told.recv().await, Some((0, "asked")));
    assert_eq!(tasks.len(), 1);
    let idle = Instant::now();
    assert_eq!(told.recv().await, Some((0, "closed")));
    assert!((POOL_IDLE..=POOL_IDLE + STEP).contains(&idle.elapsed()), "{:?}", idle.elapsed());
    sleep(Duration::from_millis(1)).await;
    assert_eq!(tasks.len(), 0);
    // And it begins anew.
    ask_for_ok(&routes).await;
    assert_eq!([told.recv().await, told.recv().await], [Some((1, "asked")), Some((1, "closed"))]);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end_with_their_route() {
    let (upstream, mut told) = keeping();
    let routes = upstream.proxied();
    ask_for_ok(&routes).await;
    assert_eq!(told.recv().await, Some((0, "asked")));
    let idle = Instant::now();
    drop(routes);
    assert_eq!(told.recv().await, Some((0, "closed")));
    assert!(idle.elapsed() < STEP, "{:?}", idle.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_upstream_ends_while_it_is_idle_does_not_linger() {
    let (tell, mut told) = unbounded_channel();
    let upstream = Scripted::new(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            head(&mut stream).await;
            say(&mut stream, OK).await;
            stream.shutdown().await.expect("half a close");
            let ended = Instant::now();
            rest(&mut stream).await;
            let _ = tell.send(ended.elapsed());
        }
    });
    let routes = upstream.proxied();
    ask_for_ok(&routes).await;
    let lingered = told.recv().await.expect("its end");
    assert!(lingered <= STEP, "{lingered:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_upstream_says_unasked_is_nobodys_answer() {
    for method in ["GET", "POST"] {
        let upstream = Scripted::new(async |number, mut stream| {
            head(&mut stream).await;
            say(&mut stream, OK).await;
            if number == 0 {
                sleep(Duration::from_millis(10)).await;
                say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await;
            }
            rest(&mut stream).await
        });
        let routes = upstream.proxied();
        ask_for_ok(&routes).await;
        sleep(Duration::from_millis(20)).await;
        let request = Request::builder().method(method).uri("/").body(Body::empty()).expect("a request");
        assert_eq!(text_of(ask(&routes, request).await).await, "ok");
    }
}

/// The second answer comes in one piece with the first.
#[tokio::test(start_paused = true)]
async fn an_answer_too_many_is_nobodys_answer() {
    let upstream = Scripted::new(async |number, mut stream| {
        head(&mut stream).await;
        let forged = if number == 0 { "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged" } else { "" };
        say(&mut stream, &format!("{OK}{forged}")).await;
        rest(&mut stream).await
    });
    let routes = upstream.proxied();
    ask_for_ok(&routes).await;
    ask_for_ok(&routes).await;
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_leave_their_connection_open() {
    let upstream = Scripted::new(async |number, mut stream| {
        for answer in [
            "200 OK\r\ncontent-length: 7",
            "204 No Content\r\ncontent-length: 7",
            "304 Not Modified\r\ncontent-length: 7",
            "200 OK\r\ncontent-length: 0",
            "200 OK\r\ntransfer-encoding: chunked",
        ] {
            head(&mut stream).await;
            let chunks = if answer.ends_with("chunked") { "1\r\na\r\n0\r\n\r\n" } else { "" };
            say(&mut stream, &format!("HTTP/1.1 {answer}\r\nx-number: {number}\r\n\r\n{chunks}")).await;
        }
        rest(&mut stream).await
    });
    let routes = upstream.proxied();
    for method in ["HEAD", "GET", "GET", "GET", "GET", "GET"] {
        let request = Request::builder().method(method).uri("/").body(Body::empty()).expect("a request");
        let Ok(response) = tokio::time::timeout(SECOND, ask(&routes, request)).await else { return };
        assert_eq!(response.headers()["x-number"], "0");
        response.into_body().collect().await.expect("a whole body");
    }
    panic!("the upstream had no answer left");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_answers_early_gets_the_rest_and_keeps_its_connection() {
    for early in ["content-length: 2\r\n\r\nok", "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"] {
        let (tell, mut told) = unbounded_channel();
        let upstream = Scripted::new(move |number, mut stream| {
            let tell = tell.clone();
            async move {
                head(&mut stream).await;
                say(&mut stream, &format!("HTTP/1.1 200 OK\r\n{early}")).await;
                let mut body = [0; 10];
                stream.read_exact(&mut body).await.expect("the rest of the request");
                let _ = tell.send((number, body));
                head(&mut stream).await;
                let _ = tell.send((number, *b"once more."));
                say(&mut stream, OK).await;
                rest(&mut stream).await
            }
        });
        let routes = upstream.proxied();
        let (piece, pieces) = unbounded_channel::<&str>();
        let pieces = stream::unfold(pieces, async |mut pieces| {
            let piece = pieces.recv().await?;
            Some((Ok::<_, Infallible>(piece), pieces))
        });
        let request = Request::post("/").header("content-length", "10").body(Body::from_stream(pieces));
        piece.send("01234").expect("a reader");
        assert_eq!(text_of(ask(&routes, request.expect("a request")).await).await, "ok");
        sleep(SECOND).await;
        assert!(told.is_empty());
        piece.send("56789").expect("a reader");
        assert_eq!(told.recv().await, Some((0, *b"0123456789")));
        drop(piece);
        sleep(Duration::from_millis(1)).await;
        ask_for_ok(&routes).await;
        assert_eq!(told.recv().await, Some((0, *b"once more.")));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_connections_are_kept() {
    let (upstream, mut told) = keeping();
    let routes = upstream.proxied();
    // None has answered when the last one asks.
    futures_util::future::join_all((0..MOST + 3).map(|_| ask_for_ok(&routes))).await;
    sleep(Duration::from_millis(1)).await;
    let mut told_by_now = Vec::new();
    while let Ok(told) = told.try_recv() {
        told_by_now.push(told);
    }
    let closed = told_by_now.iter().filter(|(_, what)| *what == "closed").count();
    let opened = told_by_now.iter().map(|(number, _)| number + 1).max().expect("some");
    assert_eq!((opened, closed), (MOST + 3, 3));
}

/// A library user may run one daemon after another, each with a runtime of its own.
#[test]
fn a_connection_of_another_runtime_is_not_used() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let upstreams = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let upstreams = upstreams.expect("a runtime");
    let address = upstreams.block_on(serve(Router::new().fallback(async || "ok")));
    let routes = proxied(config(http(address)));
    let first = runtime();
    first.block_on(ask_for_ok(&routes));
    // One that is still there, and that nobody runs.
    runtime().block_on(ask_for_ok(&routes));
    // And one that has ended.
    runtime().block_on(ask_for_ok(&routes));
    first.block_on(ask_for_ok(&routes));
}
