//! A network of boxes keeps what it promises to the tests that stand on it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use steadfast_harness::{Machine, Network, wait_until};

/// The time in which a box that is there has taken a connection.
const SOON: Duration = Duration::from_millis(200);

#[test]
fn boxes_that_are_joined_reach_each_other_but_over_a_cable_that_is_out() {
    let Some(one) = Machine::boot_or_skip(file!()) else {
        return;
    };
    let other = Machine::boot();
    let network = Network::new(Ipv4Addr::new(192, 0, 2, 1));
    let _cable = network.join(&one, Ipv4Addr::new(192, 0, 2, 11));
    let its = Ipv4Addr::new(192, 0, 2, 12);
    let cable = network.join(&other, its);
    let address = SocketAddr::from((its, 80));
    let listener = other.enter_network(|| TcpListener::bind(address).unwrap());

    let accepted = || listener.accept().unwrap().1.ip().to_string();
    one.enter_network(|| TcpStream::connect(address).unwrap());
    assert_eq!(accepted(), "192.0.2.11", "a box reaches a box");
    network.enter(|| TcpStream::connect(address).unwrap());
    assert_eq!(accepted(), "192.0.2.1", "the test reaches a box");

    network.unplug(&cable);
    let alone = one.enter_network(|| TcpStream::connect_timeout(&address, SOON));
    assert!(alone.is_err(), "{alone:?}");
    network.plug(&cable);
    wait_until("the box to be reached again", || {
        one.enter_network(|| TcpStream::connect_timeout(&address, SOON)).ok()
    });

    // What has happened to a box does not keep another from its address.
    drop((listener, other));
    let another = Machine::boot();
    let _cable = network.join(&another, its);
    let listener = another.enter_network(|| TcpListener::bind(address).unwrap());
    wait_until("the other box to be reached", || {
        one.enter_network(|| TcpStream::connect_timeout(&address, SOON)).ok()
    });
    listener.accept().unwrap();
}
