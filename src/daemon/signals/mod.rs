//! The signals child: the only one that reads signals, and the commands of the main process.
//!
//! Its loop waits on SIGTERM, SIGINT, SIGHUP, the main process, and the end of the time without one. The first SIGTERM or
//! SIGINT asks for a drain, the second for a cut, the third ends the process at once. SIGHUP asks for a reload.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::child::{BoundChild, BoxError, Child, Context, Run};
use super::link::{Command, Link};
use super::phase::{Cause, Lifecycle};
use crate::event;
use crate::systemd::channel::key;
use crate::systemd::manager::one_line;

/// Its name in the tree.
pub(crate) const NAME: &str = "signals";

/// The longest time that a worker whose main process has left serves on by itself, until another main process has a worker
/// that serves. It is that long only where the other one needs what this one holds, such as an address that overlaps, or
/// does not come up.
const INTERIM: Duration = Duration::from_secs(1);

/// The child, bound.
#[derive(Clone, Debug)]
pub(super) struct Signals {
    daemon: Context,
    /// Behind a lock so that a restarted child takes them over, with the signals that came meanwhile.
    handlers: Arc<OnceLock<Mutex<Handlers>>>,
}

#[derive(Debug)]
struct Handlers {
    term: Signal,
    int: Signal,
    hup: Signal,
    stops: u32,
    /// The time at which it hands over, and the cause, once its main process has left.
    interim: Option<(Instant, Cause)>,
}

impl Signals {
    /// It has nothing to configure.
    pub(super) fn bind(daemon: &Context) -> Self {
        Self { daemon: daemon.clone(), handlers: Arc::default() }
    }

    /// Reads signals and commands until it is told to stop.
    async fn read(self, child: Child) -> Result<(), BoxError> {
        child.doing("waiting for a signal");
        let handlers = self.handlers.get().ok_or("its handlers are not installed")?;
        let Handlers { term, int, hup, stops, interim } = &mut *handlers.lock().await;
        loop {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                _ = hup.recv() => {
                    self.daemon.reloads.ask_for_the_log();
                    continue;
                }
                command = self.command() => {
                    self.obey(command, interim);
                    continue;
                }
                cause = over(interim) => {
                    self.lifecycle().stop(cause);
                    continue;
                }
                () = child.stopping() => return Ok(()),
            };
            *stops += 1;
            match stops {
                1 => {
                    tracing::info!(
                        message_id = event::STOP_ASKED,
                        signal = name,
                        "{name}: draining; the same again cuts what is in flight"
                    );
                    self.lifecycle().stop(Cause::Signal(name));
                }
                2 => {
                    tracing::warn!(
                        message_id = event::CUT_ASKED,
                        signal = name,
                        "{name} again: cutting what is in flight; once more exits at once"
                    );
                    self.lifecycle().cut(key::SECOND_SIGNAL);
                }
                _ => {
                    tracing::warn!(
                        message_id = event::CUT_ASKED,
                        signal = name,
                        "{name} for the third time: exiting at once"
                    );
                    self.lifecycle().abandon();
                }
            }
        }
    }

    fn lifecycle(&self) -> &Lifecycle {
        &self.daemon.observer.lifecycle
    }

    /// Returns the next command of the main process; never without one.
    async fn command(&self) -> Command {
        match &self.daemon.link {
            Some(link) => link.command().await,
            None => std::future::pending().await,
        }
    }

    fn obey(&self, command: Command, interim: &mut Option<(Instant, Cause)>) {
        let Context { observer, metrics, manager, handover, reloads, go, alone, link, retired, .. } =
            &self.daemon;
        let lifecycle = &observer.lifecycle;
        match command {
            Command::Go { succeeds } => {
                if succeeds {
                    metrics.ledger().await_predecessor();
                }
                if link.as_ref().is_some_and(Link::is_beside) {
                    metrics.reloaded(true);
                }
                // Whoever waits for this shows what was noted before.
                go.cancel();
            }
            Command::Alone => alone.cancel(),
            Command::HandOver => {
                handover.succeeded();
                reloads.moved();
                if let Some(link) = link {
                    link.confirm_singletons();
                    if retired.is_cancelled() {
                        link.retired();
                    }
                }
                lifecycle.stop(interim.take().map_or(Cause::Reload, |(_, cause)| cause));
            }
            Command::Leaves => {
                reloads.moved();
                interim.get_or_insert((Instant::now() + INTERIM, Cause::Restart));
            }
            // One that does not serve yet has nothing to bridge.
            Command::Gone if !go.is_cancelled() => lifecycle.stop(Cause::MainProcessGone),
            Command::Gone => {
                reloads.moved();
                interim.get_or_insert((Instant::now() + INTERIM, Cause::MainProcessGone));
            }
            Command::Orphaned => {
                tracing::info!("nothing is kept for a next process: stopping for good");
                reloads.moved();
                handover.nobody_follows();
                self.stop_for_good(Cause::MainProcessGone);
            }
            Command::NobodyFollows { lacks_store } => {
                if lacks_store {
                    handover.lacks_store();
                }
                handover.nobody_follows();
            }
            Command::Stop(cause) => self.stop_for_good(Cause::Signal(cause)),
            Command::Cut(by) => lifecycle.cut(by),
            Command::Answer(message) => {
                // It is told once, beside the answers to those who asked.
                if message.value(key::REFUSED) == Some(key::NOBODY) {
                    metrics.reloaded(false);
                }
                if let Some(reason) = reloads.answer(&message) {
                    observer.reload_failed(reason);
                    manager.tell(&[NotifyState::Status(&one_line(&observer.line()))]);
                }
            }
            Command::News(news) => observer.told(news),
        }
    }

    /// Asks for a stop that no other worker goes on from. One that hands over has had more time, because it held up
    /// nobody; any other has its `delay` and `deadline` anyway, from when it was asked first.
    fn stop_for_good(&self, cause: Cause) {
        let lifecycle = self.lifecycle();
        // First of all: what a drain says at its beginning is the time that it has.
        lifecycle.blame(cause.clone());
        if lifecycle.cause().is_some_and(Cause::is_handover) {
            let deadline = self.daemon.shutdown.deadline;
            lifecycle.hurry(deadline.and_then(|deadline| Instant::now().checked_add(deadline)));
        }
        lifecycle.stop(cause);
    }
}

/// Returns when an interim is over, with the cause for which it began.
async fn over(interim: &mut Option<(Instant, Cause)>) -> Cause {
    if let Some((end, _)) = interim {
        sleep_until(*end).await;
    }
    match interim.take() {
        Some((_, cause)) => cause,
        None => std::future::pending().await,
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
            interim: None,
        };
        // There is no other: a bound daemon runs once.
        let _ = self.handlers.set(Mutex::new(handlers));
        Ok(())
    }
}
