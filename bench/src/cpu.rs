//! CPU time per request.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;

use crate::config::HELLO;
use crate::load::{ANSWERS, Answer, Load, Visitors};
use crate::results::{Table, count};
use crate::server::Server;
use crate::tls::Authority;

/// What is asked for, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The connections ask for these in turn. They have the same answer.
    pub(crate) paths: Vec<String>,
    pub(crate) body: Arc<[u8]>,
    pub(crate) connections: usize,
    /// Requests in one round.
    pub(crate) requests: usize,
    /// The clients' side of TLS, if they ask over it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// Measures some work of several servers, in rounds in which each has its turn, so that what else the machine does in
/// the meantime meets all. Returns the microseconds per request, by server and round.
pub(crate) fn measure(servers: &[&Server], work: &Work, rounds: usize) -> Vec<(String, Vec<f64>)> {
    let target = |server: &Server| server.target(work.tls.as_ref());
    let answers: Vec<_> = servers
        .iter()
        .map(|server| Arc::new(Answer::of(&target(server), &work.paths[0], &work.body)))
        .collect();
    in_turn(servers, rounds, |at| measure_round(servers[at], work, &answers[at]))
}

/// The figures of some servers that `measure` has of them in turn, by server and round.
fn in_turn(
    servers: &[&Server],
    rounds: usize,
    mut measure: impl FnMut(usize) -> f64,
) -> Vec<(String, Vec<f64>)> {
    let mut samples: Vec<_> = servers.iter().map(|server| (server.name.clone(), Vec::new())).collect();
    for round in 0..=rounds {
        for (at, (_, samples)) in samples.iter_mut().enumerate() {
            let sample = measure(at);
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
    let mut load = Load::new(&server.target(work.tls.as_ref()), &work.paths, answer);
    load.connect(work.connections, 0);
    load.run(1);
    let each = u32::try_from(work.requests.div_ceil(work.connections)).expect("it is a small number");
    let before = server.cpu();
    load.run(each);
    let after = server.cpu();
    let requests = f64::from(each) * count(work.connections);
    (after - before) / requests
}

/// The handshakes of clients that connect for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshakes {
    /// There are none: it is plain HTTP.
    None,
    /// Each client is one that the server has never seen.
    Full,
    /// Each client but a first has a ticket of an earlier connection.
    Resumed,
}

impl Handshakes {
    /// Clients at the same time.
    const CLIENTS: u32 = 16;
    /// The times that each of them connects in one round.
    const EACH: u32 = 100;

    /// Measures new connections, each for one small request. Returns the microseconds of each, by server and round.
    pub(crate) fn measure(
        self,
        servers: &[&Server],
        authority: &Authority,
        rounds: usize,
    ) -> Vec<(String, Vec<f64>)> {
        let visitors = |server: &&Server| {
            let target = || match self {
                Self::None => server.target(None),
                Self::Full => server.target(Some(&authority.client(Resumption::disabled()))),
                Self::Resumed => server.target(Some(&authority.client(Resumption::in_memory_sessions(8)))),
            };
            let answer = Arc::new(Answer::of(&target(), "/", HELLO.as_bytes()));
            Visitors::new((0..Self::CLIENTS).map(|_| target()).collect(), &answer)
        };
        let mut all: Vec<_> = servers.iter().map(visitors).collect();
        let connections = Self::CLIENTS * Self::EACH;
        let resumed = if self == Self::Resumed { connections } else { 0 };
        in_turn(servers, rounds, |at| {
            // Each client gets its first ticket.
            all[at].run(1);
            let before = servers[at].cpu();
            let counted = u32::try_from(all[at].run(Self::EACH));
            let after = servers[at].cpu();
            assert_eq!(counted, Ok(resumed), "{} resumes otherwise", servers[at].name);
            (after - before) / f64::from(connections)
        })
    }
}

/// The table that such figures stand in.
pub(crate) fn table(title: &str) -> Table {
    Table::new(title, "µs of CPU per request")
}
