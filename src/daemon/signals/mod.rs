//! The signals child: the only one that reads signals.
//!
//! Its loop waits on SIGTERM, SIGINT and SIGHUP. The first SIGTERM or SIGINT asks for a drain, the second for a cut,
//! the third ends the process at once. SIGHUP asks for a reload.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use super::child::{BoxError, Child};
use super::phase::{Cause, Lifecycle};
use super::reload::Reloads;

/// Its name in the tree.
pub(crate) const NAME: &str = "signals";

/// It has nothing to configure.
pub(crate) type Config = ();

/// The handlers, installed.
#[derive(Clone, Debug)]
pub(super) struct Signals {
    lifecycle: Lifecycle,
    reloads: Reloads,
    /// Behind a lock so that a restarted child takes them over, with the signals that came meanwhile.
    handlers: Arc<Mutex<Handlers>>,
}

#[derive(Debug)]
struct Handlers {
    term: Signal,
    int: Signal,
    hup: Signal,
    stops: u32,
}

impl Signals {
    /// Installs the handlers: from now on no signal ends the process by itself.
    pub(super) fn bind((): Config, lifecycle: Lifecycle, reloads: Reloads) -> io::Result<Self> {
        let handlers = Handlers {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            stops: 0,
        };
        Ok(Self { lifecycle, reloads, handlers: Arc::new(Mutex::new(handlers)) })
    }

    /// Reads signals until it is told to stop.
    pub(super) async fn run(self, child: Child) -> Result<(), BoxError> {
        child.doing("waiting for a signal");
        let Handlers { term, int, hup, stops } = &mut *self.handlers.lock().await;
        loop {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                _ = hup.recv() => {
                    self.reloads.ask_for_the_log();
                    continue;
                }
                () = child.stopping() => return Ok(()),
            };
            *stops += 1;
            match stops {
                1 => {
                    tracing::info!("{name}: draining; the same again cuts what is in flight");
                    self.lifecycle.stop(Cause::Signal(name));
                }
                2 => {
                    tracing::warn!("{name} again: cutting what is in flight; once more exits at once");
                    self.lifecycle.cut();
                }
                _ => {
                    tracing::warn!("{name} for the third time: exiting at once");
                    self.lifecycle.abandon();
                }
            }
        }
    }
}
