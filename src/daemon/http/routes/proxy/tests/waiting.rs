//! The registry knows what a request waits for.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_registry_knows_what_a_request_waits_for() {
    let upstream = Scripted::absent();
    let router = upstream.proxied();
    let registry = Registry::new(metrics::Histogram::noop(), AccessLog::off());
    let connection = registry.open(Peer::Unix, false);
    let mut request = get("/");
    let answering = connection.begin(request.method(), request.uri(), false);
    request.extensions_mut().insert(InFlight(Arc::clone(&connection)));
    let waiting = || connection.view().map(|view| view.waiting);

    let asked = spawn(async move { ask(&router, request).await });
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamConnect));
    upstream.start(never_answer);
    sleep(SECOND).await;
    assert_eq!(waiting(), Some(Waiting::UpstreamResponse));
    asked.abort();
    drop(answering);
}
