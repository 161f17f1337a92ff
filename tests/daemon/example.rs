//! The library's face, as `examples/own_service.rs` uses it.

use steadfast_harness::{Daemon, Signal};

use crate::process::{config, connect, example, serving};

#[test]
fn the_example_is_a_service_with_its_own_route_and_its_own_worker() {
    let status = "[[route]]\npath = \"/status\"\nstatus = true\n";
    let mut daemon = Daemon::spawn_program(example("own_service"), &[], &config(status), |_| {});
    serving(&daemon);
    let mut client = connect(&daemon, "http");
    for n in 0..10 {
        let order = format!("order {n}");
        client
            .send(format!(
                "POST /orders HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{order}",
                order.len()
            ))
            .unwrap();
        let response = client.receive().unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "queued\n"));
    }
    assert_eq!(client.get("/status").unwrap().text(), r#"{"status":"ok","uri":"/status"}"#);
    assert_eq!(client.get("/elsewhere").unwrap().status, 404);
    drop(client);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.stderr().0;
    let done = log.iter().filter(|line| line.contains("done: order ")).count();
    assert_eq!(done, 10, "{log:#?}");
}

#[test]
fn the_example_fits_on_one_screen() {
    let lines = include_str!("../../examples/own_service.rs").lines().count();
    assert!(lines < 40, "{lines} lines");
}
