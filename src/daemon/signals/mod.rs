//! The signals child: the only one that reads signals.
//!
//! Its loop waits on SIGTERM, SIGINT and SIGHUP. The first SIGTERM or SIGINT asks for a drain, the second for a cut,
//! the third ends the process at once. SIGHUP asks for a reload.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use super::child::{BoundChild, BoxError, Child, Context, Run};
use super::phase::{Cause, Lifecycle};
use super::reload::Reloads;

/// Its name in the tree.
pub(crate) const NAME: &str = "signals";

/// The child, bound.
#[derive(Clone, Debug)]
pub(super) struct Signals {
    lifecycle: Lifecycle,
    reloads: Reloads,
    /// Behind a lock so that a restarted child takes them over, with the signals that came meanwhile.
    handlers: Arc<OnceLock<Mutex<Handlers>>>,
}

#[derive(Debug)]
struct Handlers {
    term: Signal,
    int: Signal,
    hup: Signal,
    stops: u32,
}

impl Signals {
    /// It has nothing to configure.
    pub(super) fn bind(daemon: &Context) -> Self {
        let Context { observer, reloads, .. } = daemon.clone();
        Self { lifecycle: observer.lifecycle, reloads, handlers: Arc::default() }
    }

    /// Reads signals until it is told to stop.
    async fn read(self, child: Child) -> Result<(), BoxError> {
        child.doing("waiting for a signal");
        let handlers = self.handlers.get().ok_or("its handlers are not installed")?;
        let Handlers { term, int, hup, stops } = &mut *handlers.lock().await;
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

impl BoundChild for Signals {
    fn name(&self) -> &str {
        NAME
    }

    fn run(&self, child: Child) -> Run {
        Box::pin(self.clone().read(child))
    }

    fn starts_first(&self) -> bool {
        true
    }

    /// Installs the handlers, which cannot be removed again: from now on no signal ends the process by itself.
    fn install(&self) -> io::Result<()> {
        let handlers = Handlers {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            stops: 0,
        };
        // There is no other: a bound daemon runs once.
        let _ = self.handlers.set(Mutex::new(handlers));
        Ok(())
    }
}
