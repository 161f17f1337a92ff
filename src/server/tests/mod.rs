//! A connection that is taken apart and put together in another server stays the same to its client; one that
//! cannot be carried is closed, and its client is told so by the last answer.

mod http2;
mod limits;
mod resting;
mod tls;

use std::io::{BufRead, BufReader, Seek};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, Uri};
use proptest::prelude::*;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Registry;
use super::connection::Command;
use super::departures::Departures;
use super::limits::{AtLimit, Limits};
use super::{Peer, Server, State, Totals};
use crate::handover::Handover;
use crate::handover::mailbox::Mailbox;
use crate::handover::parcel::{MAX_BODY, Parcel};

/// A safety net: everything here is a matter of microseconds.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
enum Body {
    None,
    Sized(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

/// A request of any method, path and body; what is sent of it is the same each time.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    let body = prop_oneof![
        Just(Body::None),
        bytes().prop_map(Body::Sized),
        proptest::collection::vec(bytes(), 0..4).prop_map(Body::Chunked),
    ];
    (prop_oneof![Just("GET"), Just("POST"), Just("PUT")], "/[a-z0-9/]{0,20}", body).prop_map(
        |(method, path, body)| {
            let mut request = format!("{method} {path} HTTP/1.1\r\nhost: here\r\n").into_bytes();
            match body {
                Body::None => request.extend(b"\r\n"),
                Body::Sized(body) => {
                    request.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
                    request.extend(body);
                }
                Body::Chunked(chunks) => {
                    request.extend(b"transfer-encoding: chunked\r\n\r\n");
                    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
                        request.extend(chunk);
                        request.extend(b"\r\n");
                    }
                    request.extend(b"0\r\n\r\n");
                }
            }
            request
        },
    )
}

/// A cut of a stream: its position in bytes, the number of times that the server gets to run there, and true if the
/// connection changes hands there.
type Cut = (usize, u8, bool);

/// One of two servers, between which a connection changes hands.
struct Side {
    registry: Arc<Registry>,
    server: Server,
    handover: Arc<Handover>,
    departures: Arc<Departures>,
}

impl Side {
    fn new() -> Self {
        Self::over(Mailbox::new().expect("a mailbox"))
    }

    fn over(mailbox: Mailbox) -> Self {
        let router = Router::new().fallback(async |method: Method, uri: Uri, body: Bytes| {
            // The answer comes later than the request, so that a handover may come between the two.
            tokio::task::yield_now().await;
            format!("{method} {uri} {}", body.escape_ascii())
        });
        Self::serving(router, mailbox, Limits::default())
    }

    fn serving(router: Router, mailbox: Mailbox, limits: Limits) -> Self {
        let registry = Registry::new(Totals::unobserved());
        let handover = Arc::new(Handover::over(mailbox));
        let departures = Departures::new(Arc::clone(&handover));
        let server = Server::new(Vec::new(), router, Arc::clone(&registry), limits)
            .with_departures(Arc::clone(&departures));
        Self { registry, server, handover, departures }
    }

    fn mailbox(&self) -> &Mailbox {
        self.handover.mailbox().expect("it was made with one")
    }

    /// Takes over what waits in its own mailbox.
    fn take_over(&self) {
        self.server.take_over(self.mailbox(), drop).expect("the mailbox works");
    }

    /// Has its only connection leave, and takes it out of the mailbox.
    async fn departed(&self) -> Parcel {
        self.give_away();
        self.departures.pass_on().await;
        let mut parcels = self.mailbox().take().expect("the mailbox works").expect("a message");
        assert_eq!(parcels.len(), 1, "{parcels:?}");
        parcels.remove(0).expect("it is understood")
    }

    /// Asks for every connection to leave.
    fn give_away(&self) {
        for connection in self.registry.connections() {
            connection.commands().give(Command::Carry);
        }
    }

    /// Passes on what leaves, through a real mailbox.
    async fn pass_to(&self, other: &Self) {
        loop {
            self.departures.pass_on().await;
            other.server.take_over(self.mailbox(), drop).expect("the mailbox works");
        }
    }
}

/// Two servers, for as long as a client talks to them. Returns what it has heard, and how often its connection changed hands.
async fn between<T>([here, there]: [&Side; 2], talk: impl Future<Output = T>) -> (T, u64) {
    let carrying = async { tokio::join!(here.pass_to(there), there.pass_to(here)) };
    let talk = async {
        tokio::select! {
            heard = talk => heard,
            ((), ()) = carrying => unreachable!("they never end"),
        }
    };
    let heard = tokio::time::timeout(PATIENCE, talk).await.expect("every request is answered");
    let moves = [here, there].map(|side| side.registry.totals().taken_over.counts()[0]);
    (heard, moves.iter().sum())
}

/// Sends what a client has to say, cut as asked.
async fn send(client: &mut UnixStream, said: &[u8], cuts: &[Cut], sides: [&Side; 2]) {
    let mut sent = 0;
    for &(at, runs, carry) in cuts {
        client.write_all(&said[sent..at]).await.expect("the server reads");
        sent = at;
        for _ in 0..runs {
            tokio::task::yield_now().await;
        }
        if carry {
            sides.into_iter().for_each(Side::give_away);
        }
    }
    client.write_all(&said[sent..]).await.expect("the server reads");
}

/// Sends a stream of requests, cut as asked. Returns their answers, and how often the connection changed hands.
async fn exchange(stream: &[u8], cuts: &[Cut], requests: usize) -> (String, u64) {
    let (here, there) = (Side::new(), Side::new());
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    here.server.serve_one(theirs);
    let sides = [&here, &there];
    between(sides, async {
        send(&mut client, stream, cuts, sides).await;
        answers(&mut client, requests).await
    })
    .await
}

/// So many answers without their dates and ids.
async fn answers(client: &mut (impl AsyncRead + Unpin), number: usize) -> String {
    let mut answers = String::new();
    for _ in 0..number {
        answers += &answer(client).await;
    }
    answers
}

/// One answer without its date and its id.
async fn answer(client: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("the connection stays open"));
    }
    let head = String::from_utf8(head).expect("a head is text");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    client.read_exact(&mut body).await.expect("the whole body");
    let is_its_own = |line: &&str| line.starts_with("date: ") || line.starts_with("x-request-id: ");
    let head: Vec<_> = head.lines().filter(|line| !is_its_own(line)).collect();
    format!("{}\n{}\n", head.join("\n"), String::from_utf8(body).expect("the body is text"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_answers_are_the_same_with_a_handover_at_any_point_as_with_none(
        requests in proptest::collection::vec(request(), 1..6),
        cuts in proptest::collection::vec(any::<(prop::sample::Index, u8, bool)>(), 0..8),
    ) {
        let stream = requests.concat();
        let mut cuts: Vec<Cut> =
            cuts.iter().map(|(at, runs, carry)| (at.index(stream.len() + 1), *runs, *carry)).collect();
        cuts.sort_unstable();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let without: Vec<_> = cuts.iter().map(|(at, runs, _)| (*at, *runs, false)).collect();
        let (expected, never) = runtime.block_on(exchange(&stream, &without, requests.len()));
        let (carried, _) = runtime.block_on(exchange(&stream, &cuts, requests.len()));
        prop_assert_eq!(never, 0);
        prop_assert_eq!(carried, expected);
    }
}

/// Without this the test above might compare two connections that never moved.
#[tokio::test]
async fn a_connection_changes_hands_between_two_requests_and_within_a_head() {
    let one = b"GET /one HTTP/1.1\r\nhost: here\r\n\r\n";
    let stream = one.repeat(3);
    // After the first request, and in the middle of the third.
    let cuts = [(one.len(), 50, true), (2 * one.len() + 9, 50, true)];
    let (answers, moves) = exchange(&stream, &cuts, 3).await;
    assert_eq!(answers.matches("GET /one").count(), 3);
    assert_eq!(moves, 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_a_place_gets_one_once_any_is_without_a_request() {
    let limits = Limits { max_connections: 1, at_limit: AtLimit::Evict, ..Limits::default() };
    let router = Router::new().fallback(async || tokio::time::sleep(Duration::from_secs(1)).await);
    let registry = Registry::new(Totals::unobserved());
    let server = Server::new(Vec::new(), router, Arc::clone(&registry), limits);
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    let place = server.permit().await;
    server.start(theirs.into_std().expect("it is a socket").into(), Peer::Unix, Some(place), None);
    client.write_all(REQUEST).await.expect("the server reads");
    while registry.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    // It looks for one to close while the only one is busy.
    let next = async { tokio::time::timeout(PATIENCE, server.permit()).await.expect("a place") };
    let (_, answer) = tokio::join!(next, answer(&mut client));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// Also one that was read with an earlier request, that tells HTTP/1 from HTTP/2, or that has travelled unread.
#[tokio::test]
async fn each_byte_of_a_client_is_counted_once() {
    let (mut here, there) = (Side::new(), Side::new());
    here.server = here.server.speaking_h2c(true);
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    here.server.serve_one(theirs);
    let sides = [&here, &there];
    let stream = REQUEST.repeat(20);
    let (_, moves) = between(sides, async {
        send(&mut client, &stream, &[(3, 50, false), (10 * REQUEST.len() + 9, 1, true)], sides).await;
        answers(&mut client, 20).await
    })
    .await;
    assert_eq!(moves, 1);
    let received = sides.map(|side| side.registry.moved()[0]);
    assert_eq!(received.iter().sum::<u64>(), stream.len() as u64, "{received:?}");
}

/// A connection that has had an answer, after which the process stood still; the sweep has not looked at it since.
async fn idle_over_a_standstill() -> (Side, UnixStream) {
    let side = Side::new();
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    side.server.serve_one(theirs);
    let served = async {
        client.write_all(REQUEST).await.expect("the server reads");
        answer(&mut client).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        () = side.server.serve() => unreachable!("it never ends"),
        () = served => {}
    }
    tokio::time::advance(Duration::from_secs(3600)).await;
    (side, client)
}

#[tokio::test(start_paused = true)]
async fn the_time_in_which_the_process_stood_still_does_not_travel_as_idleness() {
    let (side, _client) = idle_over_a_standstill().await;
    let Parcel::Connection(_, note) = side.departed().await else { panic!("it is between two requests") };
    assert!((1000..2000).contains(&note.idle_ms), "{} ms", note.idle_ms);
}

/// What comes first after a standstill is heard of before the sweep looks.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_heard_right_after_a_standstill_has_no_more_time_than_any_other() {
    let (side, mut client) = idle_over_a_standstill().await;
    let limits = Limits::default();
    client.write_all(b"GET / HTTP/1.1\r\n").await.expect("the server reads");
    while side.registry.connections()[0].state() != State::Reading {
        tokio::task::yield_now().await;
    }
    let gone = async {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("no error");
        answer
    };
    tokio::select! {
        () = side.server.serve() => unreachable!("it never ends"),
        gone = tokio::time::timeout(limits.header_timeout * 2, gone) => {
            assert!(gone.expect("its time has passed").starts_with("HTTP/1.1 408"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_right_after_a_standstill_leaves_a_client_the_time_to_ask_once_more() {
    let (side, mut client) = idle_over_a_standstill().await;
    let ask_once_more = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        client.write_all(REQUEST).await.expect("the server reads");
        answer(&mut client).await
    };
    let (answer, ()) = tokio::join!(ask_once_more, side.server.drain(Duration::from_secs(10)));
    assert!(answer.contains("200 OK") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn what_the_mailbox_refuses_may_ask_once_more_and_is_counted() {
    let mailbox = Mailbox::new().expect("a mailbox");
    rustix::net::sockopt::set_socket_send_buffer_size(mailbox.entrance(), 1).expect("it may be small");
    while rustix::net::send(mailbox.entrance(), b"full", SendFlags::DONTWAIT).is_ok() {}
    let side = Side::over(mailbox);
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    side.server.serve_one(theirs);
    client.write_all(REQUEST).await.expect("the server reads");
    answer(&mut client).await;

    let not_carried = &side.registry.totals().not_carried;
    let ask_once_more = async {
        while not_carried.total() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.write_all(REQUEST).await.expect("the server reads");
        assert!(answer(&mut client).await.contains("connection: close"));
        assert_eq!(client.read(&mut [0]).await.expect("no error"), 0);
    };
    let both = async { tokio::join!(side.server.carry(PATIENCE), ask_once_more) };
    tokio::time::timeout(PATIENCE, both).await.expect("it is over when the client has its answer");
    assert_eq!(not_carried.to_string(), "; 1 connection closed: refused by the mailbox");
    assert_eq!(side.registry.totals().handed_over.counts(), [0, 0]);
}

/// The beginning of a head that has this length so far.
fn half_a_head(length: usize) -> Vec<u8> {
    let mut head = b"GET /half HTTP/1.1\r\nhost: here\r\nx: ".to_vec();
    head.resize(length, b'x');
    head
}

/// Returns once the server has read so much of the connections that are open.
async fn received(side: &Side, bytes: usize) {
    while side.registry.moved()[0] < bytes as u64 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_changes_hands_within_the_largest_head_that_the_config_allows() {
    let limits = Limits { header_limit: 1 << 20, ..Limits::default() };
    let router = || Router::new().fallback(async |uri: Uri| uri.to_string());
    let side = || Side::serving(router(), Mailbox::new().expect("a mailbox"), limits.clone());
    let (here, there) = (side(), side());
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    here.server.serve_one(theirs);
    let half = half_a_head((1 << 20) - 4);
    let talk = async {
        client.write_all(&half).await.expect("the server reads");
        received(&here, half.len()).await;
        here.give_away();
        here.registry.emptied().await;
        client.write_all(b"\r\n\r\n").await.expect("the server reads");
        answer(&mut client).await
    };
    let (answer, moves) = between([&here, &there], talk).await;
    assert!(answer.contains("200 OK") && answer.contains("/half"), "{answer}");
    assert_eq!(moves, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_too_large_to_travel_gets_its_last_answer_and_the_others_are_carried() {
    let release = Arc::new(tokio::sync::Notify::new());
    let router = Router::new().fallback({
        let release = Arc::clone(&release);
        async move |uri: Uri| {
            if uri.path() == "/slow" {
                release.notified().await;
            }
            uri.to_string()
        }
    });
    let limits = Limits { header_limit: 2 * MAX_BODY, ..Limits::default() };
    let side = Side::serving(router, Mailbox::new().expect("a mailbox"), limits);
    let [mut large, mut slow] = [(); 2].map(|()| {
        let (client, theirs) = UnixStream::pair().expect("a pair of sockets");
        side.server.serve_one(theirs);
        client
    });
    let half = half_a_head(MAX_BODY + 1);
    let talk = async {
        let asks = b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n";
        slow.write_all(asks).await.expect("the server reads");
        large.write_all(&half).await.expect("the server reads");
        received(&side, half.len() + asks.len()).await;
        let ask_on = async {
            while side.registry.totals().not_carried.total() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            release.notify_one();
            let slow = answer(&mut slow).await;
            large.write_all(b"\r\n\r\n").await.expect("the server reads");
            (slow, answer(&mut large).await)
        };
        tokio::join!(side.server.carry(Duration::ZERO), ask_on).1
    };
    let (slow, large) = tokio::time::timeout(PATIENCE, talk).await.expect("it is over with both answers");
    assert!(!slow.contains("connection: close"), "{slow}");
    assert!(large.contains("/half") && large.contains("connection: close"), "{large}");
    assert_eq!(
        side.registry.totals().not_carried.to_string(),
        "; 1 connection closed: refused by the mailbox"
    );
    assert_eq!(side.registry.totals().handed_over.counts(), [1, 0]);
}

/// The lines of the log that are written meanwhile.
fn logged(act: impl FnOnce()) -> Vec<String> {
    let log = Arc::new(tempfile::tempfile().expect("a file"));
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&log)).finish();
    // With a single dispatcher, tracing asks the thread that comes by an event first whether anyone wants it, and that
    // may be another test's, without any.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    tracing::subscriber::with_default(subscriber, act);
    (&*log).rewind().expect("a file has a beginning");
    BufReader::new(&*log).lines().collect::<Result<_, _>>().expect("text")
}

#[tokio::test]
async fn a_message_that_is_lost_is_one_line_of_the_log_and_each_of_its_connections_is_counted() {
    let mailbox = Mailbox::new().expect("a mailbox");
    for connections in [40, 1] {
        // The kernel has dropped its descriptors.
        let message = [b"parcels".as_slice(), &u16::to_le_bytes(connections)].concat();
        rustix::net::send(mailbox.entrance(), &message, SendFlags::DONTWAIT).expect("there is room");
    }
    let side = Side::new();
    let lines = logged(|| side.server.take_over(&mailbox, drop).expect("the mailbox works"));
    let [many, one] = &lines[..] else { panic!("{lines:#?}") };
    assert!(many.contains("WARN") && many.contains("closed 40 connections from the predecessor: "), "{many}");
    assert!(one.contains("WARN") && one.contains("closed 1 connection from the predecessor: "), "{one}");
    assert_eq!(side.registry.totals().not_understood.load(Relaxed), 41);
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";

/// The runtime takes a socket of which a read has filled its buffer for one that has more to read.
#[tokio::test]
async fn a_connection_is_parked_also_after_a_request_that_fills_the_buffer_that_it_is_read_into() {
    let side = Side::new();
    for length in [8191, 8192, 8193] {
        let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
        side.server.serve_one(theirs);
        let head = "GET / HTTP/1.1\r\nhost: here\r\nx: ";
        let request = format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4));
        client.write_all(request.as_bytes()).await.expect("the server reads");
        answer(&mut client).await;
        let connections = side.registry.connections();
        let connection =
            connections.iter().max_by_key(|connection| connection.slot().id).expect("it is open");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(connection.state(), State::Parked, "after {length} bytes");
    }
}

/// The kernel has it, and the runtime has yet to hear of it: its task must not ask again and again, for then the runtime
/// never would. In a thread of its own, which would not end.
#[test]
fn a_byte_that_comes_with_the_command_to_finish_is_waited_for() {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let answered = runtime.block_on(async {
            let side = Side::new();
            let (client, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
            theirs.set_nonblocking(true).expect("it may be");
            side.server.serve_one(UnixStream::from_std(theirs).expect("a socket"));
            let connection = side.registry.connections().remove(0);
            // Until the runtime has seen that there is nothing to read.
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            std::io::Write::write_all(&mut &client, REQUEST).expect("there is room");
            connection.commands().give(Command::Finish);
            client.set_nonblocking(true).expect("it may be");
            let mut client = UnixStream::from_std(client).expect("a socket");
            answer(&mut client).await
        });
        tell.send(answered).expect("somebody waits");
    });
    let answered = told.recv_timeout(PATIENCE).expect("it is answered");
    assert!(answered.contains("connection: close"), "{answered}");
}
