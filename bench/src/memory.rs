//! The memory of idle connections.

use std::sync::Arc;

use crate::config::HELLO;
use crate::load::{Answer, Load};
use crate::programs::Program;
use crate::results::{Table, count};
use crate::server::{Server, Site};

/// Connections that are idle.
const IDLE: usize = 15_000;
/// The number of them that come at a time where they come gradually.
const FEW: usize = 100;
/// How often all of them come and go.
const WAVES: u8 = 10;

/// The memory of one server, in bytes.
struct Memory {
    /// Before the first connection.
    rest: f64,
    /// For each connection, when a hundred come and are idle before the next ones come.
    gradual: f64,
    /// For each connection, when all have come, and asked, at once.
    burst: f64,
    /// For each of the tenth burst.
    tenth: f64,
    /// When the tenth burst has gone.
    after: f64,
}

/// Measures one server after the other, each alone.
pub(crate) fn measure(programs: &[&Program], site: &Site) -> Vec<Table> {
    let all: Vec<_> =
        programs.iter().map(|program| (program.name.clone(), measure_one(program, site))).collect();
    let figures = |of: fn(&Memory) -> f64, unit: f64| {
        all.iter().map(|(name, memory)| (name.clone(), vec![of(memory) / unit])).collect::<Vec<_>>()
    };
    let mut idle = Table::new("An idle connection", "bytes");
    idle.add(&format!("{IDLE} come, {FEW} at a time"), figures(|memory| memory.gradual, 1.0));
    idle.add(&format!("{IDLE} come and ask at once"), figures(|memory| memory.burst, 1.0));
    idle.add(&format!("{IDLE} do so for the tenth time"), figures(|memory| memory.tenth, 1.0));
    let mut whole = Table::new("The whole server", "KiB");
    whole.add("at rest", figures(|memory| memory.rest, 1024.0));
    whole.add("after ten such waves", figures(|memory| memory.after, 1024.0));
    vec![idle, whole]
}

fn measure_one(program: &Program, site: &Site) -> Memory {
    let each = |before: f64, after: f64| (after - before) / count(IDLE);

    let server = Server::start(program, site);
    let answer = Arc::new(Answer::of(&server.name, server.address, "/", HELLO.as_bytes()));
    server.wait_until_parked(0);
    let rest = server.memory();
    let mut load = Load::new(server.address, &["/".into()], &answer);
    for come in (FEW..=IDLE).step_by(FEW) {
        load.connect(FEW, 0);
        load.run_newest(FEW);
        server.wait_until_parked(come);
    }
    let gradual = each(rest, server.memory());
    // All of them are still open.
    load.run(1);
    drop((load, server));

    let server = Server::start(program, site);
    server.wait_until_parked(0);
    let mut load = Load::new(server.address, &["/".into()], &answer);
    load.connect(IDLE, 0);
    load.run(1);
    server.wait_until_parked(IDLE);
    let burst = each(rest, server.memory());
    for wave in 1..WAVES {
        drop(load);
        server.wait_until_gone();
        load = Load::new(server.address, &["/".into()], &answer);
        load.connect(IDLE, wave);
        load.run(1);
        server.wait_until_parked(IDLE);
    }
    let tenth = each(rest, server.memory());
    drop(load);
    server.wait_until_gone();
    Memory { rest, gradual, burst, tenth, after: server.memory() }
}
