//! A machine is gone without a word.

use steadfast_harness::{Account, print_figure};

use crate::fleet::{Fleet, GET, POST};

#[test]
fn a_machine_that_is_cut_off_and_killed_loses_what_was_in_flight_on_it_alone_and_comes_back() {
    let Some(mut fleet) = Fleet::start(file!()) else {
        return;
    };
    let (lost_host, name) = (1, fleet.hosts[1].name.clone());
    let held = fleet.hold(2);
    let (gets, posts) = (fleet.load(6, GET), fleet.load(6, POST));
    gets.advance(200);
    posts.advance(200);

    fleet.network.unplug(&fleet.hosts[lost_host].cable);
    fleet.balancer.wait_for(&name, "DOWN");
    // What had been sent to it by then.
    let in_flight = fleet.balancer.number(&name, "scur");
    gets.advance(200);
    posts.advance(200);
    let (on_it, on_others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.host == lost_host);
    let held_there = on_it.len() as u64;
    for held in on_others {
        held.finish();
    }
    fleet.replace(lost_host);
    fleet.balancer.wait_for(&name, "UP");
    fleet.balancer.wait_for_requests(&name, 100);
    for held in on_it {
        held.assert_lost();
    }

    let (gets, posts) = (gets.finish(), posts.finish());
    print_figure("a machine of three is gone: in flight on it", in_flight);
    print_figure("a machine of three is gone: GET, which the balancer repeats", &gets);
    print_figure("a machine of three is gone: POST, which it does not", &posts);
    fleet.assert_nothing_lost(&gets);
    assert_lost_on(&fleet, lost_host, &posts);
    assert!(posts.dropped + held_there <= in_flight, "{posts}\n{}", fleet.balancer.log());
}

#[test]
fn a_machine_that_is_killed_at_once_loses_what_was_in_flight_on_it_alone_and_comes_back() {
    let Some(mut fleet) = Fleet::start(file!()) else {
        return;
    };
    let (lost_host, name) = (2, fleet.hosts[2].name.clone());
    let held = fleet.hold(2);
    let (gets, posts) = (fleet.load(6, GET), fleet.load(6, POST));
    gets.advance(200);
    posts.advance(200);

    // Its kernel resets the connections, as that of a machine does whose processes die.
    fleet.replace(lost_host);
    let (on_it, on_others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.host == lost_host);
    for held in on_it {
        held.assert_lost();
    }
    fleet.balancer.wait_for(&name, "UP");
    fleet.balancer.wait_for_requests(&name, 100);
    for held in on_others {
        held.finish();
    }

    let (gets, posts) = (gets.finish(), posts.finish());
    print_figure("a machine of three is killed: GET, which the balancer repeats", &gets);
    print_figure("a machine of three is killed: POST, which it does not", &posts);
    fleet.assert_nothing_lost(&gets);
    // Its processes end one after the other, and its kernel accepts connections as long as one of them listens: of
    // a client more than one request can be lost.
    assert_lost_on(&fleet, lost_host, &posts);
}

/// Whatever was lost was in flight on this machine.
fn assert_lost_on(fleet: &Fleet, lost_host: usize, account: &Account) {
    let others = fleet.hosts.iter().enumerate().filter(|(at, _)| *at != lost_host);
    for (_, host) in others {
        assert_eq!(fleet.trouble(&host.name), [], "{account}\n{}", fleet.balancer.log());
    }
    assert_eq!((account.refused, account.closed), (0, 0), "{account}\n{}", fleet.balancer.log());
}
