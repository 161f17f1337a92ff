//! What hyper keeps goes from connection to connection, and nothing of what they said with it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::Router;
use axum::body::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

use super::{PATIENCE, answer};
use crate::server::limits::Limits;
use crate::server::{Registry, Server, State, Totals};

/// A deed of one of many clients of one thread, each of which has a connection of its own.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// A request after which hyper has nothing of the connection left.
    Ask,
    /// The same, in two pieces.
    AskSlowly,
    /// The same, of which the first piece may be as much as an empty line.
    AskAfterEmptyLines,
    /// Two requests at once.
    AskTwice,
    /// A request with a body, which its handler reads or not.
    Send { reads: bool },
    /// HTTP/1.0, with a connection that is kept.
    AskAsOfOld,
    /// The same, with a connection that is not.
    AskForTheLastTime,
    /// An upgrade that the handler declines, and waits for all the same.
    AskToUpgrade,
    /// An answer whose body ends later than the length that its head announces.
    AskForLength,
    /// The same, with a head that announces chunks beside the length.
    AskForChunks,
    /// Goes, before its answer is there.
    AskAndGo,
    /// Half a head, and no more.
    Go,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => Just(Deed::Ask),
        1 => Just(Deed::AskSlowly),
        1 => Just(Deed::AskAfterEmptyLines),
        1 => Just(Deed::AskTwice),
        1 => any::<bool>().prop_map(|reads| Deed::Send { reads }),
        1 => Just(Deed::AskAsOfOld),
        1 => Just(Deed::AskForTheLastTime),
        1 => Just(Deed::AskToUpgrade),
        1 => Just(Deed::AskForLength),
        1 => Just(Deed::AskForChunks),
        1 => Just(Deed::AskAndGo),
        1 => Just(Deed::Go),
    ]
}

/// True if a handler was given a connection as one that speaks another protocol.
static UPGRADED: AtomicBool = AtomicBool::new(false);

/// Says which request it answers, in the way that its query asks for.
async fn say(mut request: axum::extract::Request) -> axum::response::Response {
    use axum::response::IntoResponse;
    let path = request.uri().path().to_owned();
    let late = |said: &str| {
        let said = Bytes::from(said.to_owned());
        let end = futures_util::stream::once(async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(Bytes::new())
        });
        let begin = futures_util::stream::iter([Ok(said)]);
        axum::body::Body::from_stream(futures_util::StreamExt::chain(begin, end))
    };
    match request.uri().query() {
        Some("read") => {
            let body = axum::body::to_bytes(request.into_body(), 100).await.expect("a small body");
            assert_eq!(body, "body");
        }
        Some("upgrade") => {
            let upgrade = hyper::upgrade::on(&mut request);
            // Nobody has agreed to another protocol.
            TaskTracker::new().spawn(async { UPGRADED.fetch_or(upgrade.await.is_ok(), Relaxed) });
        }
        Some("late") => tokio::task::yield_now().await,
        Some("length") => return ([("content-length", path.len().to_string())], late(&path)).into_response(),
        Some("chunks") => {
            let both = [("content-length", path.len().to_string()), ("transfer-encoding", "chunked".into())];
            return (both, late(&path)).into_response();
        }
        _ => {}
    }
    path.into_response()
}

/// A client and its connection, if it has one.
struct Asker<'a> {
    server: &'a Server,
    name: usize,
    asked: usize,
    socket: Option<UnixStream>,
}

impl Asker<'_> {
    async fn send(&mut self, text: &str) {
        let socket = self.socket.get_or_insert_with(|| {
            let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
            self.server.serve_one(theirs);
            socket
        });
        socket.write_all(text.as_bytes()).await.expect("the server reads");
        tokio::task::yield_now().await;
    }

    /// A path that no other request has.
    fn path(&mut self) -> String {
        self.asked += 1;
        format!("/client-{}/request-{}", self.name, self.asked)
    }

    /// Expects the answer to a request, and nothing before it.
    async fn expect(&mut self, path: &str) {
        let said = answer(self.socket.as_mut().expect("it has asked")).await;
        let lines: Vec<_> = said.lines().collect();
        assert!(lines[0].ends_with("200 OK") && lines.last() == Some(&path), "to {path}: {said}");
    }

    async fn ask(&mut self, query: &str, rest: &str) {
        let path = self.path();
        self.send(&format!("GET {path}?{query} HTTP/1.1\r\nhost: here\r\n{rest}")).await;
        self.expect(&path).await;
    }

    async fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Ask => self.ask("", "\r\n").await,
            Deed::AskSlowly => {
                let path = self.path();
                self.send(&format!("GET {path} HTTP/1.1\r\nho")).await;
                self.send("st: here\r\n\r\n").await;
                self.expect(&path).await;
            }
            Deed::AskAfterEmptyLines => {
                self.send("\r\n\r\n").await;
                self.ask("", "\r\n").await;
            }
            Deed::AskTwice => {
                let paths = [self.path(), self.path()];
                let both = paths.each_ref().map(|path| format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n"));
                self.send(&both.concat()).await;
                for path in &paths {
                    self.expect(path).await;
                }
            }
            Deed::Send { reads } => {
                let query = if reads { "read" } else { "late" };
                self.ask(query, "content-length: 4\r\n\r\nbody").await;
            }
            Deed::AskAsOfOld => {
                let path = self.path();
                self.send(&format!("GET {path} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")).await;
                self.expect(&path).await;
            }
            Deed::AskForTheLastTime => {
                let path = self.path();
                self.send(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
                self.expect(&path).await;
                let socket = self.socket.take();
                assert_eq!(socket.expect("it has asked").read(&mut [0]).await.expect("the end"), 0);
            }
            Deed::AskToUpgrade => {
                self.ask("upgrade", "connection: upgrade\r\nupgrade: another\r\n\r\n").await;
            }
            Deed::AskForLength => self.ask("length", "\r\n").await,
            Deed::AskForChunks => {
                let path = self.path();
                self.send(&format!("GET {path}?chunks HTTP/1.1\r\nhost: here\r\n\r\n")).await;
                let socket = self.socket.as_mut().expect("it has asked");
                let mut said = Vec::new();
                // hyper may refuse such an answer.
                while socket.read_buf(&mut said).await.expect("an answer, or the end") > 0
                    && !String::from_utf8_lossy(&said).contains(&path)
                {}
                self.socket = None;
            }
            Deed::AskAndGo => {
                let path = self.path();
                self.send(&format!("GET {path}?late HTTP/1.1\r\nhost: here\r\n\r\n")).await;
                self.socket = None;
            }
            Deed::Go => {
                self.send("GET /half").await;
                self.socket = None;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_client_gets_anything_of_what_another_has_asked_for(
        deeds in proptest::collection::vec((0..4_usize, deed()), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let registry = Registry::new(Totals::unobserved());
            let server = Server::new(Vec::new(), Router::new().fallback(say), registry, Limits::default());
            let mut clients: [_; 4] =
                std::array::from_fn(|name| Asker { server: &server, name, asked: 0, socket: None });
            for &(client, deed) in &deeds {
                let act = tokio::time::timeout(PATIENCE, clients[client].act(deed));
                act.await.unwrap_or_else(|_| panic!("{deed:?} is not answered"));
                assert!(!UPGRADED.load(Relaxed), "after {deed:?}");
            }
        });
    }
}

/// Without this the test above might never see what hyper keeps with another connection.
#[tokio::test]
async fn the_requests_of_many_connections_share_what_hyper_keeps() {
    let server = Server::new(
        Vec::new(),
        Router::new().fallback(say),
        Registry::new(Totals::unobserved()),
        Limits::default(),
    );
    for name in 0..10 {
        let mut client = Asker { server: &server, name, asked: 0, socket: None };
        client.act(Deed::Ask).await;
        client.act(Deed::Ask).await;
    }
    while server.registry.connections().iter().any(|connection| connection.state() != State::Parked) {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.http1s.resting(), 1);
}
