//! Handshakes of TLS that stall, trickle, or are none: none holds a place for longer than a head may, and nobody waits for it.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::certificates::{Certificate, is_ca};
use steadfast_harness::{Client, Trust, print_figure, wait_until, wait_with};
use tempfile::TempDir;

use crate::site::{Site, respond, sum_in};
use crate::wire::{connect, read_to_end};

/// Enough at once that each would be noticed if others waited for it.
const MANY: usize = 100;

/// The time of a handshake: the good clients have no more, beside a hundred others.
const LIMITS: &str = "header_timeout = \"3s\"";

/// All of them have ended by then, also on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// The first of them has ended by then, and had not if the limit were the default of ten seconds.
const FIRST: Duration = Duration::from_secs(8);

/// Longer than a good client may ever wait, on such a machine.
const TOO_LONG: Duration = Duration::from_secs(10);

/// A site that listens with TLS as well.
struct Edge {
    site: Site,
    https: SocketAddr,
    authority: Certificate,
    trust: Trust,
    /// Removed with this.
    _folder: TempDir,
}

impl Deref for Edge {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Edge {
    fn start(limits: &str) -> Self {
        Self::start_with(limits, "")
    }

    /// The same with further lines in `[https]`, of which `~/` is the folder, and the authority's certificate in its `ca`.
    fn start_with(limits: &str, lines: &str) -> Self {
        let authority = Certificate::of_itself("an authority", &[], is_ca);
        let certificate = authority.issue("a server", &["localhost"], |_| {});
        let folder = tempfile::tempdir().unwrap();
        let [chain, key] = [("chain", certificate.pem()), ("key", certificate.key())].map(|(name, pem)| {
            let path = folder.path().join(name);
            fs::write(&path, pem).unwrap();
            path.display().to_string()
        });
        fs::write(folder.path().join("ca"), authority.pem()).unwrap();
        let lines = lines.replace("~/", &format!("{}/", folder.path().display()));
        let https = format!(
            "[https]\nlisten = [\"127.0.0.1:0\"]\ncertificates = [{{ chain = \"{chain}\", key = \"{key}\" }}]\n{lines}\n"
        );
        let site = Site::start(limits, &(https + &respond("/hello", "hello")));
        let mut http = site.addresses().into_iter().filter(|listening| listening.child == "http");
        let https = http.nth(1).expect("two listeners").address.parse().unwrap();
        Self { site, https, trust: Trust::new(&authority, "localhost"), authority, _folder: folder }
    }

    fn secured(&self) -> Client {
        let mut client = Client::connect_tls(self.https, &self.trust).expect("a handshake");
        assert_eq!(client.get("/hello").expect("it is answered").status, 200);
        client
    }

    /// Runs `client` many times at once, while others are served all along: one that is connected, and new ones.
    fn many(&self, client: impl Fn(usize) + Sync) {
        let client = |n| {
            let began = Instant::now();
            client(n);
            began.elapsed()
        };
        let client = &client;
        let ended = thread::scope(|scope| {
            let clients: Vec<_> = (0..MANY).map(|n| scope.spawn(move || client(n))).collect();
            let mut kept = self.secured();
            while clients.iter().any(|client| !client.is_finished()) {
                assert_eq!(kept.get("/hello").expect("it is served all along").status, 200);
                self.secured();
                self.assert_available("/hello");
                thread::sleep(Duration::from_millis(10));
            }
            let ended = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
            ended.collect::<Vec<_>>()
        });
        let [first, last] = [ended.iter().min(), ended.iter().max()].map(|of| *of.expect("there are many"));
        assert!(first < FIRST && last < SOON, "{first:?}, {last:?}");
        // But for those that have asked, whose idle time has not passed.
        wait_until("no handshake to be left", || (self.handshaking() == 0).then_some(()));
    }

    /// The number of connections that have not shaken hands.
    fn handshaking(&self) -> u64 {
        self.site.metric("steadfast_http_connections{state=\"handshaking\"}")
    }
}

#[test]
fn a_hundred_handshakes_that_stall_at_any_byte_are_closed_in_time_and_nobody_waits_for_them() {
    let edge = Edge::start(LIMITS);
    let hello = edge.trust.client_hello();
    edge.many(|n| {
        let mut client = connect(edge.https);
        // The last ones have said all of it, and leave the server's own flight unanswered.
        client.write_all(&hello[..(hello.len() * n / (MANY - 10)).min(hello.len())]).unwrap_or_default();
        read_to_end(&mut client);
    });
}

#[test]
fn a_hundred_handshakes_that_trickle_are_closed_in_time_and_nobody_waits_for_them() {
    let edge = Edge::start(LIMITS);
    let hello = &edge.trust.client_hello();
    edge.many(|_| {
        let mut client = connect(edge.https);
        let mut sender = client.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                for byte in hello {
                    if sender.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            });
            read_to_end(&mut client);
            let _ = client.shutdown(Shutdown::Both);
        });
    });
}

/// What is no handshake, or none that can go on.
fn rubbish() -> Vec<(&'static str, Vec<u8>)> {
    let record = |kind: u8, length: usize, rest: &[u8]| {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        [&[kind, 3, 1], &length[..], rest].concat()
    };
    vec![
        ("a request without TLS", b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("HTTP/2 without TLS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("a hello of SSL 2", [&[0x80, 0x2e, 1, 0, 2][..], &[0; 64]].concat()),
        ("zeros", vec![0; 4096]),
        ("ones", vec![0xff; 4096]),
        ("a record that is longer than any", record(22, 0xffff, &[1; 4096])),
        ("an empty record", record(22, 0, &[])),
        ("a hundred empty records", record(22, 0, &[]).repeat(100)),
        ("data before a handshake", record(23, 64, &[7; 64])),
        ("an alert alone", record(21, 2, &[2, 40])),
        ("a heartbeat", record(24, 3, &[1, 0x40, 0])),
        ("a server's hello", record(22, 8, &[2, 0, 0, 4, 3, 3, 0, 0])),
        ("a hello that is empty", record(22, 4, &[1, 0, 0, 0])),
        ("a hello that is longer than any", record(22, 64, &[&[1, 0xff, 0xff, 0xff][..], &[0; 60]].concat())),
        ("a change of ciphers a hundred times", record(20, 1, &[1]).repeat(100)),
    ]
}

#[test]
fn what_is_no_handshake_is_closed_and_nobody_waits_for_it() {
    let edge = Edge::start(LIMITS);
    for (what, bytes) in rubbish() {
        let mut client = connect(edge.https);
        // It may be closed before all of it was read.
        let _ = client.write_all(&bytes);
        let answer = read_to_end(&mut client);
        assert!(answer.len() < 512, "{what}: {}", answer.escape_ascii());
    }
    let rubbish = rubbish();
    edge.many(|n| {
        let mut client = connect(edge.https);
        let _ = client.write_all(&rubbish[n % rubbish.len()].1);
        read_to_end(&mut client);
    });
}

/// A hello that offers no cipher suite but two of RC4, in the place of its own (RFC 8446, section 4.1.2).
fn of_old_suites(mut hello: Vec<u8>) -> Vec<u8> {
    // The record's head and the message's, the version, the random bytes, and the session's id.
    let suites = 5 + 4 + 2 + 32 + 1 + usize::from(hello[43]);
    let length = usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    for suite in hello[suites + 2..][..length].chunks_mut(4) {
        suite.copy_from_slice(&[0, 4, 0, 5][..suite.len()]);
    }
    hello
}

/// The reason that a handshake fails for, where it does, and the client, which returns what it was sent.
type Case<'a> = (&'static str, &'a Edge, &'a dyn Fn() -> Vec<u8>);

#[test]
fn each_handshake_that_fails_is_counted_once_by_its_reason() {
    const FAILED: &str = "steadfast_tls_handshake_failures_total";
    let edge = Edge::start("");
    let impatient = Edge::start("header_timeout = \"1s\"");
    let strict = Edge::start_with("", "min_version = \"1.3\"\nclient_ca = \"~/ca\"");
    let hello = edge.trust.client_hello();
    let says = |edge: &Edge, bytes: &[u8], is_all: bool| {
        let mut client = connect(edge.https);
        let _ = client.write_all(bytes);
        if is_all {
            client.shutdown(Shutdown::Write).unwrap_or_default();
        }
        read_to_end(&mut client)
    };
    let stranger = Certificate::of_itself("an authority", &[], is_ca);
    let shakes_hands = |edge: &Edge, trust: &Trust| {
        let answer = Client::connect_tls(edge.https, trust).and_then(|mut client| client.get("/hello"));
        assert!(answer.is_err(), "{answer:?}");
        Vec::new()
    };
    let plain = "GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let longest = [&[22, 3, 1, 0, 64, 1, 0xff, 0xff, 0xff][..], &[0; 60]].concat();
    let cases: [Case<'_>; 11] = [
        ("timed_out", &impatient, &|| says(&impatient, &hello[..hello.len() / 2], false)),
        ("timed_out", &impatient, &|| says(&impatient, &[], false)),
        ("client_gone", &edge, &|| says(&edge, &hello[..hello.len() / 2], true)),
        ("not_tls", &edge, &|| says(&edge, &[0xff; 4096], false)),
        ("not_tls", &edge, &|| says(&edge, &[0; 4096], false)),
        ("plain_http", &edge, &|| says(&edge, plain.as_bytes(), false)),
        ("no_shared_cipher", &edge, &|| says(&edge, &of_old_suites(hello.clone()), false)),
        ("protocol", &edge, &|| says(&edge, &longest, false)),
        ("client_alert", &edge, &|| shakes_hands(&edge, &Trust::new(&stranger, "localhost"))),
        ("unsupported_version", &strict, &|| {
            shakes_hands(&strict, &Trust::of_tls12(&strict.authority, "localhost"))
        }),
        ("client_certificate", &strict, &|| shakes_hands(&strict, &strict.trust)),
    ];
    for (index, (reason, at, case)) in cases.into_iter().enumerate() {
        let counted = |reason: &str| at.metric(&format!("{FAILED}{{reason=\"{reason}\"}}"));
        let (before, all) = (counted(reason), sum_in(&at.metrics(), FAILED));
        let answer = case();
        assert_eq!(answer.starts_with(b"HTTP/1.1 400 "), reason == "plain_http", "{}", answer.escape_ascii());
        wait_with(
            || (counted(reason) > before).then_some(()),
            || format!("case {index} to be {reason}:\n{}", at.metrics()),
        );
        assert_eq!(
            (counted(reason), sum_in(&at.metrics(), FAILED)),
            (before + 1, all + 1),
            "{index}: {reason}"
        );
    }
}

#[test]
fn a_hello_that_is_changed_in_any_byte_leads_to_an_answer_or_a_close() {
    let edge = Edge::start("header_timeout = \"1s\"");
    let hello = edge.trust.client_hello();
    let resident = edge.resident();
    thread::scope(|scope| {
        for part in 0..4 {
            let (edge, hello) = (&edge, &hello);
            scope.spawn(move || {
                for at in (part..hello.len()).step_by(4) {
                    let mut changed = hello.clone();
                    changed[at] ^= 1 << (at % 8);
                    let mut client = connect(edge.https);
                    client.write_all(&changed).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    read_to_end(&mut client);
                }
            });
        }
    });
    edge.secured();
    let grown = edge.resident().saturating_sub(resident);
    assert!(grown < 32 << 20, "{} handshakes have left {grown} bytes", hello.len());
}

#[test]
fn handshakes_that_stall_hold_their_place_no_longer_than_a_head_may() {
    let edge = Edge::start("max_connections = 50\nheader_timeout = \"2s\"");
    let hello = edge.trust.client_hello();
    let stalled: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut client = connect(edge.https);
            client.write_all(&hello[..hello.len() * (n % 10) / 10]).unwrap();
            client
        })
        .collect();
    // Behind all of them: four times as many as there are places.
    let began = Instant::now();
    edge.secured();
    print_figure(
        "a handshake behind 200 that stall, with 50 places and 2 s for each",
        format_args!("{} ms", began.elapsed().as_millis()),
    );
    // It is 8 s and the sweep's, and were 40 s by the default.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(stalled);
}

#[test]
fn clients_that_do_nothing_but_shake_hands_starve_nobody() {
    let edge = Edge::start("");
    let mut kept = edge.secured();
    let (mut longest, mut asked) = (Duration::ZERO, 0_u32);
    thread::scope(|scope| {
        let flood: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        drop(Client::connect_tls(edge.https, &edge.trust).expect("a handshake"));
                    }
                })
            })
            .collect();
        while flood.iter().any(|client| !client.is_finished()) {
            let began = Instant::now();
            assert_eq!(kept.get("/hello").expect("it is served all along").status, 200);
            longest = longest.max(began.elapsed());
            asked += 1;
        }
    });
    print_figure(
        "800 handshakes of eight clients, and one that is connected",
        format_args!("{asked} requests, the longest took {} ms", longest.as_millis()),
    );
    assert!(asked > 20 && longest < TOO_LONG, "{asked}, {longest:?}");
    wait_until("no handshake to be left", || (edge.handshaking() == 0).then_some(()));
}
