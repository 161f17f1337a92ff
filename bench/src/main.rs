//! The cost of steadfast beside a bare `axum::serve` that gives the same answer, or beside another build of itself: CPU time per request, memory at
//! rest and per idle connection, the time to start. Prints one table; docs/benchmarks.md says how to read it.
//!
//! A wrong answer fails it. No time does: it measures, and judges nothing.

mod load;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use load::{Answer, Load};
use server::{Cpu, Server};

/// Connections under load.
const BUSY: u32 = 64;
/// Requests on each of them in one round.
const REQUESTS: u32 = 1_000;
/// Rounds that are measured. One more comes before them.
const ROUNDS: usize = 31;
/// Connections that are idle.
const IDLE: u32 = 15_000;
/// The number of them that come at a time where they come gradually.
const WAVE: u32 = 100;
/// Starts of each server.
const STARTS: usize = 20;

fn main() {
    raise_descriptor_limit();
    let mut given = std::env::args_os().skip(1).map(PathBuf::from);
    let steadfast = given.next().unwrap_or_else(|| server::build("steadfast", "steadfast"));
    // Another build of steadfast parks its connections, too.
    let (other, name, parks) = match given.next() {
        Some(path) => (path, "the other", true),
        None => (server::build("steadfast-bench", "bare-axum"), "axum::serve", false),
    };

    let starts = time_starts(&steadfast, &other);
    let rest = [&steadfast, &other].map(|binary| Server::start(binary).memory());
    let idle = |at_once| [measure_idle(&steadfast, at_once, true), measure_idle(&other, at_once, parks)];
    let (gradual, burst) = (idle(WAVE), idle(IDLE));
    let rounds = measure_rounds(&steadfast, &other);

    println!("{:36} {:>9} {:>11}   ratio", "", "steadfast", name);
    let cost = |of: fn(&Cpu) -> f64| [0, 1].map(|i| median(rounds.iter().map(|round| of(&round[i]))));
    row("CPU time per request, µs", cost(|c| c.total()), &ratios(&rounds));
    row("  in user space", cost(|c| c.user), "");
    row("  in the kernel", cost(|c| c.system), "");
    row("resident at rest, KiB", rest.map(|memory| memory.resident), "");
    row("  heap and stacks", rest.map(|memory| memory.anonymous), "");
    row("per idle connection, KiB", gradual, &format!("; {WAVE} came at a time, {IDLE} in all"));
    row("  after a burst", burst, &format!("; {IDLE} came at once"));
    row("exec to READY, ms", starts, "");
}

/// One line of the table.
fn row(what: &str, [ours, theirs]: [f64; 2], more: &str) {
    println!("{what:36} {ours:>9.2} {theirs:>11.2}   {:>5.2}{more}", ours / theirs);
}

/// The range of the ratio between rounds.
fn ratios(rounds: &[[Cpu; 2]]) -> String {
    let ratios = rounds.iter().map(|[ours, theirs]| ours.total() / theirs.total());
    let min = ratios.clone().fold(f64::MAX, f64::min);
    let max = ratios.clone().fold(f64::MIN, f64::max);
    format!("; round by round {:.2}, from {min:.2} to {max:.2}", median(ratios))
}

// ---------------------------------------------------------------------------------------------------------------
// CPU time per request
// ---------------------------------------------------------------------------------------------------------------

/// The two servers in turn, so that what else the machine does in the meantime meets both.
fn measure_rounds(steadfast: &Path, other: &Path) -> Vec<[Cpu; 2]> {
    let servers = [Server::start(steadfast), Server::start(other)];
    let answers = servers.each_ref().map(|s| Arc::new(Answer::of(s.address)));
    let round = || [0, 1].map(|i| measure_round(&servers[i], &answers[i]));
    // Heaps grow, caches fill.
    round();
    (0..ROUNDS).map(|_| round()).collect()
}

fn measure_round(server: &Server, answer: &Arc<Answer>) -> Cpu {
    let mut load = Load::new(server.address, answer);
    load.open(BUSY);
    let before = server.cpu();
    load.run(REQUESTS);
    let after = server.cpu();
    let requests = f64::from(REQUESTS) * f64::from(BUSY);
    Cpu { user: (after.user - before.user) / requests, system: (after.system - before.system) / requests }
}

// ---------------------------------------------------------------------------------------------------------------
// Memory, and the start
// ---------------------------------------------------------------------------------------------------------------

/// The memory in KiB that a server takes for each idle connection, when so many come at once, one after the
/// other, each with one request. `parks`: those become idle, as the server sees it, before more come.
fn measure_idle(binary: &Path, at_once: u32, parks: bool) -> f64 {
    let server = Server::start(binary);
    let answer = Arc::new(Answer::of(server.address));
    let before = server.memory();
    let mut load = Load::new(server.address, &answer);
    for wave in 1..=IDLE / at_once {
        load.open(at_once);
        if parks {
            server.wait_until_parked(wave * at_once);
        }
    }
    let after = server.memory();
    // All of them are still open.
    load.run(1);
    (after.resident - before.resident) / f64::from(IDLE)
}

/// The median time from exec to READY, in milliseconds.
fn time_starts(steadfast: &Path, other: &Path) -> [f64; 2] {
    let starts: Vec<_> = (0..STARTS)
        .map(|_| [steadfast, other].map(|binary| Server::start(binary).start.as_secs_f64() * 1e3))
        .collect();
    [0, 1].map(|i| median(starts.iter().map(|start| start[i])))
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = of.collect();
    sorted.sort_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

/// A connection is a descriptor, here and in the servers, which inherit the limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("a process may raise its own limit");
}
