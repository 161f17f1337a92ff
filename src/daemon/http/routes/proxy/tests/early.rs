//! An upstream may answer before it has the whole request. It gets the rest, unless that comes to a halt.

use std::future::poll_fn;

use axum::body::Bytes;
use tokio::time::timeout;

use super::*;

const EARLY: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";

/// A safety net: the clock goes at once to whatever is waited for.
const PATIENCE: Duration = Duration::from_secs(3000);

/// Answers early, and then neither reads nor closes.
async fn answer_early(_: usize, mut stream: UnixStream) -> UnixStream {
    head(&mut stream).await;
    say(&mut stream, EARLY).await;
    sleep(2 * PATIENCE).await;
    stream
}

fn upload(pieces: impl stream::Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Request {
    let request = Request::post("/").header("transfer-encoding", "chunked");
    request.body(Body::from_stream(pieces)).expect("a request")
}

/// A client of a server that proxies.
fn client_of(routes: Routes) -> UnixStream {
    client_with(Limits::default(), routes)
}

fn client_with(limits: Limits, routes: Routes) -> UnixStream {
    let registry = Registry::new(Totals::unobserved());
    let server = Server::new(Vec::new(), routes, registry, limits).speaking_h2c(true);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    server.serve_one(theirs);
    spawn(async move { server.serve().await });
    ours
}

#[tokio::test(start_paused = true)]
async fn the_rest_is_passed_on_for_however_long_the_client_takes() {
    let (tell, mut told) = unbounded_channel();
    let upstream = Scripted::new(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            head(&mut stream).await;
            say(&mut stream, EARLY).await;
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                body.push(stream.read_u8().await.expect("the rest of the body"));
            }
            let _ = tell.send(body);
            rest(&mut stream).await
        }
    });
    // A steady one, then one whose client is silent for three timeouts: that is not the upstream's fault.
    for pause in [30, 180] {
        let pieces = stream::iter(0..10).then(move |_| async move {
            sleep(pause * SECOND).await;
            Ok(Bytes::from("piece"))
        });
        assert_eq!(text_of(ask(&upstream.proxied(), upload(pieces)).await).await, "no");
        let body = timeout(PATIENCE, told.recv()).await.expect("a body").expect("a whole one");
        assert_eq!(body, [&b"5\r\npiece\r\n".repeat(10)[..], b"0\r\n\r\n"].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_is_given_up_if_the_upstream_does_not_read_it_for_timeout() {
    let upstream = Scripted::new(answer_early);
    // Closed when the body is dropped.
    let (held, mut given_up) = unbounded_channel::<()>();
    let endless = stream::repeat_with(move || {
        let _ = &held;
        Ok(Bytes::from_static(&[0; 4096]))
    });
    assert_eq!(text_of(ask(&upstream.proxied(), upload(endless)).await).await, "no");
    let began = Instant::now();
    assert_eq!(timeout(PATIENCE, given_up.recv()).await.expect("an end"), None);
    assert!((60 * SECOND..61 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_is_told_that_the_rest_is_given_up_and_may_ask_for_something_else() {
    let upstream = Scripted::new(answer_early);
    let client = client_of(upstream.proxied());
    let (requests, connection) = h2::client::handshake(client).await.expect("it speaks HTTP/2");
    spawn(connection);
    let mut uploads = Vec::new();
    // As many as it may have at once, and one more.
    for _ in 0..=128 {
        let mut requests = timeout(PATIENCE, requests.clone().ready()).await.expect("room").expect("for it");
        let request = Request::post("http://here/").body(()).expect("a request");
        let (answer, upload) = requests.send_request(request, false).expect("a request");
        assert_eq!(answer.await.expect("an answer").status(), StatusCode::NOT_FOUND);
        uploads.push(upload);
    }
    let reset = poll_fn(|cx| uploads[0].poll_reset(cx));
    // RFC 9113, section 8.1: the answer counts nevertheless.
    assert_eq!(timeout(PATIENCE, reset).await.expect("an end").expect("a reset"), h2::Reason::NO_ERROR);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_the_upstream_does_not_let_begin_is_given_up() {
    let (tell, mut told) = unbounded_channel();
    let upstream = Scripted::new(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat/1\r\n\r\n",
            )
            .await;
            sleep(PATIENCE).await;
            let _ = tell.send(stream.write_all(b"are you there?").await.is_ok());
        }
    });
    let mut client = client_of(upstream.proxied());
    say(
        &mut client,
        "POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: chat/1\r\ncontent-length: 10000000\r\n\r\n",
    )
    .await;
    let sent = timeout(PATIENCE, client.write_all(&vec![0; 10_000_000])).await.expect("an end");
    assert!(sent.is_err(), "nobody has read it");
    assert_eq!(told.recv().await, Some(false), "the upstream is still connected");
}

/// Uploads a byte a second behind an early answer, for as long as that is taken, beside another request or alone.
async fn trickle(limits: Limits, beside_another: bool) -> Duration {
    let upstream = Scripted::new(answer_early_once);
    let client = client_with(limits, proxied(Config { timeout: PATIENCE, ..upstream.config() }));
    let (requests, connection) = h2::client::handshake(client).await.expect("it speaks HTTP/2");
    spawn(connection);
    let ask = |requests: &mut h2::client::SendRequest<Bytes>, ends| {
        requests.send_request(Request::post("http://here/").body(()).expect("a request"), ends)
    };
    let mut requests = requests.ready().await.expect("it takes requests");
    let (answer, mut upload) = ask(&mut requests, false).expect("a request");
    assert_eq!(answer.await.expect("an answer").status(), StatusCode::NOT_FOUND);
    let mut requests = requests.ready().await.expect("it takes requests");
    let _other = beside_another.then(|| ask(&mut requests, true).expect("a request"));
    let began = Instant::now();
    while began.elapsed() < PATIENCE / 3 && upload.send_data(Bytes::from("x"), false).is_ok() {
        sleep(SECOND).await;
    }
    began.elapsed()
}

/// Answers the first request early, and no other.
async fn answer_early_once(number: usize, mut stream: UnixStream) {
    if number == 0 {
        head(&mut stream).await;
        say(&mut stream, EARLY).await;
    }
    never_answer(number, stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_has_to_send_the_rest_at_the_least_rate() {
    let endured = trickle(Limits::default(), true).await;
    assert!((30 * SECOND..60 * SECOND).contains(&endured), "{endured:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http2_is_not_idle_while_the_rest_is_passed_on() {
    let slow = Limits { min_rate: 0, ..Limits::default() };
    assert!(slow.keepalive_timeout < PATIENCE / 3);
    let endured = trickle(slow, false).await;
    assert!(endured >= PATIENCE / 3, "{endured:?}");
}
