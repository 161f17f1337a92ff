//! Random clients that never cooperate, beside good ones: these are served all along, and of the others nothing is
//! left although they still hold their sockets.
//!
//! `STEADFAST_UNCOOPERATIVE_SEED` repeats a run as far as the order of each client's deeds goes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::SockRef;
use steadfast_harness::{Client, Signal, print_figure, raise_descriptor_limit, wait_until};

use crate::recorder::Recorder;
use crate::site::{Site, files, metric_in, proxy, respond, sum_in};

/// The time for which they go on.
const LENGTH: Duration = Duration::from_secs(12);

/// More connections than are open at a time, so that nobody has to wait.
const MAX_CONNECTIONS: usize = 1500;

/// The limits that nobody can outstay, short.
const LIMITS: &str = r#"
    max_connections = 1500
    requests_per_connection = 40
    header_timeout = "1s"
    header_limit = "8KiB"
    keepalive_timeout = "5s"
    read_timeout = "1s"
    write_timeout = "1s"
    body_limit = "512KiB"
"#;

/// The routes that they ask for, of all kinds, with an answer that is empty, small, more than sockets hold, or broken
/// off by the upstream.
const PATHS: [&str; 6] = ["/respond/", "/files/small", "/files/empty", "/files/large", "/proxy/", "/broken/"];

/// Longer than any good client may wait, on a machine that is busy.
const TOO_LONG: Duration = Duration::from_secs(10);

/// The record of all clients. Each request has a number of its own, in its query.
#[derive(Default)]
struct Book {
    stop: AtomicBool,
    last: AtomicU64,
    /// Connections that are never closed.
    open: Mutex<Vec<TcpStream>>,
    /// The numbers of requests of which a client has the whole answer.
    answered: Mutex<Vec<u64>>,
}

impl Book {
    fn target(&self, path: &str) -> (u64, String) {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        (number, format!("{path}?{number}"))
    }

    fn hold(&self, stream: TcpStream) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }

    fn note(&self, number: u64) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }
}

// ---------------------------------------------------------------------------
// The good ones
// ---------------------------------------------------------------------------

/// Asks on one connection as long as it is kept, then on the next. Returns how many answers came, and the longest wait.
fn cooperate(book: &Book, address: SocketAddr, path: &str) -> (usize, Duration) {
    let mut kept: Option<Client> = None;
    let (mut answers, mut longest) = (0, Duration::ZERO);
    while !book.stop.load(Relaxed) {
        let began = Instant::now();
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address).expect("it accepts"));
        let (number, target) = book.target(path);
        let (method, body) = if number % 2 == 0 && path != "/files/small" {
            ("POST", "Content-Length: 5\r\n\r\nhello")
        } else {
            ("GET", "\r\n")
        };
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{body}")).expect("it reads");
        let answer =
            client.receive().unwrap_or_else(|failure| panic!("a good client at {target}: {failure}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{target}");
        book.note(number);
        longest = longest.max(began.elapsed());
        answers += 1;
        if answer.header("connection") != Some("close") {
            kept = Some(client);
        }
        // A log of every request, and one that loses none.
        thread::sleep(Duration::from_millis(2));
    }
    (answers, longest)
}

// ---------------------------------------------------------------------------
// The others
// ---------------------------------------------------------------------------

fn never_cooperate(book: &Book, address: SocketAddr, rng: &mut Rng) {
    while !book.stop.load(Relaxed) {
        let mut stream = TcpStream::connect(address).expect("it accepts");
        stream.set_nodelay(true).unwrap();
        // Neither a deed nor its end waits for the daemon.
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // The daemon may have had enough in the middle of it.
        let _ = misbehave(book, &mut stream, rng);
        match rng.u8(..5) {
            0 => drop(stream),
            1 => {
                let _ = stream.shutdown(Shutdown::Write);
                book.hold(stream);
            }
            // A reset.
            2 => drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
            _ => book.hold(stream),
        }
        pause(rng, 30);
    }
}

fn misbehave(book: &Book, stream: &mut TcpStream, rng: &mut Rng) -> io::Result<()> {
    let path = PATHS[rng.usize(..PATHS.len())];
    let (number, target) = book.target(path);
    let get = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = |fields: &str| format!("POST {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    match rng.u8(..14) {
        // Silence.
        0 => {}
        // A part of a head, at once or in trickles.
        1 => stream.write_all(&get.as_bytes()[..rng.usize(1..get.len())])?,
        2 => {
            for byte in get.as_bytes().chunks(rng.usize(1..8)) {
                stream.write_all(byte)?;
                pause(rng, 100);
            }
        }
        // A part of a body, at once or in trickles.
        3 => stream.write_all(format!("{}half", post("Content-Length: 10\r\n")).as_bytes())?,
        4 => {
            stream.write_all(post("Content-Length: 20\r\n").as_bytes())?;
            for _ in 0..rng.usize(1..30) {
                stream.write_all(b"x")?;
                pause(rng, 100);
            }
        }
        5 => {
            stream.write_all(post("Transfer-Encoding: chunked\r\n").as_bytes())?;
            // In packets of their own many of its bytes bring nobody anything but the wait for the next.
            let body = b"5;ext\r\nhello\r\n0\r\nX: trailer\r\n\r\n";
            let part = &body[..rng.usize(1..body.len())];
            for piece in part.chunks(rng.usize(1..=part.len())) {
                pause(rng, 50);
                stream.write_all(piece)?;
            }
        }
        // More than anybody wants.
        6 => stream
            .write_all(&[post("Content-Length: 400000\r\n").into_bytes(), vec![b'x'; 400_000]].concat())?,
        7 => stream
            .write_all(&[post("Content-Length: 900000\r\n").into_bytes(), vec![b'x'; 900_000]].concat())?,
        8 => stream.write_all(format!("GET {target} HTTP/1.1\r\nX: {}", "x".repeat(9000)).as_bytes())?,
        // A deep pipeline, and no interest in the answers.
        9 => {
            let requests = (0..rng.usize(2..60)).map(|_| book.target(PATHS[rng.usize(..PATHS.len())]).1);
            let requests = requests.map(|target| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            stream.write_all(requests.collect::<String>().as_bytes())?;
        }
        // A request behind a body that nobody has read.
        10 => {
            let (_, behind) = book.target(path);
            let behind = format!("GET {behind} HTTP/1.1\r\nHost: a\r\n\r\n");
            stream.write_all(format!("{}hello{behind}", post("Content-Length: 5\r\n")).as_bytes())?;
        }
        // A little of the answer.
        11 => {
            stream.write_all(get.as_bytes())?;
            stream.read_exact(&mut vec![0; rng.usize(1..200)])?;
        }
        // No HTTP.
        12 => {
            let mut garbage = vec![0; rng.usize(1..2000)];
            rng.fill(&mut garbage);
            stream.write_all(&garbage)?;
        }
        // All of the answer, and then nothing.
        _ => {
            stream.write_all(
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(),
            )?;
            stream.read_to_end(&mut Vec::new())?;
            book.note(number);
        }
    }
    Ok(())
}

fn pause(rng: &mut Rng, most_ms: u64) {
    thread::sleep(Duration::from_millis(rng.u64(..=most_ms)));
}

// ---------------------------------------------------------------------------
// The state afterwards
// ---------------------------------------------------------------------------

#[test]
fn clients_that_never_cooperate_harm_nobody_and_leave_nothing_behind() {
    let seed = std::env::var("STEADFAST_UNCOOPERATIVE_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a seed is a number"));
    print_figure("STEADFAST_UNCOOPERATIVE_SEED", seed);
    raise_descriptor_limit(20_000);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), "ok").unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::File::create(folder.path().join("large")).unwrap().set_len(16 << 20).unwrap();
    let recorder = Recorder::start();
    let breaking_off = Recorder::answering("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    let tables = respond("/respond/*", "ok")
        + &files("/files/*", folder.path())
        + &proxy("/proxy/*", recorder.address, "")
        + &proxy("/broken/*", breaking_off.address, ", timeout = \"1s\"");
    let mut site = Site::start(LIMITS, &("access = \"all\"\n".to_owned() + &tables));

    let book = Book::default();
    thread::scope(|scope| {
        let good: Vec<_> = ["/respond/", "/files/small", "/proxy/"]
            .map(|path| {
                scope.spawn({
                    let (book, http) = (&book, site.http);
                    move || cooperate(book, http, path)
                })
            })
            .into();
        let mut rng = Rng::with_seed(seed);
        for _ in 0..8 {
            let (book, http, mut rng) = (&book, site.http, rng.fork());
            scope.spawn(move || never_cooperate(book, http, &mut rng));
        }
        // Time itself is the test; whoever fails ends it early.
        let began = Instant::now();
        while began.elapsed() < LENGTH && !good.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(20));
        }
        book.stop.store(true, Relaxed);
        for client in good {
            let (answers, longest) = client.join().unwrap();
            assert!(answers > 50 && longest < TOO_LONG, "{answers} answers, one after {longest:?}");
        }
    });

    let left = || {
        let metrics = site.metrics();
        [
            metric_in(&metrics, "steadfast_http_requests_in_flight"),
            sum_in(&metrics, "steadfast_http_connections"),
        ]
    };
    let began = Instant::now();
    while left() != [0, 0] {
        let [in_flight, connections] = left();
        assert!(
            began.elapsed() < 2 * TOO_LONG,
            "seed {seed}: {in_flight} requests in flight and {connections} connections open for ever\n{}",
            Client::connect(site.admin).unwrap().get("/status").unwrap().text()
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert_connections_are_freed(&site, &book);
    let metrics = site.metrics();

    // Not even a stop waits for those who still hold their sockets.
    let began = Instant::now();
    site.signal(Signal::TERM);
    assert_eq!(site.wait(), 0);
    assert!(began.elapsed() < TOO_LONG, "{:?}", began.elapsed());
    assert_counted_once(&site, &book, &recorder, &metrics);
    let open = book.open.into_inner().unwrap();
    print_figure("requests of clients that never cooperate", book.last.into_inner());
    print_figure("of which still hold their connections", open.len());
}

/// As many new clients as there may be connections are answered, each on one that stays open.
fn assert_connections_are_freed(site: &Site, book: &Book) {
    let clients: Vec<Client> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut client = site.client();
            let (number, target) = book.target("/respond/");
            assert_eq!(client.get(&target).unwrap().status, 200);
            book.note(number);
            client
        })
        .collect();
    drop(clients);
    wait_until("these to be gone", || (site.connections() == 0).then_some(()));
}

/// Each request that was begun has one line in the access log and is counted in the metrics by the same outcome.
fn assert_counted_once(site: &Site, book: &Book, recorder: &Recorder, metrics: &str) {
    assert_eq!(metric_in(metrics, "steadfast_log_lost_total"), 0);
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut lines: BTreeMap<u64, u64> = BTreeMap::new();
    for line in site.stderr().0.iter().filter(|line| line.contains("steadfast::access")) {
        let value = |name: &str| line.split_once(name)?.1.split([' ', '"']).find(|word| !word.is_empty());
        *outcomes.entry(value("outcome=").unwrap_or("none").to_owned()).or_default() += 1;
        let number = value("query=").and_then(|query| query.parse().ok());
        *lines.entry(number.unwrap_or_else(|| panic!("no number in {line}"))).or_default() += 1;
    }
    let twice: Vec<_> = lines.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "logged more than once: {twice:?}");

    let ended = sum_in(metrics, "steadfast_http_requests_total");
    let gone = metric_in(metrics, "steadfast_http_requests_client_gone_total");
    let cut = metric_in(metrics, "steadfast_http_requests_cut_total");
    let broken_off = metric_in(metrics, "steadfast_http_requests_broken_off_total");
    assert_eq!((ended, cut), (lines.len() as u64, 0), "{outcomes:?}");
    let answered = outcomes.get("answered").copied().unwrap_or_default();
    assert_eq!(answered + cut + gone + broken_off, ended, "{outcomes:?}");
    assert_eq!(outcomes.get("broken").copied().unwrap_or_default(), broken_off, "{outcomes:?}");

    // Requests that others know to have been begun.
    let answered = book.answered.lock().unwrap_or_else(PoisonError::into_inner);
    let passed = recorder.requests();
    let passed = passed
        .iter()
        .map(|request| request.start.split(['?', ' ']).nth(2).expect("a number").parse().unwrap());
    for number in answered.iter().copied().chain(passed) {
        assert!(lines.contains_key(&number), "request {number} was never counted");
    }
    assert_eq!(recorder.malformed(), [""; 0]);
}
