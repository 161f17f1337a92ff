//! Tunnels whose ends fall silent: what is said arrives, however little the other side has to say, and nobody who has
//! vanished keeps its connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use steadfast_harness::{Client, PATIENCE, Signal, Upstream, wait_until};

use crate::site::{Site, proxy};
use crate::wire::{answer, connect};

/// A tunnel through the proxy: the client's end and the upstream's.
fn tunnel(site: &Site, upstream: &Upstream) -> [TcpStream; 2] {
    let mut client = connect(site.http);
    client.write_all(b"GET /app/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
    let mut exchange = upstream.next_request();
    exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(answer(&mut client, &mut Vec::new(), false).unwrap().status(), 101);
    let upstream = exchange.into_stream();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    [client, upstream]
}

fn site(limits: &str) -> (Site, Upstream) {
    let upstream = Upstream::start();
    let site = Site::start(limits, &proxy("/app/*", upstream.address(), ""));
    (site, upstream)
}

/// Waits for the end of a connection, which may be a reset.
fn ends(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Line `n` of what one end says, of 100 bytes.
fn line(n: usize) -> Vec<u8> {
    format!("{n:<99}\n").into_bytes()
}

#[test]
fn a_half_closed_tunnel_goes_on_as_long_as_either_side_speaks_and_loses_no_byte() {
    const LINES: usize = 20_000;
    let (site, upstream) = site("");
    // Four each way, for it is a matter of luck in the middle of what the end is met.
    let tunnels: Vec<_> = (0..8)
        .map(|n| {
            let [client, upstream] = tunnel(&site, &upstream);
            if n % 2 == 0 { ("the client", client, upstream) } else { ("the upstream", upstream, client) }
        })
        .collect();
    thread::scope(|scope| {
        for (name, mut speaker, mut listener) in tunnels {
            scope.spawn(move || {
                let mut sender = speaker.try_clone().unwrap();
                let said = thread::spawn(move || {
                    for n in 0..LINES {
                        sender
                            .write_all(&line(n))
                            .unwrap_or_else(|error| panic!("{name}, line {n}: {error}"));
                        // Beyond any limit of a close: time itself is the test.
                        if n % (LINES / 20) == 0 {
                            thread::sleep(Duration::from_millis(250));
                        }
                    }
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                // In the middle of what the other one says.
                listener.read_exact(&mut [0; 100]).unwrap();
                listener.shutdown(Shutdown::Write).unwrap();
                assert_eq!(speaker.read(&mut [0]).unwrap(), 0, "{name} hears the end");
                let mut heard = Vec::new();
                let end = listener.read_to_end(&mut heard);
                let expected: Vec<u8> = (1..LINES).flat_map(line).collect();
                assert!(
                    heard == expected,
                    "of what {name} said, {} of {} bytes came, then {end:?}",
                    heard.len(),
                    expected.len()
                );
                said.join().unwrap();
            });
        }
    });
}

/// The kernel's table of TCP sockets in this network has a row whose timer is the keep-alive's (proc(5), and
/// `Documentation/networking/proc_net_tcp.rst` of the kernel).
fn has_keepalive(local: SocketAddr, remote: SocketAddr) -> bool {
    const KEEPALIVE_TIMER: &str = "02:";
    let SocketAddr::V4(local) = local else { panic!("{local}") };
    let SocketAddr::V4(remote) = remote else { panic!("{remote}") };
    let [local, remote] = [local, remote]
        .map(|address| format!("{:08X}:{:04X}", address.ip().to_bits().swap_bytes(), address.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists its sockets");
    let row = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = row.filter(|row| row.len() > 5).find(|row| row[1] == local && row[2] == remote);
    row.is_some_and(|row| row[5].starts_with(KEEPALIVE_TIMER))
}

#[test]
fn both_sockets_of_a_tunnel_ask_whether_their_peer_is_still_there() {
    let (site, upstream) = site("");
    let [client, upstream] = tunnel(&site, &upstream);
    let ends = [
        (site.http, client.local_addr().unwrap()),
        (upstream.peer_addr().unwrap(), upstream.local_addr().unwrap()),
    ];
    for (local, remote) in ends {
        let timer = format!("a keep-alive timer at {local}, connected to {remote}");
        wait_until(&timer, || has_keepalive(local, remote).then_some(()));
    }
}

#[test]
fn a_tunnel_in_which_nobody_speaks_is_closed_after_its_timeout_and_one_in_which_one_side_does_is_not() {
    let (site, upstream) = site("tunnel_idle_timeout = \"2s\"");
    let [mut silent, _upstream] = tunnel(&site, &upstream);
    let speaking = [0, 1].map(|speaker| (speaker, tunnel(&site, &upstream)));
    let began = Instant::now();
    for n in 0..50 {
        for (speaker, ends) in &speaking {
            let (mut from, mut to) = (&ends[*speaker], &ends[1 - *speaker]);
            let mut heard = vec![0; 100];
            from.write_all(&line(n)).unwrap();
            to.read_exact(&mut heard).unwrap();
            assert_eq!(heard, line(n));
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() >= Duration::from_secs(5));
    assert!(ends(&mut silent));
    drop(speaking);
    wait_until("every connection to close", || (site.connections() == 0).then_some(()));
}

#[test]
fn a_half_closed_tunnel_in_which_nobody_speaks_is_closed_after_its_timeout() {
    let (site, upstream) = site("tunnel_idle_timeout = \"1s\"");
    for closes in [0, 1] {
        let mut ends = tunnel(&site, &upstream);
        ends[closes].shutdown(Shutdown::Write).unwrap();
        assert_eq!(ends[1 - closes].read(&mut [0]).unwrap(), 0, "the other side hears of it");
        wait_until("the tunnel to close", || (site.connections() == 0).then_some(()));
    }
}

#[test]
fn a_half_closed_tunnel_is_cut_at_the_deadline_and_logged_so() {
    for closes in [0, 1] {
        let upstream = Upstream::start();
        let tables = "access = \"all\"\n[shutdown]\ndeadline = \"1s\"\n".to_owned();
        let mut site = Site::start("", &(tables + &proxy("/app/*", upstream.address(), "")));
        let mut ends = tunnel(&site, &upstream);
        ends[closes].shutdown(Shutdown::Write).unwrap();
        assert_eq!(ends[1 - closes].read(&mut [0]).unwrap(), 0, "the other side hears of it");
        site.signal(Signal::TERM);
        assert_eq!(site.wait(), 3, "{}", site.stderr());
        let access = |line: &str| line.contains("steadfast::access") && line.contains("outcome=\"cut\"");
        assert_eq!(site.lines(access), 1, "{}", site.stderr());
        assert_eq!(site.lines(|line| line.contains("did not stop")), 0, "{}", site.stderr());
    }
}

#[test]
fn a_tunnel_that_waits_for_the_body_of_its_request_waits_no_longer_than_for_any_body() {
    let (site, upstream) = site("read_timeout = \"4s\"");
    let begin = || {
        let mut client = connect(site.http);
        let head = "GET /app/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n";
        client.write_all(format!("{head}Content-Length: 10\r\n\r\nhello").as_bytes()).unwrap();
        let mut exchange = upstream.next_request();
        exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
        assert_eq!(answer(&mut client, &mut Vec::new(), false).unwrap().status(), 101);
        (client, exchange.into_stream())
    };
    let (mut silent, _upstream) = begin();
    wait_until("the status to say what it waits for", || {
        let status = Client::connect(site.admin).unwrap().get("/status").unwrap().text();
        status.contains("the client to send the body").then_some(())
    });
    assert!(ends(&mut silent));
    wait_until("its connection to close", || (site.connections() == 0).then_some(()));

    let (mut late, mut upstream) = begin();
    late.write_all(b"worldnow a tunnel").unwrap();
    upstream.write_all(b"hello").unwrap();
    late.read_exact(&mut [0; 5]).unwrap();
    // Longer than any body is waited for: time itself is the test.
    thread::sleep(Duration::from_secs(6));
    upstream.write_all(b"hello").unwrap();
    late.read_exact(&mut [0; 5]).unwrap();
}

/// Has the upstream's end say more than all sockets on the way hold, and then end. Returns what is said in all.
fn say_much(mut upstream: TcpStream) -> usize {
    const MUCH: usize = 32 << 20;
    thread::spawn(move || {
        // The tunnel may be closed in the middle of it.
        let _ = upstream.write_all(&vec![b'x'; MUCH]);
        let _ = upstream.shutdown(Shutdown::Write);
    });
    MUCH
}

#[test]
fn a_client_that_has_finished_sending_has_its_write_timeout_to_read_what_is_left_in_a_tunnel() {
    let (site, upstream) = site("write_timeout = \"3s\"");
    let mut tunnels: Vec<_> = (0..3)
        .map(|_| {
            let [mut client, upstream] = tunnel(&site, &upstream);
            let said = say_much(upstream);
            client.read_exact(&mut [0; 1]).unwrap();
            (client, said - 1)
        })
        .collect();
    let (mut unfinished, said) = tunnels.remove(0);
    let (silent, _) = tunnels.remove(0);
    let (slow, _) = tunnels.remove(0);
    silent.shutdown(Shutdown::Write).unwrap();
    slow.shutdown(Shutdown::Write).unwrap();

    // Longer than the timeout in all, but never silent for as long as that.
    let mut read = 0;
    let mut bytes = vec![0; 1 << 20];
    let began = Instant::now();
    while read < said {
        let count = (&slow).read(&mut bytes).expect("whoever reads is served");
        assert!(count > 0, "it was closed after {read} bytes");
        read += count;
        thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    drop(slow);
    wait_until("the silent one to be closed", || (site.connections() == 1).then_some(()));
    // One that may yet speak has a tunnel as long as it likes.
    let mut rest = Vec::new();
    unfinished.shutdown(Shutdown::Write).unwrap();
    assert_eq!(unfinished.read_to_end(&mut rest).unwrap(), said);
    drop(silent);
}

#[test]
fn a_client_that_has_finished_sending_reads_what_is_left_in_a_tunnel_at_min_rate() {
    let limits = "write_timeout = \"1h\"\nmin_rate = \"1MiB\"\nmin_rate_grace = \"2s\"";
    let (site, upstream) = site(limits);
    let [mut client, upstream] = tunnel(&site, &upstream);
    say_much(upstream);
    client.read_exact(&mut [0; 1]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    while site.connections() > 0 {
        assert!(began.elapsed() < PATIENCE, "it is still served");
        thread::sleep(Duration::from_millis(100));
        let _ = client.read(&mut [0; 1024]);
    }
}
