//! Connections that become another protocol.

use super::*;

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

/// RFC 9110, sections 7.8 and 15.2.2.
#[tokio::test]
async fn an_upgrade_is_to_what_was_asked_for_or_it_is_502() {
    for (asked, agreed, status) in [
        ("chat/1", "upgrade: chat/1\r\n", "101"),
        ("chat/1", "upgrade: Chat/1\r\n", "101"),
        ("chat/2, chat/1", "upgrade: chat/1\r\n", "101"),
        ("tls/1.3, chat/1", "upgrade: chat/1, tls/1.3\r\n", "101"),
        ("chat/1", "", "502"),
        ("chat/1", "upgrade:\r\n", "502"),
        ("chat/1", "upgrade: chat/2\r\n", "502"),
        ("chat/1", "upgrade: chat\r\n", "502"),
        ("chat/1", "upgrade: chat/1, tls/1.3\r\n", "502"),
        ("chat/1", "upgrade: chat/1\r\nupgrade: tls/1.3\r\n", "502"),
        ("chat/1", "upgrade: chat/\u{fc}\r\n", "502"),
    ] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let proxy = serve_proxy(config(http(upstream.local_addr().expect("an address"))));
        spawn(async move {
            let (mut stream, _) = upstream.accept().await.expect("a connection");
            head(&mut stream).await;
            let switching =
                format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{agreed}\r\n");
            say(&mut stream, &switching).await;
            rest(&mut stream).await
        });
        let mut client = TcpStream::connect(proxy).await.expect("a connection");
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: {asked}\r\n\r\n");
        say(&mut client, &request).await;
        let answer = head(&mut client).await;
        assert_eq!(answer.get(9..12), Some(status), "{agreed:?} to {asked:?}: {answer}");
    }
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
