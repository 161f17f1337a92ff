//! What the main process costs.

use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use steadfast_harness::{print_figure, wait_until};

use super::CLIENTS;
use crate::service::{Service, UNIT};

/// The most that the main process may keep in memory in this build, in KiB; a release build has a fraction.
const LARGEST: u64 = 64 << 10;

const BUILD: &str = if cfg!(debug_assertions) { "debug build" } else { "release build" };

/// A line of a process's account of its memory, in KiB.
fn memory(service: &Service, process: &str, kind: &str) -> u64 {
    let rollup = service.ok(["cat", &format!("/proc/{process}/smaps_rollup")]);
    let line = rollup.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    size.unwrap_or_else(|| panic!("no {kind} in:\n{rollup}"))
}

/// A time of the unit, on the monotonic clock.
fn time(service: &Service, property: &str) -> Duration {
    Duration::from_micros(service.show(UNIT, property).parse().unwrap())
}

#[test]
fn the_main_process_takes_no_memory_for_connections_nor_does_it_hold_up_a_start() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let answered = thread::scope(|scope| {
        let start = scope.spawn(|| service.ok(["systemctl", "start", UNIT]));
        // Nobody listens until it has bound its sockets.
        wait_until("an answer", || service.try_connect().ok()?.get("/").ok());
        let answered = Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("a time since the boot");
        start.join().expect("the start succeeds");
        answered
    });
    let exec = time(&service, "ExecMainStartTimestampMonotonic");
    let ready = time(&service, "ActiveEnterTimestampMonotonic").saturating_sub(exec);
    print_figure(
        &format!("exec to READY and to the first answer, {BUILD}, with the unit's sandbox"),
        format_args!("{ready:?}, {:?}", answered.saturating_sub(exec)),
    );
    assert!(ready < Duration::from_secs(20), "{ready:?}");
    service.kill_worker();
    let killed = Instant::now();
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    print_figure(
        &format!("from the kill of a worker to the next one's answer, {BUILD}"),
        format_args!("{:?}", killed.elapsed()),
    );

    let main = service.main_pid();
    // What is its own; the program's pages are shared with the worker.
    let own = || memory(&service, &main, "Private_Dirty");
    let before = own();
    let load = service.load(CLIENTS);
    load.advance(1000);
    let mut idle: Vec<_> = (0..500).map(|_| service.answered()).collect();
    for _ in 0..3 {
        service.reload();
    }
    let after = own();
    for client in &mut idle {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    service.assert_nothing_lost(&load.finish());
    print_figure(
        &format!("memory of the main process, {BUILD}"),
        format_args!(
            "{before} KiB of its own, {after} KiB with 500 connections and after three reloads; resident with the \
             shared pages of the program {} KiB, in proportion {} KiB",
            memory(&service, &main, "Rss"),
            memory(&service, &main, "Pss"),
        ),
    );
    assert!(after < LARGEST, "{after} KiB");
}
