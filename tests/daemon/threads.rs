//! The threads of a worker: a handler of the caller's own shares none with the connections.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::available_parallelism;

use steadfast_harness::{Client, wait_with};

use crate::process::{connect, troubled};

/// Answered by the config, not by a handler of the caller's.
const FIXED: &str = "[[route]]\npath = \"/fixed\"\nrespond = \"fixed\"\n";

#[test]
fn handlers_that_block_every_thread_of_theirs_hold_up_no_connection() {
    let daemon = troubled(FIXED, |_| {});
    let threads = available_parallelism().unwrap().get().max(2);
    let mut blocked: Vec<Client> = (0..threads + 2).map(|_| connect(&daemon, "http")).collect();
    for client in &mut blocked {
        client.ask("/blocks").unwrap();
    }
    daemon.wait_for_line("that one is named", |line| line.contains("GET /blocks blocks its thread"));
    for _ in 0..50 {
        assert_eq!(connect(&daemon, "http").get("/fixed").unwrap().text(), "fixed");
    }
    let in_flight = format!("\nsteadfast_http_requests_in_flight {}\n", blocked.len());
    let metrics = || connect(&daemon, "admin").get("/metrics").unwrap().text();
    wait_with(|| metrics().contains(&in_flight).then_some(()), || format!("{in_flight:?} in {}", metrics()));
}

#[test]
fn there_are_as_many_threads_for_connections_as_the_config_says() {
    let cores = available_parallelism().unwrap().get();
    for (keys, number) in [("http.threads = 3\n", 3), ("http.threads = \"auto\"\n", cores), ("", cores)] {
        let daemon = troubled(keys, |_| {});
        let expected: BTreeSet<String> = (0..number).map(|n| format!("io-{n}")).collect();
        // Each takes its name when it first runs.
        let threads = || io_threads(daemon.worker());
        wait_with(
            || (threads() == expected).then_some(()),
            || format!("{expected:?} where {keys:?}, not {:?}", threads()),
        );
    }
}

/// The names of a process's I/O threads.
fn io_threads(process: u32) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).filter(|name| name.starts_with("io-")).collect()
}

#[test]
fn connections_are_shared_out_evenly_among_the_threads() {
    let daemon = troubled("http.threads = 4\n", |_| {});
    let _clients: Vec<Client> = (0..40)
        .map(|_| {
            let mut client = connect(&daemon, "http");
            assert_eq!(client.get("/").unwrap().status, 200);
            client
        })
        .collect();
    assert_eq!(connections_by_thread(daemon.worker(), daemon.address("http").port()), [10; 4]);
}

/// The numbers of a process's connections to one of its ports that each of its threads watches: each has an epoll set of
/// its own (proc(5), `/proc/pid/fdinfo`).
fn connections_by_thread(process: u32, port: u16) -> Vec<usize> {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let established = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_ours = columns.get(1)?.ends_with(&format!(":{port:04X}")) && columns.get(3) == Some(&"01");
        is_ours.then(|| format!("socket:[{}]", columns[9]))
    };
    let connections: BTreeSet<String> =
        read(format!("/proc/{process}/net/tcp")).lines().filter_map(established).collect();
    let target = |descriptor: &str| std::fs::read_link(format!("/proc/{process}/fd/{descriptor}"));
    let watched = |set: std::fs::DirEntry| -> BTreeSet<String> {
        let of = read(format!("/proc/{process}/fdinfo/{}", set.file_name().display()));
        let watched = of.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next());
        let targets =
            watched.filter_map(|descriptor| target(descriptor).ok()?.into_os_string().into_string().ok());
        targets.filter(|target| connections.contains(target)).collect()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    // A thread has two descriptors of its set.
    let sets: BTreeSet<_> = descriptors.map(|set| watched(set.unwrap())).collect();
    sets.iter().map(BTreeSet::len).filter(|number| *number > 0).collect()
}

#[test]
fn a_client_that_has_finished_sending_gets_what_a_handler_can_answer_at_once() {
    let daemon = troubled("", |_| {});
    for _ in 0..200 {
        let mut client = TcpStream::connect(daemon.address("http")).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer:?}");
    }
}
