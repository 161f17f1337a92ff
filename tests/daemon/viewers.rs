//! Those who look at the live page: they keep nobody else from the admin listener, and hold up no stop.

use std::io::Write;
use std::os::unix::net::UnixStream;

use rustix::io::ioctl_fionread;
use steadfast_harness::{Client, Daemon, Signal, wait_until};

use crate::process::{BINARY, config, connect, serving};

/// The most viewers at a time.
const VIEWERS: usize = 32;
/// The bytes after which a unix socket that nobody reads from takes few more: it holds 208 KiB at the kernel's default
/// (`net.core.wmem_default`), with what each piece costs beside its bytes.
const NEARLY_FULL: u64 = 100_000;

fn start() -> Daemon {
    let daemon = Daemon::spawn(BINARY, &config("[[route]]\npath = \"/*\"\nrespond = \"hello\"\n"));
    serving(&daemon);
    daemon
}

/// One who looks at the page.
fn viewer(daemon: &Daemon) -> Client {
    let mut viewer = connect(daemon, "admin");
    viewer.ask("/events").unwrap();
    assert_eq!(viewer.receive_head().unwrap().status, 200);
    viewer
}

/// A client of the admin child that has asked for the page many times, then for its events, and reads nothing: by now the
/// daemon waits for it.
fn one_who_reads_nothing(daemon: &Daemon) -> UnixStream {
    let mut socket = UnixStream::connect(daemon.control_socket()).unwrap();
    let page = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(100);
    socket.write_all(format!("{page}GET /events HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).unwrap();
    wait_until("answers that nobody reads", || {
        (ioctl_fionread(&socket).unwrap() > NEARLY_FULL).then_some(())
    });
    socket
}

#[test]
fn more_viewers_than_there_may_be_are_sent_away_and_the_others_shut_nobody_out() {
    let daemon = start();
    let mut viewers: Vec<_> = (0..VIEWERS).map(|_| viewer(&daemon)).collect();
    let refused = connect(&daemon, "admin").get("/events").unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    assert_eq!(connect(&daemon, "admin").get("/readyz").unwrap().status, 200);
    for viewer in &mut viewers {
        viewer.receive_chunk().unwrap().expect("a picture");
    }
    // The place of one who has left is another's.
    drop(viewers.pop());
    wait_until("a free place", || {
        let mut next = connect(&daemon, "admin");
        next.ask("/events").unwrap();
        (next.receive_head().unwrap().status == 200).then_some(())
    });
}

#[test]
fn one_who_reads_nothing_does_not_hold_up_a_stop() {
    let mut daemon = start();
    let _viewer = one_who_reads_nothing(&daemon);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.stderr().to_string();
    assert!(!log.contains("did not stop within"), "{log}");
}

#[test]
fn one_who_reads_nothing_does_not_hold_up_a_reload() {
    let daemon = start();
    let old = daemon.worker();
    let _viewer = one_who_reads_nothing(&daemon);
    daemon.signal(Signal::HUP);
    wait_until("the old worker to be gone", || {
        (daemon.workers().iter().all(|&pid| pid != old)).then_some(())
    });
    let log = daemon.stderr().to_string();
    assert!(!log.contains("did not stop within"), "{log}");
}
