//! A client that fails is not the upstream's fault.

use super::*;

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
