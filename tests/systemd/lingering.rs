//! Connections that cannot be carried linger, and the report says how many and why.

use std::thread;

use steadfast_harness::{Client, Failure, Tunnel, wait_until};

use crate::service::{PROXY, Service, UNIT, agree_to_tunnel};

/// Long enough for a client to ask once more on a busy machine.
const LINGER: &str = "[shutdown]\nlinger = \"5s\"\n";

#[test]
fn with_connections_switched_off_they_may_ask_once_more_and_tunnels_are_carried() {
    let config = format!("{LINGER}[handover]\nconnections = false\n{PROXY}");
    let Some(service) = Service::start(file!(), &config) else {
        return;
    };
    let upstream = service.upstream();
    let mut tunnel = service.tunnel(&upstream, 0);
    let [mut silent, mut client] = [service.answered(), service.answered()];
    service.restart();
    service.wait_for_predecessors(1);
    assert_last_answer(&mut client);
    silent.wait_for_close().unwrap();
    tunnel.settle().unwrap();
    assert_reported(
        &service,
        "; handed over 0 connections and 1 tunnel; 2 connections closed: switched off in [handover]",
    );
}

#[test]
fn without_a_store_every_connection_lingers() {
    let Some(service) =
        Service::start_with_unit(file!(), LINGER, "Environment=STEADFAST_FDSTORE=\nFileDescriptorStoreMax=0")
    else {
        return;
    };
    let mut client = service.answered();
    thread::scope(|scope| {
        // No other process could know of the worker, so the main process stays with it.
        let restart = service.begin(scope, Service::restart);
        assert_last_answer(&mut client);
        restart.join().expect("a restart does not panic");
    });
    assert_reported(
        &service,
        "; handed over 0 connections and 0 tunnels; 1 connection closed: there is no store",
    );
}

#[test]
fn a_connection_whose_small_request_body_nobody_read_is_carried_like_any_other() {
    let Some(service) = Service::start(file!(), LINGER) else {
        return;
    };
    let mut client = service.connect();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    service.restart();
    assert_eq!(client.get("/").unwrap().status, 200);
    assert_reported(&service, "; handed over 1 connection and 0 tunnels");
}

#[test]
fn with_tunnels_switched_off_what_becomes_one_after_a_restart_stays_with_the_predecessor() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[handover]\ntunnels = false\n")
    else {
        return;
    };
    let (client, exchange) = service.ask_for_tunnel(&upstream);
    service.restart();
    let [client, upstream] = agree_to_tunnel(client, exchange);
    let mut tunnel = Tunnel::new(0, client, upstream);
    tunnel.settle().unwrap();
    service.wait_for_predecessors(1);
    tunnel.settle().unwrap();
    // Its end is also that of the process that waits for it.
    drop(tunnel);
    service.wait_for_predecessors(0);
    assert_eq!(taken_over(&service, "tunnel"), 0, "{}", service.journal(UNIT, &[]));
}

#[test]
fn with_connections_switched_off_what_becomes_a_tunnel_after_a_restart_is_carried() {
    let Some((service, upstream)) =
        Service::start_with_upstream(file!(), "[handover]\nconnections = false\n")
    else {
        return;
    };
    let (client, exchange) = service.ask_for_tunnel(&upstream);
    service.restart();
    let [client, upstream] = agree_to_tunnel(client, exchange);
    let mut tunnel = Tunnel::new(0, client, upstream);
    wait_until("the tunnel to be taken over", || (taken_over(&service, "tunnel") == 1).then_some(()));
    tunnel.settle().unwrap_or_else(|lost| panic!("{lost}\n{}", service.journal(UNIT, &[])));
    service.wait_for_predecessors(0);
}

/// The number of a kind that the process that serves now took over.
fn taken_over(service: &Service, kind: &str) -> u64 {
    service.metric(&format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}"))
}

fn assert_last_answer(client: &mut Client) {
    let answer = client.get("/").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(matches!(client.get("/"), Err(Failure::Closed)));
}

fn assert_reported(service: &Service, expected: &str) {
    service.wait_for_journal(expected, 1);
}
