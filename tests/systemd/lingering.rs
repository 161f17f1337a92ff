//! What cannot be carried lingers, and the report says how many and why.

use steadfast_harness::{Client, Failure};

use crate::service::{PROXY, Service, UNIT};

/// Long enough for a client to ask once more on a busy machine.
const LINGER: &str = "[shutdown]\nlinger = \"2s\"\n";

#[test]
fn with_connections_switched_off_they_may_ask_once_more_and_tunnels_are_carried() {
    let config = format!("{LINGER}[handover]\nconnections = false\n{PROXY}");
    let Some(service) = Service::start(file!(), &config) else {
        return;
    };
    let upstream = service.upstream();
    let mut tunnel = service.tunnel(&upstream, 0);
    let [mut silent, mut client] = [answered(&service), answered(&service)];
    restart_meanwhile(&service, || assert_last_answer(&mut client));
    silent.wait_for_close().unwrap();
    tunnel.settle().unwrap();
    assert_reported(
        &service,
        "; handed over 0 connections and 1 tunnel; 2 connections closed: switched off in [handover]",
    );
}

#[test]
fn without_a_store_every_connection_lingers() {
    let Some(service) = Service::install(file!(), LINGER) else {
        return;
    };
    service.edit_unit("Environment=STEADFAST_FDSTORE=\nFileDescriptorStoreMax=0");
    service.ok(["systemctl", "start", UNIT]);
    let mut client = answered(&service);
    restart_meanwhile(&service, || assert_last_answer(&mut client));
    assert_reported(
        &service,
        "; handed over 0 connections and 0 tunnels; 1 connection closed: there is no store",
    );
}

#[test]
fn a_connection_whose_request_body_nobody_read_is_closed_and_the_others_are_carried() {
    let Some(service) = Service::start(file!(), LINGER) else {
        return;
    };
    let mut carried = answered(&service);
    let mut client = service.connect();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    service.restart();
    client.wait_for_close().unwrap();
    assert_eq!(carried.get("/").unwrap().status, 200);
    assert_reported(
        &service,
        "; handed over 1 connection and 0 tunnels; 1 connection closed: a request's body was not read",
    );
}

fn answered(service: &Service) -> Client {
    let mut client = service.connect();
    assert_eq!(client.get("/").unwrap().status, 200);
    client
}

/// Does something while a restart drains.
fn restart_meanwhile(service: &Service, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| service.restart());
        service.wait_for_drain();
        act();
        restart.join().unwrap();
    });
}

fn assert_last_answer(client: &mut Client) {
    let answer = client.get("/").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(matches!(client.get("/"), Err(Failure::Closed)));
}

fn assert_reported(service: &Service, expected: &str) {
    let journal = service.journal(UNIT, &[]);
    assert!(journal.contains(expected), "{expected} in:\n{journal}");
}
