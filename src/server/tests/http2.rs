//! To the server a stream of HTTP/2 is a request as any other; and a client that speaks HTTP/2 can take no more of it than
//! one that does not.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::routing::{any, get, post};
use futures_util::{StreamExt, stream};
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::handover::Handover;
use crate::handover::mailbox::Mailbox;
use crate::server::connection::Command;
use crate::server::departures::Departures;
use crate::server::limits::Limits;
use crate::server::{Registry, Server, State, Totals};

/// A safety net, also where the clock goes at once to whatever is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server, and what it serves.
struct Service {
    registry: Arc<Registry>,
    server: Server,
    /// Lets go of the answers that wait.
    go: Arc<Notify>,
    _sweep: AbortOnDropHandle<()>,
}

impl Service {
    fn new() -> Self {
        Self::limited(Limits::default())
    }

    fn limited(limits: Limits) -> Self {
        let go = Arc::new(Notify::new());
        Self::of(routes(&go), go, limits)
    }

    fn of(router: Router, go: Arc<Notify>, limits: Limits) -> Self {
        let registry = Registry::new(Totals::unobserved());
        let handover = Arc::new(Handover::over(Mailbox::new().expect("a mailbox")));
        let server = Server::new(Vec::new(), router, Arc::clone(&registry), limits)
            .speaking_h2c(true)
            .with_departures(Departures::new(handover));
        let sweeping = server.clone();
        let sweep = run(async move { sweeping.serve().await });
        Self { registry, server, go, _sweep: sweep }
    }

    fn socket(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        self.server.serve_one(theirs);
        ours
    }

    async fn client(&self) -> Client {
        self.client_with(&h2::client::Builder::new()).await
    }

    async fn client_with(&self, builder: &h2::client::Builder) -> Client {
        let (requests, connection) = builder.handshake(self.socket()).await.expect("it speaks HTTP/2");
        Client { requests, connection: run(connection) }
    }

    /// Waits for something of it.
    async fn until(&self, what: impl Fn(&Registry) -> bool) {
        let seen = async {
            while !what(&self.registry) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, seen).await.expect("it comes to that");
    }

    fn refused(&self, name: &str) -> u64 {
        let counts = self.registry.totals().refused.by_reason();
        counts.filter(|(reason, _)| reason.name() == name).map(|(_, number)| number).sum()
    }
}

fn routes(go: &Arc<Notify>) -> Router {
    let (wait, go) = (Arc::clone(go), Arc::clone(go));
    Router::new()
        .fallback(async |request: Request| {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes);
            let Ok(body) = body else { return (StatusCode::BAD_REQUEST, String::new()) };
            let fields = ["host", "cookie"].map(|name| {
                let values = head.headers.get_all(name).iter();
                values.map(|value| value.to_str().expect("text")).collect::<Vec<_>>().join("|")
            });
            (StatusCode::OK, format!("{} {} {fields:?} {}", head.method, head.uri, body.len()))
        })
        .route("/wait", get(async move || wait.notified().await))
        .route("/unread", post(async || "unread"))
        .route("/panic", get(async || -> String { panic!("in a handler") }))
        .route(
            "/panic-within",
            get(async || {
                Body::from_stream(
                    stream::iter([1, 2])
                        .map(|n| if n == 1 { Ok::<_, axum::Error>("one") } else { panic!("in a body") }),
                )
            }),
        )
        .route(
            "/breaks",
            get(async || Body::from_stream(stream::iter([Ok("one"), Err(axum::Error::new("no more"))]))),
        )
        .route("/large", get(async || large()))
        .route(
            "/slow",
            get(async move || {
                Body::from_stream(stream::once(async move {
                    go.notified().await;
                    Ok::<_, axum::Error>("slow")
                }))
            }),
        )
        .route("/empty", any(async || StatusCode::NO_CONTENT))
        .route("/switches", get(async || StatusCode::SWITCHING_PROTOCOLS))
        .route(
            "/trailers",
            post(async |body: Body| {
                let trailers = body.collect().await.expect("a body").trailers().cloned().unwrap_or_default();
                let frames =
                    [http_body::Frame::data(Bytes::from("with")), http_body::Frame::trailers(trailers)];
                Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, axum::Error>))))
            }),
        )
}

fn large() -> Body {
    Body::from_stream(stream::iter(0..1000).map(|_| Ok::<_, axum::Error>(Bytes::from_static(&[7; 16_000]))))
}

fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<()> {
    let task = tokio_util::task::TaskTracker::new().spawn(async move { drop(future.await) });
    AbortOnDropHandle::new(task)
}

/// A client on a connection of its own.
struct Client {
    requests: SendRequest<Bytes>,
    connection: AbortOnDropHandle<()>,
}

type Answer = Result<Response<Bytes>, h2::Error>;

impl Client {
    fn request(method: &Method, path: &str) -> axum::http::request::Builder {
        axum::http::Request::builder().method(method).uri(format!("http://here{path}"))
    }

    async fn ask(&mut self, request: axum::http::Request<()>, body: Option<Bytes>) -> Answer {
        timeout(PATIENCE, async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, mut sending) = requests.send_request(request, body.is_none())?;
            if let Some(body) = body {
                sending.send_data(body, true)?;
            }
            let (head, body) = response.await?.into_parts();
            Ok(Response::from_parts(head, read(body).await?))
        })
        .await
        .expect("an answer")
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.ask(Self::request(&Method::GET, path).body(()).expect("a request"), None).await
    }

    async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask(Self::request(&Method::POST, path).body(()).expect("a request"), Some(body.into())).await
    }

    /// A request whose answer is not waited for.
    async fn begin(&mut self, path: &str) -> h2::client::ResponseFuture {
        let request = Self::request(&Method::GET, path).body(()).expect("a request");
        let mut requests = self.requests.clone().ready().await.expect("it takes requests");
        requests.send_request(request, true).expect("a request").0
    }

    /// Returns when the server has ended the connection.
    async fn ended(self) {
        timeout(PATIENCE, self.connection).await.expect("it ends").expect("it ends well");
    }
}

async fn read(mut body: RecvStream) -> Result<Bytes, h2::Error> {
    let mut whole = Vec::new();
    while let Some(bytes) = body.data().await.transpose()? {
        body.flow_control().release_capacity(bytes.len())?;
        whole.extend_from_slice(&bytes);
    }
    Ok(whole.into())
}

fn text(answer: &Answer) -> (u16, &str) {
    let answer = answer.as_ref().expect("an answer");
    (answer.status().as_u16(), std::str::from_utf8(answer.body()).expect("text"))
}

// ---- a stream is a request -----------------------------------------------------------------------------------

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
    let reason = timeout(PATIENCE, std::future::poll_fn(|cx| sending.poll_reset(cx))).await;
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

// ---- limits --------------------------------------------------------------------------------------------------

/// A client that writes frames as it likes.
struct Raw(UnixStream);

const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// The head of a `GET` of a short path, in HPACK (RFC 7541) without any table of its own.
fn get_head(path: &str) -> Vec<u8> {
    head(0x82, path)
}

fn head(method: u8, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).expect("it is short");
    [&[method, 0x86, 0x01, 4][..], b"here", &[0x04, length], path.as_bytes()].concat()
}

/// The kinds of frames, with their streams.
fn kinds(bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while let [a, b, c, kind, _, s, t, u, v, more @ ..] = rest {
        frames.push((*kind, u32::from_be_bytes([*s, *t, *u, *v])));
        rest = more.get(u32::from_be_bytes([0, *a, *b, *c]) as usize..).unwrap_or_default();
    }
    frames
}

impl Raw {
    async fn connect(service: &Service, initial_window: u32) -> Self {
        let mut raw = Self(service.socket());
        raw.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let window = [&[0, 4][..], &initial_window.to_be_bytes()].concat();
        raw.say(&frame(SETTINGS, 0, 0, &window)).await;
        raw.say(&frame(SETTINGS, 1, 0, &[])).await;
        raw
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("it reads");
    }

    async fn get(&mut self, stream: u32, path: &str) {
        self.say(&frame(HEADERS, 5, stream, &get_head(path))).await;
    }

    /// The kinds of the frames that come until the end, with their streams.
    async fn rest(mut self) -> Vec<(u8, u32)> {
        let mut bytes = Vec::new();
        // A reset is an end as well.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("an end");
        kinds(&bytes)
    }

    /// Returns when a frame of this kind has come on this stream.
    async fn until(&mut self, kind: u8, stream: u32) {
        let come = async {
            let mut head = [0; 9];
            loop {
                self.0.read_exact(&mut head).await.expect("a frame");
                let [a, b, c, ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                self.0.read_exact(&mut payload).await.expect("a whole frame");
                if kinds(&head[..]) == [(kind, stream)] {
                    return;
                }
            }
        };
        timeout(PATIENCE, come).await.expect("the frame");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_say_that_it_knows_of_the_end_is_not_waited_for() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    raw.get(1, "/").await;
    service.until(|registry| registry.totals().requests() == 1).await;
    let began = Instant::now();
    service.registry.connections()[0].commands().give(Command::Carry);
    let frames = raw.rest().await;
    // The GOAWAY that comes before the PING; none after it.
    assert_eq!(frames.iter().filter(|(kind, _)| *kind == GOAWAY).count(), 1, "{frames:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    service.until(Registry::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_on_after_it_was_told_of_the_end_has_only_what_it_had_asked_for_before() {
    for waits in [false, true] {
        let service = Service::new();
        let mut raw = Raw::connect(&service, 65_535).await;
        raw.get(1, if waits { "/slow" } else { "/" }).await;
        service.until(|registry| registry.totals().requests() + registry.in_flight() as u64 == 1).await;
        let began = Instant::now();
        service.registry.connections()[0].commands().give(Command::Carry);
        let (mut reading, mut writing) = raw.0.into_split();
        let _asking = run(async move {
            for stream in 1.. {
                let get = frame(HEADERS, 5, 2 * stream + 1, &get_head("/"));
                if writing.write_all(&get).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
        if waits {
            sleep(Duration::from_secs(60)).await;
            assert_eq!((service.registry.len(), service.registry.in_flight()), (1, 1));
            service.go.notify_waiters();
        }
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, reading.read_to_end(&mut bytes)).await.expect("an end");
        // It may ask on for 10 s, and has 2 s after its last answer.
        let least = if waits { 60 } else { 10 };
        assert!((least..least + 6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        service.until(Registry::is_empty).await;
        let requests = service.registry.totals().requests();
        assert!((10..14).contains(&requests), "{requests}");
        let frames = kinds(&bytes);
        assert!(frames.contains(&(DATA, 1)) && frames.contains(&(DATA, 3)), "{frames:?}");
        if waits {
            // RFC 9113, section 8.7: they may be asked again elsewhere.
            let refused = frame(RST_STREAM, 0, 101, &u32::from(Reason::REFUSED_STREAM).to_be_bytes());
            assert!(bytes.windows(refused.len()).any(|bytes| bytes == refused), "{frames:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_told_of_the_end_in_time() {
    let service = Service::new();
    let mut client = service.client().await;
    let new = service.client().await;
    assert_eq!(text(&client.get("/").await).0, 200);
    let began = Instant::now();
    new.ended().await;
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    client.ended().await;
    assert!((75..77).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_and_half_a_head_have_the_time_of_a_head() {
    let service = Service::new();
    for (said, refused) in [
        (&b"PRI * HTTP/2.0\r\n"[..], "header_timeout"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", "header_timeout"),
    ] {
        let before = service.refused(refused);
        let mut socket = service.socket();
        socket.write_all(said).await.expect("it reads");
        let began = Instant::now();
        service.until(|registry| !registry.is_empty()).await;
        service.until(Registry::is_empty).await;
        assert!((10..13).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(service.refused(refused), before + 1);
    }
    // Also if the client has asked before, and asks for something else meanwhile.
    let mut raw = Raw::connect(&service, 65_535).await;
    raw.get(1, "/").await;
    raw.get(3, "/wait").await;
    service.until(|registry| registry.totals().requests() == 1).await;
    raw.say(&frame(HEADERS, 1, 5, &get_head("/"))).await;
    let began = Instant::now();
    raw.rest().await;
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("header_timeout"), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_makes_no_room_for_ends_and_the_others_go_on() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 1000).await;
    raw.get(1, "/large").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    service.until(|registry| registry.in_flight() == 0).await;
    assert!((30..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_reader"), 1);
    assert_eq!(service.registry.totals().client_gone(), 1);
    raw.get(3, "/").await;
    service.until(|registry| registry.totals().requests() == 2).await;
    service.registry.connections()[0].commands().give(Command::Finish);
    let frames = raw.rest().await;
    assert!(frames.contains(&(RST_STREAM, 1)) && frames.contains(&(DATA, 3)), "{frames:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_for_no_answer_at_all_loses_all_of_them() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 0).await;
    for stream in 0..128 {
        raw.get(2 * stream + 1, "/").await;
    }
    service.until(|registry| registry.in_flight() == 128).await;
    let began = Instant::now();
    service.until(|registry| registry.in_flight() == 0).await;
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((service.registry.totals().client_gone(), service.refused("slow_reader")), (128, 128));
}

/// hyper is done with a short answer as soon as it may begin: nothing is left that could reset its stream.
#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_for_a_part_of_a_short_answer_is_dropped() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 1).await;
    raw.get(1, "/").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    service.until(Registry::is_empty).await;
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((service.registry.totals().client_gone(), service.refused("slow_reader")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_byte_by_byte_is_too_slow() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 0).await;
    raw.get(1, "/large").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    while service.registry.in_flight() > 0 {
        raw.say(&frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!((30..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_reader"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_answered_with_408_on_its_stream() {
    let service = Service::new();
    let mut client = service.client().await;
    let request =
        Client::request(&Method::POST, "/").header("content-length", 10).body(()).expect("a request");
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (answer, _sending) = requests.send_request(request, false).expect("a request");
    let began = Instant::now();
    assert_eq!(answer.await.expect("an answer").status(), 408);
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_body"), 1);
    assert_eq!(text(&client.get("/").await).0, 200);
}

#[tokio::test]
async fn requests_that_are_taken_back_as_fast_as_they_are_made_end_the_connection() {
    takes_back(65_535, "/wait").await;
}

#[tokio::test]
async fn answers_that_are_taken_back_before_they_are_written_end_the_connection() {
    for path in ["/large", "/"] {
        takes_back(0, path).await;
    }
}

async fn takes_back(room: u32, path: &'static str) {
    let service = Service::new();
    let raw = Raw::connect(&service, room).await;
    let (mut reading, mut writing) = raw.0.into_split();
    let attack = run(async move {
        for stream in 0.. {
            let reset = frame(RST_STREAM, 0, 2 * stream + 1, &8_u32.to_be_bytes());
            if writing.write_all(&frame(HEADERS, 5, 2 * stream + 1, &get_head(path))).await.is_err() {
                return;
            }
            // The server sees the one before the other.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            if writing.write_all(&reset).await.is_err() {
                return;
            }
        }
    });
    let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
    drop(attack);
    service.until(Registry::is_empty).await;
    assert_eq!((service.refused("flood"), service.registry.in_flight()), (1, 0));
    let requests = service.registry.totals().requests();
    assert!((200..1000).contains(&requests), "{requests}");
}

#[tokio::test]
async fn a_flood_of_frames_that_ask_for_nothing_ends_the_connection() {
    let settings = frame(SETTINGS, 0, 0, &[]);
    for kind in
        [frame(PING, 0, 0, &[0; 8]), settings, frame(2, 0, 1, &[0, 0, 0, 3, 1]), frame(99, 0, 0, b"what")]
    {
        let service = Service::new();
        let raw = Raw::connect(&service, 65_535).await;
        let (mut reading, mut writing) = raw.0.into_split();
        let flood = kind.repeat(100);
        let attack = run(async move { while writing.write_all(&flood).await.is_ok() {} });
        let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
        drop(attack);
        service.until(Registry::is_empty).await;
        assert_eq!(service.refused("flood"), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_or_gives_up_is_not_refused() {
    let service = Service::new();
    for last in [
        // An error of its own, half a frame, half a request, nothing.
        frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]),
        frame(PING, 0, 0, &[0; 8])[..10].to_vec(),
        frame(HEADERS, 1, 3, &get_head("/")),
        Vec::new(),
    ] {
        let mut raw = Raw::connect(&service, 1000).await;
        raw.get(1, "/large").await;
        service.until(|registry| registry.in_flight() == 1).await;
        raw.say(&last).await;
        drop(raw);
        service.until(Registry::is_empty).await;
    }
    assert_eq!((service.refused("bad_request"), service.refused("flood")), (0, 0));
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_refused_by_its_reason() {
    // Data of no stream; and requests that are taken back in the same breath, of which h2 has a limit.
    let taken_back = (0..300).flat_map(|n| {
        let reset = frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes());
        [frame(HEADERS, 5, 2 * n + 1, &get_head("/wait")), reset].concat()
    });
    for (said, refused) in [(frame(DATA, 0, 0, b"what"), [1, 0]), (taken_back.collect(), [0, 1])] {
        let service = Service::new();
        let mut raw = Raw::connect(&service, 65_535).await;
        raw.say(&said).await;
        raw.rest().await;
        service.until(Registry::is_empty).await;
        assert_eq!(["bad_request", "flood"].map(|reason| service.refused(reason)), refused);
    }
}

#[tokio::test]
async fn as_many_requests_as_may_be_taken_back_at_once_may_be_taken_back_unseen() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    let taken_back = (0..200).flat_map(|n| {
        let reset = frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes());
        [frame(HEADERS, 5, 2 * n + 1, &get_head("/wait")), reset].concat()
    });
    raw.say(&taken_back.collect::<Vec<_>>()).await;
    raw.get(1001, "/").await;
    raw.until(DATA, 1001).await;
    assert_eq!((service.refused("flood"), service.registry.totals().client_gone()), (0, 200));
}

/// h2 holds a lock while it drops what it has of an answer: that may be the last to hold the stream, and must not be the last
/// to hold the rest of its request's body, which takes the same lock.
#[tokio::test(start_paused = true)]
async fn a_body_that_its_handler_drops_after_the_end_of_its_stream_is_no_part_of_that_any_more() {
    let held = Arc::new(Mutex::new(None));
    let holds = Arc::clone(&held);
    let holds = post(async move |body: Body| {
        *holds.lock().expect("it is sound") = Some(body);
        large()
    });
    let service = Service::of(Router::new().route("/holds", holds), Arc::default(), Limits::default());
    let mut raw = Raw::connect(&service, 1000).await;
    // Of 200000 bytes, which are few enough to be discarded.
    let request = [&head(0x83, "/holds")[..], &[0x0f, 0x0d, 6], b"200000"].concat();
    raw.say(&frame(HEADERS, 4, 1, &request)).await;
    service.until(|registry| registry.in_flight() == 1).await;
    service.until(|registry| registry.in_flight() == 0).await;
    assert_eq!(service.refused("slow_reader"), 1);
    // Its handler has held it until now.
    assert!(held.lock().expect("it is sound").take().is_some());
    raw.until(RST_STREAM, 1).await;
    drop(raw);
    service.until(Registry::is_empty).await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let service = Service::new();
    let raw = Raw::connect(&service, 65_535).await;
    let (mut reading, mut writing) = raw.0.into_split();
    let attack = run(async move {
        let _ = writing.write_all(&frame(HEADERS, 1, 1, &get_head("/"))).await;
        while writing.write_all(&frame(9, 0, 1, &[0x00; 0])).await.is_ok() {}
    });
    let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
    drop(attack);
    service.until(Registry::is_empty).await;
}
