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

/// The first Rust program in a text, without what its fence says.
fn program(text: &str) -> String {
    let fence = text.lines().skip_while(|line| !line.starts_with("```")).skip(1);
    let lines: Vec<_> = fence.take_while(|line| *line != "```").collect();
    lines.join("\n")
}

#[test]
fn the_librarys_front_page_opens_with_the_readmes_program() {
    let library = include_str!("../../src/lib.rs");
    let page: Vec<_> = library.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let page: Vec<_> = page.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let readme = include_str!("../../README.md");
    let (_, developers) = readme.split_once("# For developers").expect("it has a part for developers");
    let program_of_readme = program(developers);
    assert!(program_of_readme.contains("fn main()"), "{program_of_readme}");
    assert_eq!(program(&page.join("\n")), program_of_readme);
}
