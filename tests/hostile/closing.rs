//! The last answer of a connection, and a client that does not close after it: its permit is free soon, and
//! nobody waits for it.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::{Client, Daemon, Signal, print_figure};

use crate::site::{BINARY, Site, respond};
use crate::wire::{answer, connect};

/// The most connections.
const MAX_CONNECTIONS: usize = 20;

/// A client that closes nothing is closed after 2 s: this is much later, and sooner than anything else that would end
/// the wait.
const SOON: Duration = Duration::from_secs(15);

const LIMITS: &str = r#"
    max_connections = 20
    header_timeout = "3s"
    read_timeout = "3s"
    header_limit = "8KiB"
    body_limit = "1KiB"
"#;

/// A request whose answer is the last one of its connection, and that answer's status.
type Last<'a> = (&'a [u8], u16);

const HALF_A_HEAD: Last<'_> = (b"GET /hello HTTP/1.1\r\nHost: te", 408);

/// The connection that sent it, with its answer received: it is not closed, and goes on saying something if it is
/// `talkative`.
struct Rude {
    stream: TcpStream,
    talkative: bool,
}

impl Rude {
    fn begin(address: SocketAddr, (sent, status): Last<'_>, talkative: bool) -> Self {
        let mut stream = connect(address);
        stream.write_all(sent).expect("the daemon takes a request");
        let answer = answer(&mut stream, &mut Vec::new(), false).expect("it is answered");
        assert_eq!(answer.status(), status);
        Self { stream, talkative }
    }

    fn go_on(&mut self) {
        if self.talkative {
            let _ = self.stream.write(b"x");
        }
    }
}

/// Takes every connection with clients that have had their last answer and do not close: the next client is served.
fn assert_connections_are_freed(limits: &str, last: Last<'_>, talkative: bool) {
    let site = Site::start(&format!("{LIMITS}{limits}"), &respond("/hello", "hello"));
    let mut rude: Vec<Rude> = thread::scope(|scope| {
        let begin = || scope.spawn(|| Rude::begin(site.http, last, talkative));
        let all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| begin()).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mut next = site.client();
    next.ask("/hello").unwrap();
    let what = format!(
        "after {} for {}, talkative: {talkative}",
        last.1,
        last.0[..last.0.len().min(40)].escape_ascii()
    );
    let took = wait_for_answer(&what, &mut next, &mut rude);
    print_figure(
        &format!("a connection freed {what}"),
        format_args!("{:.1} s (aim: under 2.5)", took.as_secs_f64()),
    );
}

/// Receives an answer while the rude ones go on.
fn wait_for_answer(what: &str, next: &mut Client, rude: &mut [Rude]) -> Duration {
    let began = Instant::now();
    while next.is_open() && !next.has_received() {
        assert!(began.elapsed() < SOON, "{what}: no connection is free after {:?}", began.elapsed());
        rude.iter_mut().for_each(Rude::go_on);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(next.receive().unwrap().status, 200);
    began.elapsed()
}

#[test]
fn a_client_that_does_not_close_after_its_last_answer_frees_its_connection() {
    let long = [b"GET /hello HTTP/1.1\r\nHost: a\r\nX: ".as_slice(), &[b'x'; 16 << 10]].concat();
    let get = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";
    let ways: [(&str, &[u8], u16); 6] = [
        ("", HALF_A_HEAD.0, HALF_A_HEAD.1),
        ("", b"GET /hello HTTP/1.1\r\n\r\n", 400),
        ("", b"nonsense\r\n\r\n", 400),
        ("", b"POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", 413),
        ("", &long, 431),
        ("requests_per_connection = 1\n", get, 200),
    ];
    thread::scope(|scope| {
        for (limits, sent, status) in ways {
            for talkative in [false, true] {
                scope.spawn(move || assert_connections_are_freed(limits, (sent, status), talkative));
            }
        }
    });
}

/// The admin listener has 256 connections, and waits 10 s for a head.
#[test]
fn clients_that_do_not_close_after_a_408_do_not_make_the_admin_listener_deaf() {
    const ADMIN_CONNECTIONS: usize = 256;
    let site = Site::start("", &respond("/hello", "hello"));
    let half = b"GET /livez HTTP/1.1\r\nHost: te";
    let mut rude: Vec<TcpStream> = (0..ADMIN_CONNECTIONS).map(|_| connect(site.admin)).collect();
    for stream in &mut rude {
        stream.write_all(half).unwrap();
    }
    for stream in &mut rude {
        let told = answer(stream, &mut Vec::new(), false).map(|answer| answer.status());
        assert!(
            told == Ok(408) || told.is_err_and(|lost| lost.starts_with("closed")),
            "neither told nor closed"
        );
    }
    let mut operator = Client::connect(site.admin).unwrap();
    operator.ask("/livez").unwrap();
    wait_for_answer("on the admin listener", &mut operator, &mut []);
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_has_had_its_last_answer() {
    let config = format!(
        "[http]\nlisten = [\"127.0.0.1:0\"]\n{LIMITS}\n[admin]\nlisten = [\"127.0.0.1:0\"]\n[log]\ntarget = \"stderr\"\n{}",
        respond("/hello", "hello")
    );
    for child in ["http", "admin"] {
        let mut daemon = Daemon::start(BINARY, &config);
        let rude = Rude::begin(daemon.address(child), HALF_A_HEAD, false);
        let began = Instant::now();
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(), 0, "{}", daemon.stderr());
        assert!(began.elapsed() < SOON, "{child}: {:?}", began.elapsed());
        drop(rude);
    }
}

/// Each has its listener: a permit is taken by a connection, not by a listener that waits for one.
#[test]
fn with_fewer_connections_than_listeners_every_listener_is_served() {
    let config = format!(
        "[http]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:0\"]\nmax_connections = 2\n[admin]\nlisten = []\n[log]\ntarget = \"stderr\"\n{}",
        respond("/hello", "hello")
    );
    let daemon = Daemon::start(BINARY, &config);
    daemon.wait_for_line("that it serves", |line| line.contains("serving"));
    let addresses = daemon.addresses();
    let addresses: Vec<_> = addresses.iter().filter(|listening| listening.child == "http").collect();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    // The last one first: before any other has had a client.
    for listening in addresses.into_iter().rev() {
        let mut client = Client::connect(listening.address.parse().unwrap()).unwrap();
        client.ask("/hello").unwrap();
        wait_for_answer(&listening.address, &mut client, &mut []);
    }
}
