//! HTTP/2: its connections are not carried, but a client that is sent away has lost nothing.

use std::process::{Command, Stdio};
use std::thread;

use steadfast_harness::print_figure;

use super::program::{Program, find, go};
use super::{Edge, PORT};

#[test]
fn a_go_client_of_http_2_loses_no_request_over_ten_restarts_and_ten_reloads() {
    let (Some(program), Some(edge)) = (go(file!()), Edge::start(file!(), "")) else {
        return;
    };
    // It ends with an error at the first request that it does not get an answer to.
    let mut client = Program::start(&edge, "Go", Command::new(program), &["20"]);
    client.next("at first");
    edge.replace_twenty_times(|when| {
        client.skip();
        client.next(when);
    });
    let said = client.finish();
    let (answered, connections) = said.last().and_then(|line| line.split_once(' ')).expect("its account");
    print_figure(
        "a Go client of HTTP/2 over ten restarts and ten reloads",
        format_args!("{answered} requests on {connections} connections, none lost"),
    );
    let connections: u32 = connections.parse().expect("a number");
    assert!(connections > 20, "{connections}: each process has sent it away");
}

/// What one run of h2load came to. A client of it ends with its connection, and does not ask again what was cut.
#[derive(Default)]
struct Account {
    started: u64,
    succeeded: u64,
    /// Runs that were sent away before they had asked all that they had to ask.
    sent_away: u64,
}

fn h2load(edge: &Edge) -> Account {
    const REQUESTS: u64 = 20_000;
    let output = edge.enter_network(|| {
        Command::new("h2load")
            .args(["-n", &REQUESTS.to_string(), "-c", "5", "-m", "10", &format!("https://localhost:{PORT}/")])
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // "requests: 20000 total, 20000 started, 20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout"
    let line =
        said.lines().find(|line| line.starts_with("requests: ")).unwrap_or_else(|| panic!("{output:?}"));
    let number = |name: &str| {
        let number = line.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no{name} in {line}"))
    };
    let (started, succeeded) = (number(" started"), number(" succeeded"));
    assert_eq!(started, succeeded, "{said}");
    Account { started, succeeded, sent_away: u64::from(started < REQUESTS) }
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
            let run = h2load(&edge);
            account.started += run.started;
            account.succeeded += run.succeeded;
            account.sent_away += run.sent_away;
        }
        replacing.join().expect("each of them succeeds");
    });
    print_figure(
        "h2load over ten restarts and ten reloads",
        format_args!(
            "{} requests, {} answered; {} runs were sent away",
            account.started, account.succeeded, account.sent_away
        ),
    );
    assert!(account.sent_away > 0, "no run had to do with a restart");
}
