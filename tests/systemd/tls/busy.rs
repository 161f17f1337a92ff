//! Busy clients, which never retry: a restart and a reload are nothing to them.

use std::thread;
use std::time::Duration;

use steadfast_harness::{Account, Load, Trust, print_figure};

use super::{Edge, address, https};
use crate::http2;
use crate::service::{CONFIG, ROUTES, UNIT};

/// The clients of each version: 50 in all.
const CLIENTS: usize = 25;

#[test]
fn ten_restarts_and_ten_reloads_under_load_over_tls_refuse_drop_and_close_nothing() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    let loads = load_of_both(&edge);
    let longest = || loads.iter().map(Load::longest_wait).max().unwrap_or_default().as_millis();
    advance(&loads, 1000);
    let usual = longest();
    edge.replace_twenty_times(|_| advance(&loads, 300));
    let longest = longest();
    print_figure(
        "longest wait of 50 busy TLS clients over ten restarts and ten reloads",
        format_args!("{longest} ms (without any {usual} ms)"),
    );
    assert_nothing_lost(&edge, loads, "ten restarts and ten reloads");
    assert_eq!(edge.total("connections"), 0, "no client came anew");
}

#[test]
fn a_worker_that_stands_still_for_longer_than_any_client_may_loses_nothing_over_tls_whether_replaced_or_not()
{
    const STILL: Duration = Duration::from_secs(6);
    let Some(edge) = Edge::install(file!(), "") else {
        return;
    };
    let limits = ["header", "keepalive", "read", "write"].map(|what| format!("{what}_timeout = \"4s\"\n"));
    let http = "[http]\nlisten = [\"127.0.0.1:8080\"]\nrequests_per_connection = 1000000000\n";
    edge.write(CONFIG, format!("{http}{}{}{ROUTES}", limits.concat(), https("")));
    edge.ok(["systemctl", "start", UNIT]);
    let loads = load_of_both(&edge);
    let what = "a worker that stands still under HTTP/2 over TLS";
    http2::lose_nothing(&edge, address(), Some(edge.trust.clone()), what, |book| {
        let advance = || {
            book.advance(500);
            advance(&loads, 300);
        };
        advance();
        for is_replaced in [false, true] {
            let worker = edge.worker_pid();
            edge.ok(["kill", "-STOP", &worker]);
            if is_replaced {
                // To the main process: `systemctl reload` would ask the worker.
                edge.ok(["systemctl", "kill", "--signal=HUP", "--kill-whom=main", UNIT]);
                edge.wait_for_journal(&format!("takes over from worker {worker}"), 1);
            }
            // Less than the watchdog's 30 s, and more than the limits of the clients: time itself is the test.
            thread::sleep(STILL);
            edge.ok(["kill", "-CONT", &worker]);
            advance();
            if is_replaced {
                edge.wait_for_the_end_of(&worker);
            } else {
                assert_eq!(edge.worker_pid(), worker);
            }
        }
    });
    assert_nothing_lost(&edge, loads, "a worker that stands still");
    assert_eq!(edge.show(UNIT, "NRestarts"), "0");
}

/// Load by clients of TLS 1.3, and of 1.2.
fn load_of_both(edge: &Edge) -> [Load; 2] {
    [edge.trust.clone(), Trust::of_tls12(&edge.authority, "localhost")]
        .map(|trust| edge.load_over_tls(CLIENTS, &trust))
}

/// Returns when each of them has had so many more answers.
fn advance(loads: &[Load], requests: u64) {
    for load in loads {
        load.advance(requests);
    }
}

fn assert_nothing_lost(edge: &Edge, loads: [Load; 2], what: &str) {
    for (version, load) in ["1.3", "1.2"].into_iter().zip(loads) {
        let Account { refused, dropped, closed, .. } = load.account();
        let account = load.finish();
        print_figure(&format!("{what} under load over TLS {version}"), &account);
        assert_eq!((refused, dropped, closed), (0, 0, 0), "{account}\n{}", edge.journal(UNIT, &[]));
    }
}
