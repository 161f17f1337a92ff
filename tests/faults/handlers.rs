//! The faults of a request's own handler: they cost that request.

use crate::process::Rehearsal;

#[test]
fn a_handler_that_panics_costs_its_request_and_nothing_else() {
    let rehearsal = Rehearsal::start("", |_| {});
    let (mut client, mut other) = (rehearsal.connect(), rehearsal.connect());
    other.ask("/app/slow").unwrap();
    let exchange = rehearsal.upstream.next_request();
    for _ in 0..20 {
        let answer = client.get("/panic").unwrap();
        assert_eq!((answer.status, answer.header("connection")), (500, None));
        assert_eq!(client.get("/").unwrap().status, 200, "on the same connection");
    }
    exchange.answer(200, "worth the wait");
    assert_eq!(other.receive().unwrap().text(), "worth the wait");
    rehearsal.daemon.wait_for_line("the panic", |line| line.contains("the handler's own words"));
    let status = rehearsal.control().get("/status").unwrap().text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    for child in status["children"].as_array().unwrap() {
        assert_eq!(child["restarts"], 0, "{child}");
    }
}

#[test]
fn a_handler_that_blocks_its_thread_is_named_while_others_are_answered() {
    let rehearsal = Rehearsal::start("", |_| {});
    let (mut blocked, mut waiting, mut other) =
        (rehearsal.connect(), rehearsal.connect(), rehearsal.connect());
    assert_eq!(other.get("/").unwrap().status, 200);
    waiting.ask("/wait").unwrap();
    blocked.ask("/block").unwrap();
    let asked = std::time::Instant::now();
    let line = rehearsal.daemon.wait_for_line("the handler", |line| line.contains("blocks its thread"));
    assert!(line.contains("WARN") && line.contains("GET /block"), "{line}");
    // Before it is over: an open connection, a new one, an operator's.
    assert_eq!(other.get("/").unwrap().status, 200);
    assert_eq!(rehearsal.connect().get("/").unwrap().status, 200);
    assert_eq!(rehearsal.control().get("/livez").unwrap().status, 200);
    assert!(asked.elapsed().as_secs() < 4, "the handler had ended by then");
    // One that waits as it should is not named.
    assert_eq!(blocked.receive().unwrap().status, 200);
    assert_eq!(waiting.receive().unwrap().status, 200);
    assert!(!rehearsal.daemon.stderr().to_string().contains("GET /wait blocks"));
}
