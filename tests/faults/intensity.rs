//! A child that fails too often: the tree stops as gracefully as ever, and says with its exit code that it failed.

use steadfast_harness::Load;

use crate::process::{CHILDREN, Kind, Rehearsal, still_waits};

#[test]
fn a_child_that_fails_too_often_stops_the_tree_which_finishes_what_is_in_flight() {
    for child in CHILDREN {
        let lines =
            "supervision.max_restarts = 2\nsupervision.backoff = \"20ms\"\nshutdown.linger = \"200ms\"\n";
        let rehearsal = Rehearsal::start(lines, |_| {});
        let mut client = rehearsal.connect();
        client.ask("/app/slow").unwrap();
        let exchange = rehearsal.upstream.next_request();
        let load = Load::start(1, rehearsal.daemon.address("http"), "/");
        for restarts in 1..=2 {
            rehearsal.inject(child, Kind::Panic);
            rehearsal.wait_for_restarts(child, restarts);
        }
        load.advance(20);
        let before = load.finish();
        assert_eq!((before.refused, before.dropped, before.closed), (0, 0, 0), "{child}: {before}");

        rehearsal.inject(child, Kind::Fail);
        let gave_up = format!("{child} failed: a fault on demand; it was restarted 2 times within 60s");
        rehearsal.daemon.wait_for_line(&gave_up, |line| line.contains(&gave_up));
        rehearsal.daemon.wait_for_line("that it drains", |line| line.contains("draining: "));
        still_waits(&mut client);
        exchange.answer(200, "worth the wait");
        let answer = client.receive().unwrap_or_else(|lost| panic!("{child}: {lost}"));
        assert_eq!(answer.text(), "worth the wait", "{child}");
        let Rehearsal { mut daemon, .. } = rehearsal;
        assert_eq!(daemon.wait(), 1, "{child}");
        let report = daemon.wait_for_line("the report", |line| line.contains("stopped by"));
        assert!(report.contains(&format!("stopped by the failure of {child}")), "{report}");
        assert!(report.contains(" 0 cut"), "{report}");
    }
}
