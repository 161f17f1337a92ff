//! The memory of idle connections.

use std::sync::Arc;

use rustls::ClientConfig;

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

/// The clients' side of TLS, if they speak it.
type Tls<'a> = Option<&'a Arc<ClientConfig>>;

/// The memory of one server to which they come gradually, in bytes.
struct Gradual {
    /// Before the first connection.
    rest: f64,
    /// For each connection, when a hundred come and are idle before the next ones come.
    each: f64,
}

/// The memory of one server to which all come at once, perhaps several times, in bytes.
struct Bursts {
    /// For each connection, when all have come, and asked, at once.
    first: f64,
    /// For each of the last burst.
    last: f64,
    /// When that has gone.
    after: f64,
}

/// Measures one server after the other, each alone.
pub(crate) fn measure(programs: &[&Program], site: &Site) -> Vec<Table> {
    let all: Vec<_> = programs
        .iter()
        .map(|program| (program, gradual(program, site, None), bursts(program, site, None, WAVES)))
        .collect();
    let figures = |of: fn(&Gradual, &Bursts) -> f64, unit: f64| {
        let figures = all.iter().map(|(program, gradual, bursts)| (program, of(gradual, bursts) / unit));
        figures.map(|(program, figure)| (program.name.clone(), vec![figure])).collect::<Vec<_>>()
    };
    let mut idle = Table::new("An idle connection", "bytes");
    idle.add(&format!("{IDLE} come, {FEW} at a time"), figures(|gradual, _| gradual.each, 1.0));
    idle.add(&format!("{IDLE} come and ask at once"), figures(|_, bursts| bursts.first, 1.0));
    idle.add(&format!("{IDLE} do so for the tenth time"), figures(|_, bursts| bursts.last, 1.0));
    let mut whole = Table::new("The whole server", "KiB");
    whole.add("at rest", figures(|gradual, _| gradual.rest, 1024.0));
    whole.add("after ten such waves", figures(|_, bursts| bursts.after, 1024.0));
    vec![idle, whole]
}

/// The same of connections over TLS, which come once.
pub(crate) fn measure_tls(programs: &[&Program], site: &Site, tls: &Arc<ClientConfig>) -> Table {
    let figures = |of: &dyn Fn(&Program) -> f64| {
        programs.iter().map(|program| (program.name.clone(), vec![of(program)])).collect()
    };
    let mut idle = Table::new("An idle connection over TLS", "bytes");
    idle.add(
        &format!("{IDLE} come, {FEW} at a time"),
        figures(&|program| gradual(program, site, Some(tls)).each),
    );
    idle.add(
        &format!("{IDLE} come and ask at once"),
        figures(&|program| bursts(program, site, Some(tls), 1).first),
    );
    idle
}

fn gradual(program: &Program, site: &Site, tls: Tls<'_>) -> Gradual {
    let server = Server::start(program, site);
    let mut load = clients(&server, tls);
    server.wait_until_parked(0);
    let rest = server.memory();
    for come in (FEW..=IDLE).step_by(FEW) {
        load.connect(FEW, 0);
        load.run_newest(FEW);
        server.wait_until_parked(come);
    }
    let each = (server.memory() - rest) / count(IDLE);
    // All of them are still open.
    load.run(1);
    Gradual { rest, each }
}

fn bursts(program: &Program, site: &Site, tls: Tls<'_>, waves: u8) -> Bursts {
    let server = Server::start(program, site);
    let mut load = clients(&server, tls);
    server.wait_until_parked(0);
    let rest = server.memory();
    let mut first = None;
    let mut last = 0.0;
    for wave in 0..waves {
        load.connect(IDLE, wave);
        load.run(1);
        server.wait_until_parked(IDLE);
        last = (server.memory() - rest) / count(IDLE);
        first.get_or_insert(last);
        load.leave();
        server.wait_until_gone();
    }
    Bursts { first: first.expect("there is a wave"), last, after: server.memory() }
}

/// Clients of a server, none of them connected.
fn clients(server: &Server, tls: Tls<'_>) -> Load {
    let target = server.target(tls);
    let answer = Arc::new(Answer::of(&target, "/", HELLO.as_bytes()));
    Load::new(&target, &["/".into()], &answer)
}
