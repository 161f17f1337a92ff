//! What an operator sees of a replacement who looks all along.

use steadfast_harness::{Client, wait_until};

use super::Service;

/// A connection to the admin listener on which the page's events come.
fn watch(service: &Service) -> Client {
    let mut client = service.connect_to_admin();
    client.ask("/events").expect("it takes a request");
    let head = client.receive_head().expect("it answers");
    assert_eq!(head.status, 200);
    client
}

/// The events until their end.
fn rest(mut client: Client) -> String {
    let mut events = Vec::new();
    while let Some(chunk) = client.receive_chunk().expect("they end in order") {
        events.extend(chunk);
    }
    String::from_utf8(events).expect("it is text")
}

#[test]
fn over_a_restart_the_page_says_what_comes_and_then_shows_both_workers_and_the_time_that_is_left() {
    let Some((service, upstream)) = Service::start_with_upstream(file!(), "[handover]\ndeadline = \"10m\"\n")
    else {
        return;
    };
    let (mut client, exchange) = service.in_flight(&upstream, "/app/export");
    let (main, old) = (service.main_pid(), service.worker());
    let watcher = watch(&service);
    service.restart();
    let events = rest(watcher);
    let (_, last) = events.rsplit_once("event: ").expect("an event");
    let words = format!("Worker {old} has handed over because of a restart.");
    assert!(last.starts_with("last\n") && last.contains(&words), "{last}");

    // Whoever connects again reaches the next one.
    let mut watcher = watch(&service);
    let status = wait_until("the predecessor's progress", || {
        let status = service.status();
        status.predecessors.first().is_some_and(|one| one.in_flight == Some(1)).then_some(status)
    });
    let predecessor = &status.predecessors[0];
    assert_eq!(predecessor.pid, old);
    assert!(predecessor.left.is_some_and(|left| left > 0.0 && left <= 600.0), "{predecessor:?}");
    let above = status.main_process.expect("there is one");
    assert_ne!(above.pid.to_string(), main);
    assert_eq!((above.pid.to_string(), above.restarts), (service.main_pid(), 0));
    let picture = watcher.receive_chunk().expect("it goes on").expect("a picture");
    let picture = String::from_utf8(picture).expect("it is text");
    assert!(picture.contains("event: now") && picture.contains(&format!("predecessor {old}")), "{picture}");

    // A worker that is killed is counted, by the process above it.
    service.kill_worker();
    wait_until("the restart to be counted", || {
        let status = service.admin("/status");
        let status = serde_json::from_str::<super::Status>(&status.text()).ok()?;
        status.main_process.is_some_and(|above| above.restarts == 1).then_some(())
    });
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().expect("it is answered").text(), "worth the wait");
    service.wait_for_predecessors(0);
    assert!(service.status().predecessors.is_empty());
}
