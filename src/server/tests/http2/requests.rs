//! A stream is a request, and a connection ends once its streams have.

use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use h2::Reason;
use http_body_util::BodyExt;
use steadfast_harness::frames::{ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{Client, PATIENCE, Raw, Service, read, run, text};
use crate::server::connection::Command;
use crate::server::limits::Limits;
use crate::server::{Registry, State};

#[tokio::test]
async fn each_stream_is_a_request_and_its_connection_is_one() {
    let service = Service::new();
    let mut client = service.client().await;
    let (one, two) = (client.begin("/wait?1").await, client.begin("/wait?2").await);
    service.until(|registry| registry.in_flight() == 2).await;
    assert_eq!((service.registry.len(), service.registry.idle()), (1, 0));
    assert_eq!(service.registry.connections()[0].state(), State::Http2);
    let mut seen: Vec<_> = service.registry.requests().iter().map(|r| r.uri.to_string()).collect();
    seen.sort();
    assert_eq!(seen, ["/wait?1", "/wait?2"]);
    // Another is answered meanwhile.
    assert_eq!(text(&client.get("/x?y").await), (200, "GET /x?y [\"here\", \"\"] 0"));
    service.go.notify_waiters();
    for answer in [one, two] {
        assert_eq!(answer.await.expect("an answer").status(), 200);
    }
    service.until(|registry| registry.in_flight() == 0).await;
    let totals = service.registry.totals();
    assert_eq!((totals.requests(), totals.client_gone(), service.registry.idle()), (3, 0, 1));
    assert_eq!(totals.accepted.load(Relaxed), 1);
}

#[tokio::test]
async fn the_first_bytes_say_what_is_spoken_however_they_arrive() {
    let service = Service::new();
    for cut in 0..24 {
        for (said, answered) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], &b"\0\0"[..]),
            (b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", b"HT"),
            (b"PRI /x HTTP/1.1\r\nhost: a\r\n\r\n", b"HT"),
        ] {
            let mut socket = service.socket();
            for part in [&said[..cut], &said[cut..]] {
                socket.write_all(part).await.expect("it reads");
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            let mut answer = [0; 2];
            timeout(PATIENCE, socket.read_exact(&mut answer)).await.expect("an answer").expect("whole");
            assert_eq!(answer, answered, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_request_looks_as_it_would_with_http1() {
    let service = Service::new();
    let mut client = service.client().await;
    let ask = |fields: &[(&str, &str)]| {
        let mut request = Client::request(&Method::GET, "/a?b");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    };
    let cookies = client.ask(ask(&[("cookie", "a=1"), ("cookie", "b=2")]), None).await;
    assert_eq!(text(&cookies), (200, "GET /a?b [\"here\", \"a=1; b=2\"] 0"));
    let same = client.ask(ask(&[("host", "HERE")]), None).await;
    assert_eq!(text(&same), (200, "GET /a?b [\"here\", \"\"] 0"));
    let other = client.ask(ask(&[("host", "there")]), None).await;
    assert_eq!(text(&other), (400, "the request's Host is not its :authority\n"));
    for hosts in [["here", "there"], ["there", "here"]] {
        let two = client.ask(ask(&hosts.map(|host| ("host", host))), None).await;
        assert_eq!(text(&two), (400, "the request's Host is not its :authority\n"));
    }
    let many: Vec<_> = (0..101).map(|n| (format!("x-{n}"), "y")).collect();
    let many =
        client.ask(ask(&many.iter().map(|(name, value)| (&**name, *value)).collect::<Vec<_>>()), None).await;
    assert_eq!(many.expect("an answer").status(), 431);
    assert_eq!((service.refused("bad_request"), service.refused("head_too_large")), (3, 1));
    // The connection has gone on all along.
    assert_eq!(service.registry.len(), 1);
}

#[tokio::test]
async fn an_answer_has_its_id_and_no_field_of_one_hop() {
    let service = Service::new();
    let mut client = service.client().await;
    let answer = client.get("/").await.expect("an answer");
    assert!(answer.headers().contains_key("x-request-id") && answer.headers().contains_key("date"));
    assert!(!answer.headers().contains_key("connection"));
    let head = Client::request(&Method::HEAD, "/unmistakable").body(()).expect("a request");
    let head = client.ask(head, None).await.expect("an answer");
    let length = "HEAD /unmistakable [\"here\", \"\"] 0".len();
    assert_eq!((&head.headers()["content-length"], head.body().len()), (&length.into(), 0));
    assert_eq!(text(&client.get("/empty").await), (204, ""));
    assert_eq!(text(&client.get("/switches").await).0, 500);
}

#[tokio::test]
async fn an_answer_to_head_has_no_length_that_nobody_has_said() {
    let service = Service::new();
    let mut client = service.client().await;
    for (path, length) in [("/", true), ("/large", false)] {
        let head = Client::request(&Method::HEAD, path).body(()).expect("a request");
        let head = client.ask(head, None).await.expect("an answer");
        assert_eq!(head.headers().contains_key("content-length"), length, "{path}: {head:?}");
        // With HTTP/1 it is the same.
        let mut socket = service.socket();
        let request = format!("HEAD {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("it reads");
        let mut head = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut head)).await.expect("an answer").expect("text");
        assert_eq!(head.contains("content-length"), length, "{path}: {head}");
    }
}

#[tokio::test]
async fn bodies_and_their_trailers_go_both_ways() {
    let service = Service::new();
    let mut client = service.client().await;
    assert!(text(&client.post("/", vec![1; 1_000_000]).await).1.ends_with(" 1000000"));
    assert_eq!(client.get("/large").await.expect("an answer").body().len(), 16_000_000);
    let request = Client::request(&Method::POST, "/trailers").body(()).expect("a request");
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (answer, mut sending) = requests.send_request(request, false).expect("a request");
    sending.send_data("body".into(), false).expect("room");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "4".parse().expect("a value"));
    sending.send_trailers(trailers.clone()).expect("trailers");
    let mut body = answer.await.expect("an answer").into_body();
    assert_eq!(body.data().await.expect("data").expect("whole"), "with");
    assert_eq!(body.trailers().await.expect("trailers"), Some(trailers));
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_taken_to_its_end_if_it_is_short_and_else_refused() {
    let service = Service::new();
    let mut client = service.client().await;
    for length in [10, 200_000] {
        assert_eq!(text(&client.post("/unread", vec![0; length]).await), (200, "unread"));
    }
    // More than the connection may hold: it has been given back.
    for _ in 0..10 {
        assert_eq!(text(&client.post("/unread", vec![0; 100_000]).await), (200, "unread"));
    }
    let request = Client::request(&Method::POST, "/unread").header("content-length", 9_000_000);
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (answer, mut sending) =
        requests.send_request(request.body(()).expect("a request"), false).expect("a request");
    let body = answer.await.expect("an answer").into_body();
    assert_eq!(read(body).await.expect("whole"), "unread");
    let reason = timeout(PATIENCE, poll_fn(|cx| sending.poll_reset(cx))).await;
    assert_eq!(reason.expect("a reset").expect("a reason"), Reason::NO_ERROR);
    let request = Client::request(&Method::POST, "/").header("content-length", 11 << 20);
    let (answer, _sending) = client
        .requests
        .clone()
        .ready()
        .await
        .expect("it takes requests")
        .send_request(request.body(()).expect("a request"), false)
        .expect("a request");
    assert_eq!(answer.await.expect("an answer").status(), 413);
    assert_eq!(service.refused("body_too_large"), 1);
    assert_eq!(text(&client.get("/").await).0, 200);
}

#[tokio::test]
async fn what_fails_is_a_stream_and_the_others_go_on() {
    let service = Service::new();
    let mut client = service.client().await;
    let slow = client.begin("/slow").await;
    assert_eq!(text(&client.get("/panic").await), (500, "the handler failed\n"));
    for path in ["/panic-within", "/breaks"] {
        assert!(client.get(path).await.is_err_and(|error| error.is_reset()), "{path}");
    }
    service.until(|registry| registry.totals().broken_off() == 2).await;
    service.go.notify_waiters();
    assert_eq!(read(slow.await.expect("an answer").into_body()).await.expect("whole"), "slow");
}

#[tokio::test]
async fn a_request_that_its_client_takes_back_has_lost_its_client() {
    let service = Service::new();
    let mut client = service.client().await;
    let request = Client::request(&Method::GET, "/wait").body(()).expect("a request");
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (_answer, mut sending) = requests.send_request(request, false).expect("a request");
    service.until(|registry| registry.in_flight() == 1).await;
    sending.send_reset(Reason::CANCEL);
    service.until(|registry| registry.totals().client_gone() == 1 && registry.in_flight() == 0).await;
    let _wait = client.begin("/wait").await;
    service.until(|registry| registry.in_flight() == 1).await;
    drop(client);
    service.until(|registry| registry.totals().client_gone() == 2 && registry.is_empty()).await;
}

/// A server whose handler answers at once, and reads the request's body in a task. It tells how many bytes that had; none if
/// it broke off.
fn reads_behind_its_answer(limits: Limits) -> (Service, UnboundedReceiver<Option<usize>>) {
    let (tell, told) = unbounded_channel();
    let reads = post(async move |body: Body| {
        let reading = async move {
            // Not at once, so that its end is seen by nobody else.
            sleep(Duration::from_secs(1)).await;
            let body = body.collect().await.map(|body| body.to_bytes().len());
            let _ = tell.send(body.ok());
        };
        TaskTracker::new().spawn(reading);
        "read"
    });
    (Service::of(Router::new().route("/reads", reads), Arc::default(), limits), told)
}

/// Begins an upload that is answered before it has come.
async fn upload(client: &Client, length: usize) -> h2::SendStream<Bytes> {
    let request = Client::request(&Method::POST, "/reads").header("content-length", length);
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (answer, sending) =
        requests.send_request(request.body(()).expect("a request"), false).expect("a request");
    let body = answer.await.expect("an answer").into_body();
    assert_eq!(read(body).await.expect("whole"), "read");
    sending
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_once_the_requests_of_its_streams_are_read() {
    let (service, mut told) = reads_behind_its_answer(Limits::default());
    let client = service.client().await;
    let mut sending = upload(&client, 1_000_000).await;
    for piece in 0..100 {
        sleep(Duration::from_secs(2)).await;
        sending.send_data(vec![0; 10_000].into(), piece == 99).expect("it is taken");
    }
    assert_eq!(told.recv().await, Some(Some(1_000_000)));
    let began = Instant::now();
    client.ended().await;
    assert!((73..77).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_reader_of_a_body_that_does_not_come_hears_of_it_behind_its_answer_too() {
    let (service, mut told) = reads_behind_its_answer(Limits::default());
    let client = service.client().await;
    let mut sending = upload(&client, 1_000_000).await;
    let began = Instant::now();
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("an end"), Some(None));
    assert!((30..33).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // RFC 9113, section 8.1: the answer counts nevertheless.
    let reset = poll_fn(|cx| sending.poll_reset(cx)).await;
    assert_eq!(reset.expect("a reset"), Reason::NO_ERROR);
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_an_answer_holds_up_no_drain() {
    let (service, mut told) = reads_behind_its_answer(Limits::default());
    let client = service.client().await;
    let mut sending = upload(&client, 1_000_000).await;
    let _sending = run(async move {
        while sending.send_data(vec![0; 100].into(), false).is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    sleep(Duration::from_secs(10)).await;
    let began = Instant::now();
    timeout(PATIENCE, service.server.drain(Duration::ZERO)).await.expect("it ends");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(told.recv().await, Some(None));
    let totals = service.registry.totals();
    assert_eq!((totals.requests(), totals.cut(), totals.client_gone()), (1, 0, 0));
}

// ---- its end -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_connection_that_is_to_leave_ends_once_its_streams_have() {
    let service = Service::new();
    let mut client = service.client().await;
    let waits = client.begin("/wait").await;
    let idle = service.client().await;
    service.until(|registry| registry.in_flight() == 1).await;
    for connection in service.registry.connections() {
        connection.commands().give(Command::Carry);
    }
    idle.ended().await;
    service.until(|registry| registry.len() == 1).await;
    service.go.notify_waiters();
    assert_eq!(waits.await.expect("an answer").status(), 200);
    client.ended().await;
    service.until(Registry::is_empty).await;
    let not_carried = &service.registry.totals().not_carried;
    assert_eq!(not_carried.to_string(), "; 2 connections closed: they spoke HTTP/2");
}

/// A stop: what has begun goes on, and the client is told in two steps, so that what it asks for meanwhile is not lost
/// (RFC 9113, section 6.8).
#[tokio::test(start_paused = true)]
async fn a_drain_lets_streams_end_and_a_client_ask_until_it_knows_and_the_deadline_cuts_what_is_left_by_name()
{
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    for (stream, path) in [(1, "/slow?1"), (3, "/slow?2")] {
        raw.get(stream, path).await;
        raw.until(HEADERS, stream).await;
    }
    let draining = service.server.clone();
    let drain = run(async move { draining.drain(Duration::ZERO).await });

    assert_eq!(raw.until(GOAWAY, 0).await.1, goaway(u32::MAX >> 1), "nothing is refused yet");
    let (_, ping) = raw.until(PING, 0).await;
    // It was on its way before the client has heard of the end.
    raw.get(5, "/").await;
    raw.say(&frame(PING, ACK, 0, &ping)).await;
    assert_eq!(raw.until(GOAWAY, 0).await.1, goaway(5), "the last that is answered");
    raw.until(DATA, 5).await;
    // The one that waits longest.
    service.go.notify_one();
    let (mut whole, mut last) = (Vec::new(), 0);
    while last & END_STREAM == 0 {
        let (flags, data) = raw.until(DATA, 1).await;
        whole.extend(data);
        last = flags;
    }
    assert_eq!(whole, b"slow");

    service.until(|registry| registry.in_flight() == 1).await;
    sleep(Duration::from_secs(20)).await;
    assert!(!drain.is_finished());
    let left: Vec<_> = service.registry.requests().iter().map(|request| request.uri.to_string()).collect();
    assert_eq!(left, ["/slow?2"]);
    service.server.cut();
    timeout(PATIENCE, drain).await.expect("it ends").expect("it ends well");
    let totals = service.registry.totals();
    assert_eq!((totals.requests(), totals.cut(), totals.client_gone()), (3, 1, 0));
    let rest = raw.rest().await;
    assert!(!rest.contains(&(DATA, 3)), "{rest:?}");
}

/// The payload of a GOAWAY without an error, after which no stream above this one is answered.
fn goaway(last: u32) -> Vec<u8> {
    [last.to_be_bytes(), [0; 4]].concat()
}

#[tokio::test]
async fn the_last_request_that_a_connection_may_make_is_followed_by_its_end() {
    let service = Service::limited(Limits { requests_per_connection: 3, ..Limits::default() });
    let mut client = service.client().await;
    for _ in 0..3 {
        assert_eq!(text(&client.get("/").await).0, 200);
    }
    client.ended().await;
}

#[tokio::test]
async fn a_cut_ends_every_stream_by_name() {
    let service = Service::new();
    let mut client = service.client().await;
    let waits = [client.begin("/wait?1").await, client.begin("/slow?2").await];
    service.until(|registry| registry.in_flight() == 2).await;
    assert_eq!(service.registry.requests().len(), 2);
    service.server.cut();
    service.until(Registry::is_empty).await;
    assert_eq!(service.registry.totals().cut(), 2);
    drop(waits);
}

/// So that whoever waits for the last connection finds all requests counted.
#[tokio::test]
async fn a_connection_is_there_until_its_streams_have_ended() {
    /// Tells how many connections there are when the body that has it ends.
    struct Witness(Arc<OnceLock<Arc<Registry>>>, mpsc::Sender<usize>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.1.send(self.0.get().expect("a registry").len()).expect("the test waits for it");
        }
    }

    let registry = Arc::new(OnceLock::new());
    let (ends, there) = mpsc::channel();
    let looking = Arc::clone(&registry);
    let endless = move || {
        let witness = Witness(looking, ends);
        let bytes = stream::pending::<Result<Bytes, axum::Error>>().inspect(move |_| _ = &witness);
        std::future::ready(Body::from_stream(bytes))
    };
    let router = Router::new().route("/endless", get(endless));
    let service = Service::of(router, Arc::default(), Limits::default());
    assert!(registry.set(Arc::clone(&service.registry)).is_ok());
    let mut client = service.client().await;
    let answer = client.begin("/endless").await.await.expect("the head of an answer");
    service.server.cut();
    service.until(Registry::is_empty).await;
    assert_eq!(there.try_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(service.registry.totals().cut(), 1);
    drop(answer);
}
