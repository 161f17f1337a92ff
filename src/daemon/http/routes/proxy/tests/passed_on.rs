//! Requests as the upstream gets them, and answers as the client does.

use super::*;

#[tokio::test]
async fn query_and_host_reach_the_upstream_unchanged_and_the_path_as_the_routes_read_it() {
    let proxy = in_front_of(Router::new().fallback(told)).await;
    let request = "GET /a%2fb/../{c}//d?e=%20&f HTTP/1.1\r\nHost: the.client:81\r\nConnection: close\r\n\r\n";
    let answer = exchange(proxy, request).await;
    assert!(answer.contains("GET /%7Bc%7D/d?e=%20&f\n"), "{answer}");
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
    let routes = proxied(config(http(upstream)));
    let peer = Peer::Tcp("[2001:db8::1]:4711".parse().expect("an address"));
    let request = Request::get("/")
        .header("host", "h:1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x_forwarded_for", "6.6.6.6")
        .header("X-Forwarded-Port", "666")
        .header("x-real-ip", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .body(Body::empty())
        .expect("a request");
    let asked = text_of(routes.answer(request, InFlight::of(peer)).await).await;
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
async fn an_interim_answer_is_passed_on_as_it_comes() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    let mut client = TcpStream::connect(proxy).await.expect("it listens");
    say(&mut client, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let (mut stream, _) = upstream.accept().await.expect("a connection");
    head(&mut stream).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n";
    say(&mut stream, hints).await;
    // The answer itself comes only once the hints have been read.
    assert_eq!(head(&mut client).await, "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n");
    say(&mut stream, OK).await;
    let answer = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn an_older_client_gets_no_interim_answer() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
    spawn(async move {
        let (mut stream, _) = upstream.accept().await.expect("a connection");
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 102 Processing\r\n\r\n").await;
        say(&mut stream, OK).await;
        rest(&mut stream).await
    });
    let answer = exchange(proxy, "GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
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

#[tokio::test]
async fn an_ipv4_client_has_its_address_in_decimal_digits_also_on_an_ipv6_socket() {
    let upstream = serve(Router::new().fallback(told)).await;
    let routes = proxied(config(http(upstream)));
    for (peer, address) in [
        ("0.9.10.99:1", "0.9.10.99"),
        ("100.109.110.255:2", "100.109.110.255"),
        ("[::ffff:192.0.2.1]:3", "192.0.2.1"),
    ] {
        let peer = Peer::Tcp(peer.parse().expect("an address"));
        let request = Request::get("/").header("host", "h").body(Body::empty()).expect("a request");
        let asked = text_of(routes.answer(request, InFlight::of(peer)).await).await;
        assert!(asked.contains(&format!("\nx-forwarded-for: {address}\n")), "{asked}");
        assert!(asked.contains(&format!("\nforwarded: for={address};host=\"h\";proto=http\n")), "{asked}");
    }
}
