//! The systemd child: the only one that talks to the service manager.
//!
//! Its loop waits on the phase and a tick. It tells READY once everything is served, STATUS while serving and each
//! second of a drain, STOPPING and `EXTEND_TIMEOUT_USEC` while draining. Its `watchdog` pings from a thread of its
//! own. Without `NOTIFY_SOCKET` it waits for the end and says nothing.

mod watchdog;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use self::watchdog::Watchdog;
use super::child::{BoundChild, BoxError, Child, Context, Run};
use super::observer::Observer;
use super::phase::Phase;
use crate::event;
use crate::systemd::channel::key;
use crate::systemd::manager::{Manager, one_line};

/// Its name in the tree.
pub(crate) const NAME: &str = "systemd";

/// The time between two looks at STATUS while serving; it is sent when it has changed.
const SERVING_TICK: Duration = Duration::from_secs(5);
/// The time between two reports of a drain, each of which extends its timeout.
const DRAINING_TICK: Duration = Duration::from_secs(1);
/// The length of an extension: many ticks, so that a busy machine may miss some.
const EXTENSION: Duration = Duration::from_secs(15);

/// The child, with the parts of the daemon that it reports on.
#[derive(Clone, Debug)]
pub(super) struct Systemd {
    observer: Observer,
    manager: Manager,
    /// True if the manager is a main process, which is told more than systemd.
    has_main_process: bool,
    watchdog: Arc<OnceLock<Watchdog>>,
}

impl Systemd {
    /// It has nothing to configure: the unit does that.
    pub(super) fn bind(daemon: &Context) -> Self {
        let Context { observer, manager, link, .. } = daemon.clone();
        Self { observer, manager, has_main_process: link.is_some(), watchdog: Arc::default() }
    }

    /// Speaks for the daemon until it is told to stop.
    async fn speak(self, child: Child) -> Result<(), BoxError> {
        if !self.manager.listens() {
            child.stopping().await;
            return Ok(());
        }
        let lifecycle = &self.observer.lifecycle;
        let mut phase = lifecycle.watch();
        tokio::select! {
            _ = phase.wait_for(|p| *p != Phase::Starting) => {}
            () = child.stopping() => return Ok(()),
        }
        let line = self.line();
        // A stop may come before anything is served.
        if lifecycle.phase() == Phase::Serving {
            child.doing("reporting what is served");
            self.manager.tell(&[NotifyState::Ready, NotifyState::Status(&line)]);
        }
        tokio::select! {
            _ = phase.wait_for(|p| *p != Phase::Serving) => {}
            never = self.report_serving(line) => match never {},
        }
        child.doing("reporting the drain");
        self.manager.tell(&[NotifyState::Stopping]);
        tokio::select! {
            () = child.stopping() => {}
            never = self.report_draining() => match never {},
        }
        self.manager.tell(&[NotifyState::Status(&self.line())]);
        Ok(())
    }

    fn line(&self) -> String {
        one_line(&self.observer.line())
    }

    /// How far the drain is, for the main process, which tells the worker that serves.
    fn progress(&self) -> Option<String> {
        let json = serde_json::to_string(&self.observer.drain_progress()).ok()?;
        self.has_main_process.then(|| format!("{}={json}", key::DRAIN))
    }

    /// `told` is the line that the manager has.
    async fn report_serving(&self, mut told: String) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(SERVING_TICK).await;
            let line = self.line();
            if line != told {
                self.manager.tell(&[NotifyState::Status(&line)]);
                told = line;
            }
        }
    }

    async fn report_draining(&self) -> std::convert::Infallible {
        let mut tick = interval(DRAINING_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
        loop {
            // The first tick is now: the first extension must come before the unit's own timeout can pass.
            tick.tick().await;
            let (line, progress) = (self.line(), self.progress());
            let mut states = vec![NotifyState::ExtendTimeoutUsec(extension), NotifyState::Status(&line)];
            states.extend(progress.as_deref().map(NotifyState::Custom));
            self.manager.tell(&states);
        }
    }
}

impl BoundChild for Systemd {
    fn name(&self) -> &str {
        NAME
    }

    fn run(&self, child: Child) -> Run {
        Box::pin(self.clone().speak(child))
    }

    fn install(&self) -> io::Result<()> {
        match Watchdog::start(self.observer.clone(), self.manager.clone()) {
            Ok(watchdog) => _ = self.watchdog.set(watchdog),
            Err(error) => tracing::error!(message_id = event::START_FAILED, %error, "there is no watchdog"),
        }
        Ok(())
    }
}
