//! Idle TLS connections: all of them go along, and each costs little.

use std::thread;
use std::time::Duration;

use steadfast_harness::{Client, print_figure, raise_descriptor_limit};

use super::{Edge, https};
use crate::service::{CONFIG, ROUTES, Service, UNIT};

/// As many as of the plain ones in `crate::idle`, and enough of them for each run of all tests: a handshake takes its time.
const MANY: usize = 15_000;
const ENOUGH: usize = 3_000;

/// The threads that shake hands with the server, and ask.
const THREADS: usize = 4;

const BUILD: &str = if cfg!(debug_assertions) { "debug build" } else { "release build" };

/// The memory that the worker has in use, in bytes.
fn resident(edge: &Edge) -> usize {
    let status = edge.ok(["cat", &format!("/proc/{}/status", edge.worker_pid())]);
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok()).expect("the kernel knows its size") << 10
}

fn ask_all(clients: &mut [Client], when: &str) {
    let share = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        for clients in clients.chunks_mut(share) {
            scope.spawn(move || {
                for client in clients {
                    assert_eq!(client.get("/").unwrap_or_else(|e| panic!("{when}: {e}")).status, 200);
                }
            });
        }
    });
}

#[test]
fn three_thousand_idle_tls_connections_survive_a_restart_and_a_reload() {
    assert_survive(ENOUGH);
}

#[test]
#[ignore = "it takes a minute: `just tls-idle`"]
fn fifteen_thousand_idle_tls_connections_survive_a_restart_and_a_reload() {
    assert_survive(MANY);
}

/// Idle connections of this number survive a restart and a reload.
fn assert_survive(number: usize) {
    raise_descriptor_limit(number as u64 + 1000);
    let Some(edge) = Edge::install(file!(), "") else {
        return;
    };
    let many =
        "[http]\nlisten = [\"127.0.0.1:8080\"]\nmax_connections = 20000\nkeepalive_timeout = \"10m\"\n";
    edge.write(CONFIG, format!("{many}{}{ROUTES}", https("")));
    edge.ok(["systemctl", "start", UNIT]);
    // What the first handshake and the first answers need is there.
    let _first = edge.secured();
    let before = resident(&edge);
    let mut clients: Vec<Client> = thread::scope(|scope| {
        let some = || (0..number / THREADS).map(|_| edge.secured()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("each is answered")).collect()
    });
    let after = resident(&edge);
    print_figure(
        &format!("memory of one of {number} idle TLS connections, {BUILD}"),
        format_args!(
            "{} bytes (aim: at most 3,000 in a release build)",
            after.saturating_sub(before) / number
        ),
    );
    for (what, next) in [("restart", Service::restart as fn(&Service) -> _), ("reload", Service::reload)] {
        let took: Duration = next(&edge);
        print_figure(
            &format!("a {what} with {number} idle TLS connections, {BUILD}"),
            format_args!("{} ms (aim: under 500)", took.as_millis()),
        );
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        ask_all(&mut clients, &format!("after the {what}"));
    }
    edge.wait_for_journal(&format!("handed over {} connections", number + 1), 2);
    assert_eq!(edge.total("connections"), 0, "no client came anew");
    print_figure(
        &format!("memory of one of {number} TLS connections that were taken over, {BUILD}"),
        format_args!("{} bytes", resident(&edge).saturating_sub(before) / number),
    );
}
