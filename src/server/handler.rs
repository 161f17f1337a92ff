//! The code that answers a server's requests: the config's routes, or an axum `Router`.

use std::fmt;
use std::future::{Future, Ready};
use std::pin::Pin;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use tower::Service;

use super::connection::InFlight;
use super::peer::Peer;
use super::request_id::X_REQUEST_ID;
use super::trace;
use crate::event;

/// Answers the requests of a server.
///
/// The config's routes are one, and an axum `Router` is another: a `Router` around the routes would cost each request
/// several allocations, also where the answer is fixed.
pub(crate) trait Handler: fmt::Debug + Send + Sync {
    /// The answer to a request.
    fn answer(&self, request: Request, in_flight: InFlight) -> Answering;
}

/// An answer that is there at once, or one that is yet to be made.
pub(crate) type Answering = Either<Ready<Response>, Pin<Box<dyn Future<Output = Response> + Send>>>;

/// The answer of a handler that has failed.
pub(super) fn failed() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, "the handler failed\n").into_response()
}

/// The answer of a handler that has panicked. The panic hook has logged the message and its place, and knows nothing of
/// requests.
pub(super) fn panicked(in_flight: &InFlight) -> Response {
    let request_id = in_flight.id();
    let path = in_flight.path();
    tracing::error!(
        message_id = event::HANDLER_PANICKED,
        %request_id,
        path,
        "a handler has panicked: its client gets a 500"
    );
    failed()
}

impl Handler for Router {
    /// Its handlers find the [`InFlight`], and the client's address, among the request's extensions; the request's id and
    /// its trace among its fields.
    fn answer(&self, mut request: Request, in_flight: InFlight) -> Answering {
        if let Peer::Tcp(peer) = in_flight.peer() {
            request.extensions_mut().insert(ConnectInfo(peer));
        }
        let id = in_flight.id();
        request.headers_mut().insert(X_REQUEST_ID, id.value());
        trace::pass_on(request.headers_mut(), &id);
        request.extensions_mut().insert(in_flight);
        let answer = self.clone().call(request);
        Either::Right(Box::pin(async move {
            let Ok(response) = answer.await;
            response
        }))
    }
}
