//! Requests of every kind get their answers.

use axum::Router;

use crate::client::Lost;
use crate::handlers::router;
use crate::service::Service;

async fn service() -> Service {
    Service::start("", |daemon| daemon.router(router())).await
}

#[tokio::test]
async fn a_connection_answers_one_request_after_another() {
    let service = service().await;
    let mut client = service.connect().await;
    for name in ["one", "two", "three"] {
        let response = client.get(&format!("/path/{name}")).await.unwrap();
        assert_eq!((response.status, response.text()), (200, name));
        assert_eq!(response.header("connection"), None);
    }
    assert_eq!(service.status().await["totals"]["connections"], 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let service = service().await;
    let mut client = service.connect().await;
    let names: Vec<_> = (0..50).map(|n| format!("request-{n}")).collect();
    let head = |name: &String| format!("GET /path/{name} HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send(names.iter().map(head).collect::<Vec<_>>().concat()).await;
    for name in names {
        assert_eq!(client.receive().await.unwrap().text(), name);
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_the_body() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let head = client.receive_head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    // Were there a body, it would come before this.
    assert_eq!(client.get("/path/next").await.unwrap().text(), "next");
}

#[tokio::test]
async fn an_http_1_0_client_is_answered_and_its_connection_closed() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
}

#[tokio::test]
async fn an_http_1_0_client_that_asks_for_keep_alive_gets_it() {
    let service = service().await;
    let mut client = service.connect().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(client.receive().await.unwrap().text(), "hello");
    }
}

#[tokio::test]
async fn a_client_that_asks_for_the_close_gets_it_after_its_answer() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.receive().await.unwrap().text(), "hello");
    assert_eq!(client.receive().await, Err(Lost::Closed));
}

#[tokio::test]
async fn bodies_arrive_and_leave_whole_chunked_or_not() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nfirst").await;
    assert_eq!(client.receive().await.unwrap().text(), "first");
    client
        .send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.receive().await.unwrap().text(), "second");
    assert_eq!(client.get("/chunks").await.unwrap().body.len(), 3000);
}

#[tokio::test]
async fn a_body_streams_through_while_it_is_still_being_sent() {
    let service = service().await;
    let mut client = service.connect().await;
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    assert_eq!(client.receive_head().await.unwrap().status, 200);
    assert_eq!(client.receive_chunk().await.unwrap().unwrap(), b"one");
    client.send("3\r\ntwo\r\n").await;
    assert_eq!(client.receive_chunk().await.unwrap().unwrap(), b"two");
    client.send("0\r\n\r\n").await;
    assert_eq!(client.receive_chunk().await.unwrap(), None);
}

#[tokio::test]
async fn a_client_that_asks_whether_to_send_its_body_is_told_to() {
    let service = service().await;
    let mut client = service.connect().await;
    client
        .send("POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.receive_head().await.unwrap().status, 100);
    client.send("body").await;
    assert_eq!(client.receive().await.unwrap().text(), "4");
}

#[tokio::test]
async fn no_router_answers_a_connect_as_if_there_were_a_tunnel() {
    let service = Service::start("", |daemon| daemon.router(Router::new().fallback(async || "ok"))).await;
    for target in ["/", "test:443"] {
        let mut client = service.connect().await;
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: test:443\r\n\r\n")).await;
        let answer = client.receive().await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (501, Some("close")), "{target}");
        assert_eq!(client.receive().await, Err(Lost::Closed));
    }
}

#[tokio::test]
async fn what_is_no_http_is_refused_with_400_and_disturbs_nobody_else() {
    let service = service().await;
    let mut other = service.connect().await;
    for nonsense in ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\nbad header\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let mut client = service.connect().await;
        client.send(nonsense).await;
        assert_eq!(client.receive().await.unwrap().status, 400, "{nonsense:?}");
        assert_eq!(client.receive().await, Err(Lost::Closed));
        assert_eq!(other.get("/").await.unwrap().text(), "hello");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_within_its_request_disturbs_nobody_else() {
    let service = service().await;
    let mut other = service.connect().await;
    for begun in [
        "GET",
        "GET /never HTTP/1.1\r\nHost: test\r\n\r\n",
        "POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
    ] {
        let mut client = service.connect().await;
        client.send(begun).await;
        drop(client);
        assert_eq!(other.get("/").await.unwrap().text(), "hello");
    }
    let status =
        service.wait_for_status("only the other left", |s| s["requests"] == serde_json::json!([])).await;
    assert_eq!(status["totals"]["client_gone"], 2);
}

#[tokio::test]
async fn an_answer_that_its_handler_breaks_off_is_named_in_the_log_and_not_put_down_to_the_client() {
    let service = service().await;
    for path in ["/failing", "/short", "/panicking"] {
        let mut client = service.connect().await;
        let answer = client.get(path).await;
        assert!(answer.is_err(), "{path}: {answer:?}");
        service.wait_for("its line", |e| e.field("path") == path && e.field("outcome") == "broken off").await;
    }
    let totals = &service.status().await["totals"];
    for (name, count) in [("requests", 3), ("broken_off", 3), ("client_gone", 0), ("cut", 0)] {
        assert_eq!(totals[name], count, "{name} in {totals}");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_within_its_upload_has_not_been_broken_off() {
    let service = service().await;
    for begun in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut client = service.connect().await;
        client.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\n{begun}")).await;
        assert_eq!(client.receive_head().await.unwrap().status, 200);
    }
    let status = service.wait_for_status("both ended", |s| s["totals"]["requests"] == 2).await;
    assert_eq!((&status["totals"]["client_gone"], &status["totals"]["broken_off"]), (&2.into(), &0.into()));
}

#[tokio::test]
async fn a_panic_costs_its_own_request_and_nothing_else() {
    let service = service().await;
    let mut client = service.connect().await;
    let mut other = service.connect().await;
    let response = client.get("/panic").await.unwrap();
    assert_eq!((response.status, response.text()), (500, "the handler failed\n"));
    assert_eq!(client.get("/").await.unwrap().text(), "hello");
    assert_eq!(other.get("/").await.unwrap().text(), "hello");
}
