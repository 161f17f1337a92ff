//! An upstream may take its time, and no more.

use super::*;

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
