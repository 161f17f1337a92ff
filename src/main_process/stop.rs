//! The ways to the end: for another main process, or for good.

use rustix::process::Signal;
use sd_notify::NotifyState;
use tokio::time::Instant;

use super::worker::Part;
use super::{GRACE, MainProcess, Phase, assign};
use crate::Exit;
use crate::event;
use crate::systemd::channel::key;

impl MainProcess {
    /// Acts on a signal that asks for a stop: the first, the second, or the third.
    pub(super) fn stop(&mut self, name: &'static str) {
        self.signals += 1;
        match self.signals {
            1 if self.systemd.stores() && !self.last && name == "SIGTERM" => self.leave(),
            1 => {
                tracing::info!(
                    message_id = event::STOP_ASKED,
                    signal = name,
                    "{name}: draining; the same again cuts what is in flight"
                );
                self.nobody_can_follow();
                self.stop_workers(name, None);
            }
            2 => {
                tracing::warn!(
                    message_id = event::CUT_ASKED,
                    signal = name,
                    "{name} again: cutting what is in flight; once more exits at once"
                );
                let now = Instant::now();
                for worker in &mut self.workers {
                    worker.tell(&assign(key::CUT, key::SECOND_SIGNAL));
                    worker.kill_at = Some(now + GRACE);
                }
            }
            _ => {
                tracing::warn!(
                    message_id = event::CUT_ASKED,
                    signal = name,
                    "{name} for the third time: exiting at once"
                );
                for worker in &self.workers {
                    worker.signal(Signal::KILL);
                }
                self.exit = Some(Exit::Cut);
            }
        }
    }

    /// Ends this process at once, for another: the worker serves on until the next process's does, hands over to it, and
    /// finishes by itself. What it needs is in systemd's store.
    pub(super) fn leave(&mut self) {
        tracing::info!(
            message_id = event::STOP_ASKED,
            signal = "SIGTERM",
            "SIGTERM: the worker hands over to the next process"
        );
        self.systemd.tell(&[NotifyState::Stopping]);
        for worker in &self.workers {
            match worker.part {
                Part::Candidate => worker.signal(Signal::KILL),
                Part::Current | Part::Predecessor => worker.tell(&assign(key::HAND_OVER, key::LEFT)),
            }
        }
        self.exit = Some(Exit::Clean);
    }

    /// Notes that no process follows this one, and tells the workers.
    pub(super) fn nobody_follows(&mut self, why: &str) {
        if !std::mem::replace(&mut self.last, true) {
            tracing::info!("the service is being stopped: nothing is left for a next process");
            self.store.forget();
        }
        for worker in &self.workers {
            worker.tell(&assign(key::NOBODY_FOLLOWS, why));
        }
    }

    /// The same where nobody has announced it: another process may come, and nothing would reach it without a store.
    pub(super) fn nobody_can_follow(&mut self) {
        let lacks_store = self.systemd.listens() && !self.systemd.stores() && !self.last;
        self.nobody_follows(if lacks_store { key::NO_STORE } else { key::LAST_PROCESS });
    }

    /// Tells every worker to stop for good; all but one that does so by itself.
    pub(super) fn stop_workers(&mut self, cause: &str, but: Option<u32>) {
        self.phase = Phase::Stopping;
        self.start_at = None;
        self.next_tick = Instant::now();
        let until = self.settings.stop.and_then(|limit| Instant::now().checked_add(limit + GRACE));
        for worker in &mut self.workers {
            if worker.part == Part::Candidate {
                worker.signal(Signal::KILL);
            } else if Some(worker.pid) != but {
                worker.tell(&assign(key::STOP, cause));
            }
            worker.kill_at = match (worker.kill_at, until) {
                (Some(at), Some(until)) => Some(at.min(until)),
                (at, until) => at.or(until),
            };
        }
        self.exit_if_empty();
    }

    /// Tells systemd what a stop still waits for, once the worker that did so has ended.
    pub(super) fn tell_what_is_left(&self) {
        if !self.is_stopping() || self.current().is_some() {
            return;
        }
        let status = match &self.predecessors().collect::<Vec<_>>()[..] {
            [] => return,
            [one] => format!("draining; 1 predecessor: {}", one.drain_status()),
            several => format!("draining; {} predecessors", several.len()),
        };
        self.systemd.tell(&[NotifyState::Status(&status)]);
    }

    /// True once the service is to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    /// Ends this process with its last worker.
    pub(super) fn exit_if_empty(&mut self) {
        if self.is_stopping() && self.workers.is_empty() {
            self.exit.get_or_insert(self.last_exit);
        }
    }
}
