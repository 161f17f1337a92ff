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
    assert_lost_at_most(&fleet, in_flight - held_there, [&gets, &posts]);
}

#[test]
fn a_machine_that_is_killed_at_once_loses_what_was_in_flight_on_it_alone_and_comes_back() {
    let Some(mut fleet) = Fleet::start(file!()) else {
        return;
    };
    let (lost_host, name, clients) = (2, fleet.hosts[2].name.clone(), 6);
    let held = fleet.hold(2);
    let (gets, posts) = (fleet.load(clients, GET), fleet.load(clients, POST));
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
    // Each of them has one in flight.
    assert_lost_at_most(&fleet, 2 * clients as u64, [&gets, &posts]);
}

/// No more was lost than was in flight. That is a little of GET, too: HAProxy repeats it where it reads that the connection
/// has ended, but not where it is told so when it writes, at the very moment of the end.
fn assert_lost_at_most(fleet: &Fleet, in_flight: u64, accounts: [&Account; 2]) {
    let lost: u64 = accounts.iter().map(|account| account.dropped).sum();
    let said = || format!("{} of GET, {} of POST\n{}", accounts[0], accounts[1], fleet.balancer.log());
    assert!(lost <= in_flight, "{lost} of {in_flight} in flight: {}", said());
    assert!(accounts.iter().all(|account| (account.refused, account.closed) == (0, 0)), "{}", said());
}
