//! CPU time per request.

use std::sync::Arc;

use crate::load::{ANSWERS, Answer, Load};
use crate::results::{Table, count};
use crate::server::Server;

/// What is asked for, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The connections ask for these in turn. They have the same answer.
    pub(crate) paths: Vec<String>,
    pub(crate) body: Arc<[u8]>,
    pub(crate) connections: usize,
    /// Requests in one round.
    pub(crate) requests: usize,
}

/// Measures some work of several servers, in rounds in which each has its turn, so that what else the machine does in
/// the meantime meets all. Returns the microseconds per request, by server and round.
pub(crate) fn measure(servers: &[&Server], work: &Work, rounds: usize) -> Vec<(String, Vec<f64>)> {
    let answers: Vec<_> = servers
        .iter()
        .map(|server| Arc::new(Answer::of(&server.name, server.address, &work.paths[0], &work.body)))
        .collect();
    let mut samples: Vec<_> = servers.iter().map(|server| (server.name.clone(), Vec::new())).collect();
    for round in 0..=rounds {
        for ((server, answer), (_, samples)) in servers.iter().zip(&answers).zip(&mut samples) {
            let sample = measure_round(server, work, answer);
            // In the first round heaps grow and caches fill.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    samples
}

/// The requests that each server is asked in all when some work is measured, the first ones of each round among them.
pub(crate) fn asked(work: &Work, rounds: usize) -> usize {
    let round = work.connections * (1 + work.requests.div_ceil(work.connections));
    ANSWERS + (rounds + 1) * round
}

fn measure_round(server: &Server, work: &Work, answer: &Arc<Answer>) -> f64 {
    let mut load = Load::new(server.address, &work.paths, answer);
    load.connect(work.connections, 0);
    load.run(1);
    let each = u32::try_from(work.requests.div_ceil(work.connections)).expect("it is a small number");
    let before = server.cpu();
    load.run(each);
    let after = server.cpu();
    let requests = f64::from(each) * count(work.connections);
    (after - before) / requests
}

/// The table that such figures stand in.
pub(crate) fn table(title: &str) -> Table {
    Table::new(title, "µs of CPU per request")
}
