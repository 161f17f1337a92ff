//! Tunnels: every message arrives, once and in order.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use steadfast_harness::{Conversation, PATIENCE, Tunnel, print_figure};

use crate::service::{CONFIG, PROXY, Service, UNIT, agree_to_tunnel};

#[test]
fn five_hundred_tunnels_half_of_them_busy_survive_a_restart_and_a_reload() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let mut idle: Vec<Tunnel> = (0..250).map(|n| service.tunnel(&upstream, n)).collect();
    let busy: Vec<Tunnel> = (250..500).map(|n| service.tunnel(&upstream, n)).collect();
    settle(&mut idle, "before");
    let conversation = Conversation::start(busy);
    conversation.advance(20_000);
    let restart = service.restart();
    conversation.advance(20_000);
    settle(&mut idle, "after the restart");
    let reload = service.reload();
    conversation.advance(20_000);
    settle(&mut idle, "after the reload");
    let busy = conversation.finish().unwrap_or_else(|e| panic!("{e}\n{}", service.journal(UNIT, &[])));

    let arrived: u64 = busy.iter().map(Tunnel::arrived).sum();
    print_figure(
        "250 busy and 250 idle tunnels over a restart and a reload",
        format_args!(
            "{arrived} messages, none lost, doubled or out of order; restart {} ms, reload {} ms",
            restart.as_millis(),
            reload.as_millis()
        ),
    );
    service.wait_for_journal("handed over 0 connections and 500 tunnels", 2);
}

#[test]
fn what_a_slow_reader_has_yet_to_take_goes_along() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let mut tunnel = service.tunnel(&upstream, 0);
    // Some 20 MB: more than the kernel's buffers on the way and the tunnel's own take.
    tunnel.say_unheard(100_000).unwrap();
    service.restart();
    service.reload();
    tunnel.settle().unwrap();
}

#[test]
fn a_tunnel_of_which_one_end_has_closed_its_half_goes_along_and_on() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "") else {
        return;
    };
    let (client, exchange) = service.ask_for_tunnel(&upstream);
    let [mut client, mut upstream] = agree_to_tunnel(client, exchange);
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    upstream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    for next in [Service::restart, Service::reload] {
        for said in [b"before", b" after"] {
            client.write_all(said).unwrap();
            let mut heard = [0; 6];
            upstream.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, said);
            if said == b"before" {
                next(&service);
            }
        }
    }
    drop(client);
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_tunnel_that_was_carried_is_closed_after_its_idle_timeout_as_any_other() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let http = "[http]\nlisten = [\"127.0.0.1:8080\"]\ntunnel_idle_timeout = \"5s\"\n";
    service.write(CONFIG, format!("{http}{PROXY}"));
    service.ok(["systemctl", "start", UNIT]);
    let upstream = service.upstream();
    let (client, exchange) = service.ask_for_tunnel(&upstream);
    let [mut client, mut upstream] = agree_to_tunnel(client, exchange);
    for next in [Service::restart, Service::reload] {
        next(&service);
        upstream.write_all(b"still").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
    }
    let began = Instant::now();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(ends(&mut client) && ends(&mut upstream));
    assert!((4..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// Waits for the end of a connection, which may be a reset.
fn ends(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn settle(tunnels: &mut [Tunnel], when: &str) {
    for tunnel in tunnels {
        tunnel.settle().unwrap_or_else(|failure| panic!("{when}: {failure}"));
    }
}
