//! The time that a server takes to start, and to stop when it has nothing to do.

use std::time::Duration;

use crate::programs::Program;
use crate::results::Table;
use crate::server::{Server, Site};

/// The times of one start and one stop.
struct Times {
    answered: Duration,
    ready: Option<Duration>,
    stopped: Duration,
}

/// Starts and stops each server in turn.
pub(crate) fn measure(programs: &[&Program], site: &Site, rounds: usize) -> Vec<Table> {
    let mut all: Vec<_> = programs.iter().map(|program| (&program.name, Vec::new())).collect();
    for _ in 0..rounds {
        for (program, (_, times)) in programs.iter().zip(&mut all) {
            let server = Server::start(program, site);
            let (answered, ready) = (server.answered_after, server.ready_after);
            times.push(Times { answered, ready, stopped: server.stop() });
        }
    }
    let milliseconds = |of: fn(&Times) -> Option<Duration>| {
        let samples = all.iter().map(|(name, times)| {
            let samples = times.iter().filter_map(of).map(|time| time.as_secs_f64() * 1e3);
            ((*name).clone(), samples.collect::<Vec<_>>())
        });
        samples.filter(|(_, samples)| !samples.is_empty()).collect()
    };
    let mut start = Table::new("The start", "ms");
    start.add("from exec to the first answer", milliseconds(|times| Some(times.answered)));
    start.add("from exec to READY", milliseconds(|times| times.ready));
    let mut stop = Table::new("The stop of an idle server", "ms");
    stop.add("from the signal to the end", milliseconds(|times| Some(times.stopped)));
    vec![start, stop]
}
