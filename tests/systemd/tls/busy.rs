//! Busy clients, which never retry: a restart and a reload are nothing to them.

use steadfast_harness::{Account, Load, Trust, print_figure};

use super::Edge;
use crate::service::UNIT;

/// The clients of each version: 50 in all.
const CLIENTS: usize = 25;

#[test]
fn ten_restarts_and_ten_reloads_under_load_over_tls_refuse_drop_and_close_nothing() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    let loads = [edge.trust.clone(), Trust::of_tls12(&edge.authority, "localhost")]
        .map(|trust| edge.load_over_tls(CLIENTS, &trust));
    let advance = |requests| loads.iter().for_each(|load| load.advance(requests));
    let longest = || loads.iter().map(Load::longest_wait).max().unwrap_or_default().as_millis();
    advance(1000);
    let usual = longest();
    edge.replace_twenty_times(|_| advance(300));
    let longest = longest();
    print_figure(
        "longest wait of 50 busy TLS clients over ten restarts and ten reloads",
        format_args!("{longest} ms (without any {usual} ms)"),
    );
    for (version, load) in ["1.3", "1.2"].into_iter().zip(loads) {
        let Account { refused, dropped, closed, .. } = load.account();
        let account = load.finish();
        print_figure(&format!("ten restarts and ten reloads under load over TLS {version}"), &account);
        assert_eq!((refused, dropped, closed), (0, 0, 0), "{account}\n{}", edge.journal(UNIT, &[]));
    }
    assert_eq!(edge.total("connections"), 0, "no client came anew");
}
