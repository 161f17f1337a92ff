//! A machine is taken out, and put back.

use std::thread;
use std::time::Instant;

use steadfast_harness::{Load, print_figure, wait_until};

use crate::fleet::{EXAMPLE, Fleet, GET, POST};

#[test]
fn a_machine_that_stops_has_left_the_balancer_before_it_refuses_and_nothing_is_lost() {
    let Some(fleet) = Fleet::start(file!()) else {
        return;
    };
    let loads = [fleet.load(6, GET), fleet.load(6, POST)];
    for (number, host) in fleet.hosts.iter().enumerate() {
        for load in &loads {
            load.advance(200);
        }
        thread::scope(|scope| {
            let began = Instant::now();
            let stop = scope.spawn(|| fleet.operate_on(number, "ssh 192.0.2.12 systemctl stop steadfast"));
            fleet.balancer.wait_for(&host.name, "DOWN");
            print_figure("a stop, until the balancer looks away", format_args!("{:?}", began.elapsed()));
            // It still answers whoever has not looked.
            let answer = fleet.connect(number).get("/").expect("it still serves");
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
            stop.join().expect("the stop succeeds");
        });
        let served = fleet.balancer.number(&host.name, "stot");
        for load in &loads {
            load.advance(200);
        }
        assert_eq!(fleet.balancer.number(&host.name, "stot"), served, "the others have the load");

        fleet.operate_on(number, "ssh 192.0.2.12 systemctl start steadfast");
        fleet.balancer.wait_for(&host.name, "UP");
        fleet.balancer.wait_for_requests(&host.name, 100);
    }
    let accounts = loads.map(Load::finish);
    for (account, what) in accounts.iter().zip(["GET", "POST"]) {
        print_figure(&format!("three machines stopped and started behind HAProxy, {what}"), account);
        fleet.assert_nothing_lost(account);
    }
    assert_eq!(fleet.trouble("BACKEND"), [], "{}", fleet.balancer.log());
}

#[test]
fn a_machine_that_the_balancer_drains_finishes_what_it_has_and_gets_nothing_new() {
    let Some(fleet) = Fleet::start(file!()) else {
        return;
    };
    let held = fleet.hold(1);
    let load = fleet.load(6, POST);
    load.advance(200);
    let host = &fleet.hosts[EXAMPLE];
    fleet.tell_balancer("state drain");
    fleet.balancer.wait_for(&host.name, "DRAIN");
    // The one that waits is all that is left there.
    wait_until("the machine to have finished the rest", || {
        (fleet.balancer.number(&host.name, "scur") == 1).then_some(())
    });
    let served = fleet.balancer.number(&host.name, "stot");
    load.advance(500);
    assert_eq!(fleet.balancer.number(&host.name, "stot"), served, "the others have the load");
    let left = host.ok(["steadfast", "status"]);
    assert!(left.contains("POST /app/"), "{left}");
    for held in held {
        held.finish();
    }
    fleet.tell_balancer("state ready");
    fleet.balancer.wait_for_requests(&host.name, 100);
    let account = load.finish();
    print_figure("a machine drained by HAProxy", &account);
    fleet.assert_nothing_lost(&account);
}
