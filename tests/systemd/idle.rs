//! Idle connections: all of them go along, however many they are, and each costs little.

use std::env;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use steadfast_harness::{Client, print_figure, raise_descriptor_limit, wait_with};

use crate::service::{CONFIG, PACKAGING, ROUTES, Service, UNIT};

/// More than nginx is usually allowed to hold, fewer than a client has ports.
pub(crate) const MANY: usize = 15_000;

/// The threads that connect, and ask.
const THREADS: usize = 4;

#[test]
fn fifteen_thousand_idle_connections_survive_a_restart_and_a_reload() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    survive(&service, MANY, "idle connections", "", || service.answered());
}

/// A release build that is to be measured in the place of this build: that of these tests takes minutes more.
fn release() -> Option<PathBuf> {
    env::var_os("STEADFAST_RELEASE").map(PathBuf::from)
}

/// True if it is a release build that is measured.
pub(crate) fn is_release() -> bool {
    cfg!(not(debug_assertions)) || release().is_some()
}

/// So many idle connections, made in this way, survive a restart and a reload; `rest` belongs to the config. Returns the memory
/// that one of them takes, in bytes.
pub(crate) fn survive(
    service: &Service,
    number: usize,
    what: &str,
    rest: &str,
    connect: impl Fn() -> Client + Sync,
) -> usize {
    // That with fewer of them may run at the same time.
    raise_descriptor_limit(MANY as u64 + 4000);
    let many =
        "[http]\nlisten = [\"127.0.0.1:8080\"]\nmax_connections = 20000\nkeepalive_timeout = \"10m\"\n";
    service.write(CONFIG, format!("{many}{rest}{ROUTES}"));
    if let Some(program) = release() {
        service.install(&program, Path::new(PACKAGING));
    }
    let build = if is_release() { "release build" } else { "debug build" };
    service.ok(["systemctl", "start", UNIT]);
    // With it comes what the first answers need, and the first handshake.
    let first = connect();
    let before = resident(service);
    // Each asks as soon as it is there: a client that says nothing has `header_timeout` alone.
    let mut clients: Vec<Client> = thread::scope(|scope| {
        let some = |share: usize| (0..share).map(|_| connect()).collect::<Vec<_>>();
        let shares = (0..THREADS).map(|thread| (number - 1 + thread) / THREADS);
        let threads: Vec<_> = shares.map(|share| scope.spawn(move || some(share))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("each is answered")).collect()
    });
    clients.push(first);
    assert_eq!(clients.len(), number);
    let cost = |of: &str| {
        let each = resident(service).saturating_sub(before) / number;
        print_figure(&format!("memory of one of {number} {what}{of}, {build}"), format_args!("{each} bytes"));
        each
    };
    let each = cost("");

    for (act, next) in [("restart", Service::restart as fn(&Service) -> _), ("reload", Service::reload)] {
        let took: Duration = next(service);
        print_figure(
            &format!("a {act} with {number} {what}, {build}"),
            format_args!("{} ms (aim: under 500)", took.as_millis()),
        );
        assert!(took < Duration::from_secs(20), "{act}: {took:?}");
        ask_all(&mut clients, &format!("after the {act}"));
    }
    cost(" that were taken over");
    let (number, over_tls) = (number as u64, if rest.contains("[https]") { number as u64 } else { 0 });
    let told = if over_tls > 0 { format!(" ({over_tls} over TLS)") } else { String::new() };
    let carried = format!("handed over {number} connections and 0 tunnels{told}");
    let journal = service.wait_for_journal(&carried, 2);
    assert_eq!(journal.contains("over TLS"), over_tls > 0, "{journal}");
    // The last word of a process comes after it.
    let counted = || {
        let connections = ["handed_over_total", "taken_over_total"]
            .map(|name| service.metric(&format!("steadfast_handover_{name}{{kind=\"connection\"}}")));
        let tls = ["handed_over_tls_total", "taken_over_tls_total"]
            .map(|name| service.metric(&format!("steadfast_handover_{name}")));
        (connections, tls)
    };
    let expected = ([2 * number; 2], [2 * over_tls; 2]);
    wait_with(
        || (counted() == expected).then_some(()),
        || format!("{expected:?} connections to be counted: {:?}", counted()),
    );
    assert_eq!(service.total("connections"), 0, "no client came anew");
    each
}

/// The memory that the worker has in use, in bytes.
fn resident(service: &Service) -> usize {
    let status = service.ok(["cat", &format!("/proc/{}/status", service.worker_pid())]);
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok()).expect("the kernel knows its size") << 10
}

fn ask_all(clients: &mut [Client], when: &str) {
    let share = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        for clients in clients.chunks_mut(share) {
            scope.spawn(move || {
                for client in clients {
                    let answer = client.get("/").unwrap_or_else(|failure| panic!("{when}: {failure}"));
                    assert_eq!(answer.status, 200);
                }
            });
        }
    });
}
