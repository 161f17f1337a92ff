//! A rolling restart: no client notices, nor does the balancer.

use steadfast_harness::{Load, print_figure};

use crate::fleet::{Fleet, GET, POST, UNIT};

#[test]
fn a_rolling_restart_of_all_machines_loses_nothing_and_the_balancer_has_nothing_to_mend() {
    let Some(fleet) = Fleet::start(file!()) else {
        return;
    };
    let held = fleet.hold(1);
    let loads = [fleet.load(6, GET), fleet.load(6, POST)];
    let mains = || fleet.hosts.iter().map(|host| host.show(UNIT, "MainPID")).collect::<Vec<_>>();
    let before = mains();
    // One right after the other.
    fleet.operate("for host in");
    assert!(
        mains().iter().zip(&before).all(|(now, before)| now != before && now != "0"),
        "each was restarted"
    );
    // And one when the balancer has given requests to the one before.
    for host in &fleet.hosts {
        for load in &loads {
            load.advance(200);
        }
        host.ok(["systemctl", "restart", UNIT]);
        fleet.balancer.wait_for(&host.name, "UP");
        fleet.balancer.wait_for_requests(&host.name, 100);
    }
    let accounts = loads.map(Load::finish);
    for (account, what) in accounts.iter().zip(["GET", "POST"]) {
        print_figure(&format!("two rolling restarts of three machines behind HAProxy, {what}"), account);
        fleet.assert_nothing_lost(account);
    }
    assert_eq!(fleet.trouble("BACKEND"), [], "{}", fleet.balancer.log());
    for host in &fleet.hosts {
        assert_eq!(fleet.balancer.number(&host.name, "chkdown"), 0, "{}", fleet.balancer.log());
    }
    // They began before the first restart.
    for held in held {
        held.finish();
    }
}
