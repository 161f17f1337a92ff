//! Idle connections: all of them go along, however many they are.

use std::time::Duration;

use steadfast_harness::{Client, print_figure, raise_descriptor_limit};

use crate::service::Service;

/// More than nginx is usually allowed to hold, fewer than a client has ports.
const MANY: usize = 15_000;

#[test]
fn fifteen_thousand_idle_connections_survive_a_restart_and_a_reload() {
    raise_descriptor_limit(MANY as u64 + 1000);
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let many =
        "[http]\nlisten = [\"127.0.0.1:8080\"]\nmax_connections = 20000\nkeepalive_timeout = \"10m\"\n";
    service.write(crate::service::CONFIG, format!("{many}{}", crate::service::ROUTES));
    service.restart();
    // Each asks as soon as it is there: a client that says nothing has `header_timeout` alone.
    let mut clients: Vec<Client> = (0..MANY).map(|_| service.answered()).collect();

    let restart = service.restart();
    ask_all(&mut clients, "after the restart");
    let reload = service.reload();
    ask_all(&mut clients, "after the reload");

    for (what, took) in [("restart", restart), ("reload", reload)] {
        print_figure(
            &format!("a {what} with 15,000 idle connections, {BUILD}"),
            format_args!("{} ms (aim: under 500)", took.as_millis()),
        );
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    }
    service.wait_for_journal("handed over 15000 connections", 2);
    assert_eq!(service.total("connections"), 0, "no client came anew");
}

const BUILD: &str = if cfg!(debug_assertions) { "debug build" } else { "release build" };

fn ask_all(clients: &mut [Client], when: &str) {
    for (n, client) in clients.iter_mut().enumerate() {
        let answer = client.get("/").unwrap_or_else(|failure| panic!("{when}, connection {n}: {failure}"));
        assert_eq!(answer.status, 200);
    }
}
