//! The handshake of TLS, before a connection's first request.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::StatusCode;

use super::task::{Closing, Parked, Polled, Stage, last_answer};
use super::{Command, Waiter};
use crate::server::stream::ClientStream;
use crate::tls::{Acceptor, Failed, Handshake, Reason};

/// A connection whose client has yet to agree with the server on TLS.
///
/// A command to leave or to finish waits for that: what is half agreed on cannot travel, and the client may have sent its
/// request already.
pub(super) struct Handshaking {
    stream: Box<ClientStream>,
    progress: Progress,
}

/// A handshake takes some ten KiB. Until its client has sent a byte there is none of it.
enum Progress {
    Awaited(Acceptor),
    Begun(Handshake),
}

impl Handshaking {
    pub(super) fn stage(stream: Box<ClientStream>, tls: &Acceptor) -> Stage {
        stream.connection().handshake_begins();
        Stage::Handshaking(Box::new(Self { stream, progress: Progress::Awaited(tls.clone()) }))
    }

    pub(super) fn poll(mut self: Box<Self>, cx: &mut Context<'_>) -> Polled {
        let connection = Arc::clone(self.stream.connection());
        let handshakes = &connection.registry.totals().handshakes;
        match connection.commands.poll(Waiter::Task, cx) {
            Command::Serve | Command::Carry | Command::Finish => {}
            Command::TimeOut => {
                handshakes.failed(Reason::TimedOut);
                return Polled::Next(Stage::Gone);
            }
            Command::Drop | Command::Cut => return Polled::Next(Stage::Gone),
        }
        let Some(socket) = self.stream.socket() else { unreachable!("a connection has one handshake") };
        if let Progress::Awaited(tls) = &self.progress {
            // An error shows when it is read.
            if socket.poll_readable(cx).is_pending() {
                return Polled::Pending(Stage::Handshaking(self));
            }
            self.progress = Progress::Begun(tls.begin());
        }
        let Progress::Begun(handshake) = &mut self.progress else { unreachable!("it has begun") };
        let now = connection.registry.watchdog_now();
        let polled = connection.progress.task.timed(now, || handshake.poll(cx, socket));
        Polled::Next(match polled {
            Poll::Pending => return Polled::Pending(Stage::Handshaking(self)),
            Poll::Ready(Ok(records)) => {
                handshakes.succeeded(records.session());
                Stage::Parked(Parked(Box::new(self.stream.secured(records))))
            }
            Poll::Ready(Err(Failed { reason, error })) => {
                tracing::debug!(peer = %connection.peer(), error, "a handshake failed");
                handshakes.failed(reason);
                // Whoever has taken the port for one of HTTP is told so.
                let answer = (reason == Reason::PlainHttp).then(|| last_answer(StatusCode::BAD_REQUEST));
                match (reason, answer) {
                    (Reason::ClientGone, _) => Stage::Gone,
                    // Its request may be on its way behind its Finished: to close before it comes would reset the connection,
                    // and destroy the alert.
                    (_, None) => Closing::after_more(self.stream),
                    (_, answer) => Closing::stage(self.stream, answer),
                }
            }
        })
    }
}
