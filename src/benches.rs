//! The work whose instructions `benches/` counts, one unit each; not built otherwise.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

use crate::daemon::http::routes::proxy::headers;
use crate::daemon::http::routes::{Action, Route, Routes, respond};
use crate::handover::parcel::{self, ConnectionNote, Flow, Parcel, TunnelNote};
use crate::server::limits::Limits;
use crate::server::request_id::RequestId;
use crate::server::{
    Clock, Event, Exchange, Handler, InFlight, Machine, Peer, Registry, Server, State, Totals,
};

/// Does a unit of work, any number of times.
pub type Work = Box<dyn FnMut()>;

/// The routes, or the open connections, that there are: more than most have.
const MANY: u16 = 1000;

/// A client of the documentation's network (RFC 5737).
fn client(number: u16) -> Peer {
    Peer::Tcp((Ipv4Addr::new(192, 0, 2, 1), number).into())
}

/// Finds one of 1,000 routes by a path, and takes its fixed answer.
#[must_use]
pub fn routing(path: &str) -> Work {
    let route = |number| {
        let path = if number % 2 == 0 { format!("/some/{number}/page") } else { format!("/some/{number}/*") };
        Route::new(path, Action::Respond(respond::Config::default()))
    };
    answered_by((0..MANY).map(route), path, None)
}

/// The same of 1,000 hosts, by a host and a path.
#[must_use]
pub fn routing_by_host(host: &'static str, path: &str) -> Work {
    let route = |number| {
        let mut route = Route::new("/some/*", Action::Respond(respond::Config::default()));
        let wildcard = if number % 2 == 0 { "" } else { "*." };
        route.hosts = vec![format!("{wildcard}{number}.example.org")];
        route
    };
    answered_by((0..MANY).map(route), path, Some(HeaderValue::from_static(host)))
}

/// Asks for a path, of a host if it has one, and takes the fixed answer of one of these routes.
fn answered_by(routes: impl Iterator<Item = Route>, path: &str, host: Option<HeaderValue>) -> Work {
    let routes = Routes::new(&routes.collect::<Vec<_>>(), None, None, &TaskTracker::new());
    let in_flight = InFlight::of(client(1));
    let uri: Uri = path.parse().expect("a URI");
    Box::new(move || {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri.clone();
        if let Some(host) = &host {
            request.headers_mut().insert(HOST, host.clone());
        }
        let answer = routes.answer(request, in_flight.clone()).now_or_never();
        assert!(answer.is_some_and(|answer| answer.status() == StatusCode::OK), "the path has a route");
    })
}

/// Opens a connection beside 1,000 others, and closes it.
#[must_use]
pub fn registry() -> Work {
    let registry = Registry::new(Totals::unobserved());
    let open: Vec<_> = (0..MANY).map(|number| registry.accepted(0, client(number), false, None)).collect();
    Box::new(move || {
        registry.accepted(0, client(MANY), false, None).closed();
        assert_eq!(registry.len(), open.len());
    })
}

/// Goes through a connection's states, for one request.
#[must_use]
pub fn machine() -> Work {
    let clock = Clock::new();
    let mut machine = Machine::Parked { since: clock.now() };
    let uri = Uri::from_static("/some/page");
    Box::new(move || {
        let exchange = Box::new(Exchange::new(Method::GET, uri.clone(), false));
        let decided = Event::Decided { status: StatusCode::OK, last: false };
        for event in [Event::FirstByte, Event::Head(exchange), decided, Event::Produced] {
            assert!(machine.on(black_box(event), || clock.now()).is_none(), "the request goes on");
        }
        assert!(machine.on(black_box(Event::Flushed), || clock.now()).is_some(), "the request has ended");
    })
}

/// Wakes a parked connection with a small request, answers it, and parks the connection again; the client's part, which
/// is to write and to read, is in it.
#[must_use]
pub fn parking() -> Work {
    const REQUEST: &[u8] =
        b"GET /some/page HTTP/1.1\r\nhost: example.org\r\nuser-agent: benches\r\naccept: */*\r\n\r\n";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let answer = respond::Config { body: "hello\n".into(), ..respond::Config::default() };
    let route = Route::new("/some/*", Action::Respond(answer));
    let routes = Routes::new(&[route], None, None, &TaskTracker::new());
    let registry = Registry::new(Totals::unobserved());
    let limits = Limits { requests_per_connection: u64::MAX, ..Limits::default() };
    let server = Server::new(Vec::new(), routes, Arc::clone(&registry), limits);
    let mut client = {
        let _entered = runtime.enter();
        let (client, theirs) = UnixStream::pair().expect("a pair of sockets");
        server.serve_one(theirs);
        client
    };
    let (open, mut buffer) = (Arc::clone(&registry), [0; 1024]);
    let mut ask = move || {
        let length = runtime.block_on(async {
            client.write_all(REQUEST).await.expect("the server reads");
            client.read(&mut buffer).await.expect("the server answers")
        });
        assert!(buffer[..length].ends_with(b"\r\n\r\nhello\n"), "the answer comes whole");
        assert_eq!(open.in_flight(), 0, "the request has ended");
    };
    ask();
    let is_parked = registry.connections().iter().all(|connection| connection.state() == State::Parked);
    assert!(is_parked, "each answer parks the connection, so that the next request wakes it");
    Box::new(ask)
}

/// Writes a parcel of a connection into a message, and reads it back.
#[must_use]
pub fn connection_parcel() -> Work {
    let note = ConnectionNote {
        peer: Some((Ipv4Addr::new(192, 0, 2, 1), 50_000).into()),
        answered: 1000,
        idle_ms: 5000,
        read_ahead: b"GET /some/page HTTP/1.1\r\n".as_slice().into(),
    };
    travel(Parcel::Connection(descriptor(), note))
}

/// The same of a tunnel.
#[must_use]
pub fn tunnel_parcel() -> Work {
    let flow = |length| Flow { unsent: vec![b'x'; length].into(), ended: false };
    let note = TunnelNote {
        peer: Some((Ipv4Addr::new(192, 0, 2, 1), 50_000).into()),
        method: "GET".into(),
        uri: "/chat?room=1".into(),
        age_ms: 60_000,
        up: flow(0),
        down: flow(1000),
        id: "0123456789abcdef0123456789abcdef".into(),
        route: "/chat/*".into(),
    };
    travel(Parcel::Tunnel { client: descriptor(), upstream: descriptor(), note })
}

/// A descriptor is as good as any other: a parcel's socket is not touched.
fn descriptor() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("it is there").into()
}

fn travel(parcel: Parcel) -> Work {
    let mut parcel = Some(parcel);
    Box::new(move || {
        let sent = parcel.take().expect("it has come back");
        let mut message = Vec::new();
        assert!(sent.write_to(&mut message), "it is small enough");
        let descriptors = match sent {
            Parcel::Connection(socket, _) => vec![socket],
            Parcel::Tunnel { client, upstream, .. } => vec![client, upstream],
            Parcel::Counts(_) => Vec::new(),
        };
        parcel = parcel::read(&message, descriptors).pop().and_then(Result::ok);
    })
}

/// Makes the fields of a browser's request those of the request to an upstream.
#[must_use]
pub fn headers_to_upstream() -> Work {
    let sent = fields(&[
        ("host", "example.org"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "http://example.org/some/page"),
        ("connection", "keep-alive"),
        ("cookie", "session=0123456789abcdef0123456789abcdef"),
        ("upgrade-insecure-requests", "1"),
        ("priority", "u=0, i"),
    ]);
    let in_flight = InFlight::of(client(1));
    let uri = Uri::from_static("/some/page?and=query");
    Box::new(move || {
        let mut fields = sent.clone();
        headers::to_upstream(&mut fields, Version::HTTP_11, &uri, &in_flight, &RequestId::fresh(), None);
        assert!(fields.contains_key("x-forwarded-for") && !fields.contains_key("connection"));
    })
}

/// Makes the fields of an upstream's answer those of the answer to the client.
#[must_use]
pub fn headers_to_client() -> Work {
    let sent = fields(&[
        ("server", "upstream"),
        ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "1000"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("cache-control", "private, max-age=60"),
        ("set-cookie", "session=0123456789abcdef0123456789abcdef; HttpOnly; Secure"),
    ]);
    Box::new(move || {
        let mut fields = sent.clone();
        headers::to_client(StatusCode::OK, &mut fields);
        assert!(fields.contains_key("content-type") && !fields.contains_key("keep-alive"));
    })
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    fields.iter().copied().map(field).collect()
}
