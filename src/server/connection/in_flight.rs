//! A request in flight: what its handler sees of it, and what everybody else is shown.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::http::{Method, Uri};

use super::{Connection, Waiter, Waiting};
use crate::server::peer::Peer;
use crate::server::request_id::RequestId;
use crate::server::route::RouteId;
use crate::tls::Session;

/// The request being answered, as its handler finds it in the request's extensions.
#[derive(Clone, Debug)]
pub struct InFlight(pub(super) Arc<Connection>);

impl InFlight {
    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer()
    }

    /// True if the client is one of `trusted_proxies`, so that its `X-Forwarded-*` and `Forwarded` are to be believed.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.0.trusted
    }

    /// True if it came over TLS.
    #[must_use]
    pub fn is_over_tls(&self) -> bool {
        self.tls().is_some()
    }

    /// What the handshake of its connection has agreed on; none without TLS.
    pub(crate) fn tls(&self) -> Option<&Session> {
        self.0.session().map(|session| &**session)
    }

    /// The request's id; another one at each call for a request that nobody sent.
    pub(crate) fn id(&self) -> RequestId {
        self.0.machine().exchange().map_or_else(RequestId::fresh, |exchange| exchange.id.clone())
    }

    /// The path of the request.
    pub(in crate::server) fn path(&self) -> String {
        self.0.machine().exchange().map_or_else(String::new, |exchange| exchange.uri.path().to_owned())
    }

    /// Says which route answers the request.
    pub(crate) fn routed(&self, route: RouteId) {
        self.0.set_route(route);
    }

    /// Says what the request waits for, for the log of a cut and for `/status`.
    pub fn waiting_for(&self, what: Waiting) {
        self.0.waiting_for(what);
    }

    /// Says that the answer waits for nobody but the client. It is made to its end although the client has finished
    /// sending; else that is taken for the end of a client that has gone away.
    pub(crate) fn waits_for_nobody(&self) {
        self.0.answers_alone.store(true, Relaxed);
    }

    /// Says that the answer waits for something else than the client after all.
    pub(in crate::server) fn waits_for_others(&self) {
        if self.0.answers_alone.swap(false, Relaxed) {
            // Its task may have concealed the end of what the client sends.
            self.0.commands.wake(Waiter::Task);
        }
    }

    /// Runs a poll of the handler's own task, which the watchdog times.
    pub(in crate::server) fn timed<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.0.progress.handler.timed(self.0.registry.watchdog_now(), poll)
    }

    /// Sends an interim answer before the answer itself.
    pub(crate) fn send_interim(&self, head: &[u8]) {
        self.0.send_interim(head);
    }

    /// A request that nobody sent.
    #[cfg(any(test, feature = "benches"))]
    pub(crate) fn of(peer: Peer) -> Self {
        let registry = crate::server::Registry::new(crate::server::Totals::unobserved());
        Self(registry.accepted(0, peer, false, None))
    }

    /// A copy of what is known of the request.
    #[cfg(test)]
    pub(crate) fn view(&self) -> Option<RequestView> {
        self.0.view()
    }

    /// Its head was read.
    #[cfg(test)]
    pub(crate) fn begin<B>(&self, request: &axum::http::Request<B>) {
        self.0.first_byte();
        self.0.head(request, 0);
    }
}

/// A copy of what is known of a request in flight.
#[derive(Clone, Debug)]
pub(crate) struct RequestView {
    /// Its id, as it stands in `X-Request-Id`.
    pub(crate) id: String,
    /// Its method.
    pub(crate) method: Method,
    /// Its path and query.
    pub(crate) uri: Uri,
    /// The name of the route that answers it: its pattern; `router`, or `none`.
    pub(crate) route: String,
    /// The client.
    pub(crate) peer: Peer,
    /// The time since its head was read.
    pub(crate) age: Duration,
    /// Bytes of the answer written to the socket.
    pub(crate) sent: u64,
    /// The step that it waits for.
    pub(crate) waiting: Waiting,
    /// True if it is a tunnel: it became another protocol.
    pub(crate) upgraded: bool,
}

impl RequestView {
    /// The step that it waits for, for people to read.
    #[must_use]
    pub(crate) fn waiting_for(&self) -> String {
        if self.upgraded { "either side of the upgraded connection".into() } else { self.waiting.to_string() }
    }
}
