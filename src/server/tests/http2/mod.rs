//! To the server a stream of HTTP/2 is a request as any other; and a client that speaks HTTP/2 can take no more of it than
//! one that does not.

mod limits;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, Response, StatusCode};
use axum::routing::{any, get, post};
use futures_util::{StreamExt, stream};
use h2::RecvStream;
use h2::client::SendRequest;
use http_body_util::{BodyExt, StreamBody};
use steadfast_harness::frames;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::handover::Handover;
use crate::handover::mailbox::Mailbox;
use crate::server::departures::Departures;
use crate::server::limits::Limits;
use crate::server::{Registry, Server, Totals};

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

/// A client that writes frames as it likes.
struct Raw(UnixStream);

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
        raw.say(&frames::hello(initial_window)).await;
        raw
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("it reads");
    }

    async fn get(&mut self, stream: u32, path: &str) {
        self.say(&frames::get(stream, path)).await;
    }

    /// The kinds of the frames that come until the end, with their streams.
    async fn rest(mut self) -> Vec<(u8, u32)> {
        let mut bytes = Vec::new();
        // A reset is an end as well.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("an end");
        kinds(&bytes)
    }

    /// Returns the flags and the payload of the next frame of this kind on this stream.
    async fn until(&mut self, kind: u8, stream: u32) -> (u8, Vec<u8>) {
        let come = async {
            let mut head = [0; 9];
            loop {
                self.0.read_exact(&mut head).await.expect("a frame");
                let [a, b, c, ..] = head;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                self.0.read_exact(&mut payload).await.expect("a whole frame");
                if kinds(&head[..]) == [(kind, stream)] {
                    return (head[4], payload);
                }
            }
        };
        timeout(PATIENCE, come).await.expect("the frame")
    }
}
