//! The registry knows what a request waits for.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_registry_knows_what_a_request_waits_for() {
    let upstream = Scripted::absent();
    let router = upstream.proxied();
    let request = get("/");
    let in_flight = InFlight::of(Peer::Unix);
    in_flight.begin(&request);
    let waiting = || in_flight.view().map(|view| view.waiting);

    let asked = spawn(router.answer(request, in_flight.clone()));
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamConnect));
    upstream.start(never_answer);
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamResponse));
    asked.abort();
}
