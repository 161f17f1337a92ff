//! HTTP/2: its connections are not carried, but a client that is sent away has lost nothing.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use steadfast_harness::{PATIENCE, print_figure, wait_with};

use super::program::{Program, find, go};
use super::{Edge, PORT, address};
use crate::http2;

#[test]
fn ten_restarts_and_ten_reloads_lose_no_request_of_clients_that_speak_http2_over_tls() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    http2::lose_nothing_over_twenty(&edge, address(), Some(edge.trust.clone()), "HTTP/2 over TLS");
}

#[test]
fn a_go_client_of_http_2_loses_no_request_over_ten_restarts_and_ten_reloads() {
    let (Some(program), Some(edge)) = (go(file!()), Edge::start(file!(), "")) else {
        return;
    };
    // It ends with an error at the first request that it does not get an answer to.
    let mut client = Program::start(&edge, "Go", Command::new(program), &["20"]);
    let mut connections = account(&client.next("at first"))[1];
    edge.replace_twenty_times(|when| {
        // Those that it has asked before are answered first.
        let (before, began) = (connections, Instant::now());
        while connections == before {
            connections = account(&client.next(when))[1];
            assert!(began.elapsed() < PATIENCE, "{when}: no other connection than the {before} before");
        }
    });
    let said = client.finish();
    let [answered, connections] = account(said.last().expect("its account"));
    print_figure(
        "a Go client of HTTP/2 over ten restarts and ten reloads",
        format_args!("{answered} requests on {connections} connections, none lost"),
    );
    assert!(connections > 20, "{connections}: each process has sent it away");
}

/// What the Go client says: the number of its answers, and of its connections.
fn account(line: &str) -> [u64; 2] {
    let numbers = line.split_once(' ').map(|(answers, connections)| [answers.parse(), connections.parse()]);
    numbers.expect("two words").map(|number| number.expect("a number"))
}

/// The clients of a run of h2load, and the streams that each has open at a time.
const CLIENTS: u64 = 5;
const STREAMS: u64 = 10;

/// What runs of h2load came to. A client of it ends with its connection, and does not ask again what was cut.
#[derive(Default)]
struct Account {
    /// Requests that were sent and answered.
    succeeded: u64,
    /// Requests that were to be sent, and have no answer.
    unanswered: u64,
    /// Runs that were sent away before they had asked all that they had to ask.
    sent_away: u64,
}

impl Account {
    fn run(&mut self, edge: &Edge) {
        const REQUESTS: u64 = 20_000;
        let [requests, clients, streams] = [REQUESTS, CLIENTS, STREAMS].map(|number| number.to_string());
        let output = edge.enter_network(|| {
            Command::new("h2load")
                .args(["-n", &requests, "-c", &clients, "-m", &streams])
                .arg(format!("https://localhost:{PORT}/"))
                .stdin(Stdio::null())
                .output()
                .expect("it runs")
        });
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // "requests: 20000 total, 270 started, 270 done, 260 succeeded, 19740 failed, 19740 errored, 0 timeout"
        let line =
            said.lines().find(|line| line.starts_with("requests: ")).unwrap_or_else(|| panic!("{output:?}"));
        let number = |name: &str| {
            let number =
                line.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok());
            number.unwrap_or_else(|| panic!("no {name} in {line}"))
        };
        let [started, done, succeeded] = ["started", "done", "succeeded"].map(number);
        // Nobody listened, or no handshake came to its end.
        assert!(started > 0, "{said}");
        // Those under way when a connection is cut are started, and never done.
        assert_eq!(started, done, "{said}");
        // An answer makes room for the next request, and a GOAWAY that comes in the same piece has it thrown away unsent: it is
        // started and done, and not on its way. So are all that a client may have open, at most. That none of them is one that
        // was sent, the strict clients above show.
        let unanswered = started - succeeded;
        assert!(unanswered <= CLIENTS * STREAMS, "{said}");
        self.succeeded += succeeded;
        self.unanswered += unanswered;
        self.sent_away += u64::from(started < REQUESTS);
    }
}

#[test]
fn no_request_that_h2load_has_sent_is_lost_over_ten_restarts_and_ten_reloads() {
    let (Some(_), Some(edge)) = (find(file!(), "h2load"), Edge::start(file!(), "")) else {
        return;
    };
    let mut account = Account::default();
    thread::scope(|scope| {
        let replacing = scope.spawn(|| edge.replace_twenty_times(|_| {}));
        while !replacing.is_finished() {
            account.run(&edge);
        }
        replacing.join().expect("each of them succeeds");
    });
    print_figure(
        "h2load over ten restarts and ten reloads",
        format_args!(
            "{} requests answered; {} runs were sent away, with {} requests unsent",
            account.succeeded, account.sent_away, account.unanswered
        ),
    );
    assert!(account.sent_away > 0, "no run had to do with a restart");
    // All that have come were answered, and those are the client's.
    edge.wait_for_one_worker();
    let requests = || -> Vec<String> {
        let metrics = edge.admin("/metrics").text();
        let lines = metrics.lines().filter(|line| line.starts_with("steadfast_http_requests_total{"));
        lines.map(str::to_owned).collect()
    };
    let number = |line: &String| line.rsplit_once(' ')?.1.parse::<u64>().ok();
    let counted = wait_with(
        || Some(requests()).filter(|lines| lines.iter().filter_map(number).sum::<u64>() == account.succeeded),
        || format!("{} requests to be counted: {:#?}", account.succeeded, requests()),
    );
    assert!(counted.iter().all(|line| line.contains("code=\"200\"")), "{counted:#?}");
}
