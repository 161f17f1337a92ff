//! The replacement of workers: how one starts, takes over, and ends.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{Signal, WaitStatus};
use sd_notify::NotifyState;
use tokio::time::Instant;

use super::reload::refusal;
use super::worker::{Part, STORED, Worker, describe};
use super::{Event, GRACE, MainProcess, NEWS, Phase, Predecessor, Refusal, Settings, assign};
use crate::Exit;
use crate::event;
use crate::systemd::channel::{Message, key};
use crate::systemd::manager::one_line;

/// The wait before the next attempt, after a worker could not even be started.
const RETRY: Duration = Duration::from_secs(1);

impl MainProcess {
    /// The worker that serves.
    pub(super) fn current(&self) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.part == Part::Current)
    }

    /// The worker that is about to serve.
    pub(super) fn candidate(&self) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.part == Part::Candidate)
    }

    /// The worker of this process number.
    pub(super) fn worker(&mut self, pid: u32) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    /// Starts a worker beside the current one, or alone.
    pub(super) fn start_worker(&mut self) {
        self.start_at = None;
        let beside = self.current().is_some();
        match Worker::start(&self.program, &self.store, beside) {
            Ok(worker) => self.follow(worker),
            Err(error) => {
                let why = format!("cannot start {}: {error}", self.program.path().display());
                if beside {
                    self.refuse(&Refusal { in_short: why.clone(), said: why });
                } else if self.restarts.is_empty() {
                    tracing::error!(message_id = event::START_FAILED, "{why}");
                    self.exit = Some(Exit::Failed);
                } else {
                    // Such as for want of memory, which may pass. Clients wait in the backlog meanwhile.
                    tracing::error!(message_id = event::START_FAILED, "{why}; trying again in {RETRY:?}");
                    self.start_at = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    /// Counts a worker among those of this process, and listens to it.
    pub(super) fn follow(&mut self, mut worker: Worker) {
        if worker.part == Part::Candidate {
            let limit = self.settings.ready_timeout;
            // At a start of the service it is systemd that waits, as long as its TimeoutStartSec= says.
            worker.kill_at = Some(worker.since + limit).filter(|_| self.phase != Phase::Starting);
            self.store.leave(&format!("{STORED}{}", worker.pid), worker.channel().as_fd());
        } else if worker.part == Part::Predecessor {
            worker.finishes_within(self.settings.deadline);
        }
        let (ears, heard, pid) = (worker.ears(), self.heard.clone(), worker.pid);
        self.tasks.spawn(async move {
            while let Some(message) = ears.hear().await {
                if heard.send(Event::Said(pid, message)).await.is_err() {
                    return;
                }
            }
            let _ = heard.send(Event::Ended(pid)).await;
        });
        self.workers.push(worker);
    }

    /// Takes in what a worker said.
    pub(super) fn said(&mut self, pid: u32, message: Message) {
        let has_current = self.current().is_some();
        let Some(worker) = self.worker(pid) else { return };
        let (is_current, is_candidate) = (worker.part == Part::Current, worker.part == Part::Candidate);
        let may_store = is_current || (worker.part == Part::Candidate && !has_current);
        if let Some(settings) = message.value(key::SETTINGS).and_then(|json| serde_json::from_str(json).ok())
        {
            worker.settings = settings;
        }
        if let Some(reason) = message.value(key::FAILED) {
            worker.failed = Some(reason.to_owned());
        }
        let has_failed = worker.failed.is_some();
        if let Some(status) = message.value("STATUS") {
            one_line(status).clone_into(&mut worker.status);
        }
        if let Some(drain) = message.value(key::DRAIN).and_then(|json| serde_json::from_str(json).ok()) {
            worker.drain = Some((drain, Instant::now()));
        }
        if message.has(key::RETIRED) {
            worker.retires_by = None;
        }
        match message.value("WATCHDOG") {
            Some("1") => worker.beat = Some(Instant::now()),
            Some("trigger") => {
                tracing::error!(
                    message_id = event::WORKER_ENDED,
                    worker = pid,
                    "ending worker {pid}: {}",
                    worker.status
                );
                worker.signal(Signal::ABORT);
            }
            _ => {}
        }
        if is_current && message.has("READY") {
            worker.beat = Some(Instant::now());
            worker.kill_at = None;
            if self.phase == Phase::Starting {
                self.phase = Phase::Serving;
                // They have served until now, for an earlier main process.
                for worker in self.workers.iter_mut().filter(|worker| worker.part == Part::Predecessor) {
                    worker.hand_over();
                }
            }
            // All that it had to leave has come before. Its successor comes beside it.
            self.systemd.check_room(2_usize.saturating_sub(self.workers.len()));
        }
        if is_current {
            self.pass_on(&message);
        }
        if is_current && message.has("STOPPING") && self.phase == Phase::Serving {
            self.replace_unasked(pid, "stops by itself");
        }
        // One that a stop has ended, or the end of its time, may have said it just before.
        if message.has(key::BOUND) && is_candidate && !has_failed && !self.is_stopping() {
            self.promote(pid);
        }
        if message.has("STATUS") && !is_current {
            self.news_at.get_or_insert(Instant::now() + NEWS);
        }
        // A predecessor that was stopped is sent SIGHUP by the kernel once its main process has ended: no wish of anyone.
        if is_current && let Some(number) = message.value(key::RELOAD) {
            self.reload((number != key::NOBODY).then(|| (pid, number.to_owned())));
        }
        if message.has(key::LAST) {
            self.nobody_follows(key::LAST_PROCESS);
        }
        if message.has(key::STOPS) && is_current {
            self.nobody_follows(key::LAST_PROCESS);
            self.stop_workers("the caller", Some(pid));
        }
        match message.value(key::SINGLETONS) {
            Some(key::WANTED) => self.note_singletons(pid, |worker| worker.wants_singletons = true),
            Some(key::RELEASED) => self.note_singletons(pid, |worker| worker.holds_singletons = false),
            _ => {}
        }
        if may_store && let Some(name) = message.value("FDNAME") {
            let name = name.to_owned();
            if message.has("FDSTOREREMOVE") {
                self.store.drop(&name);
            }
            if message.has("FDSTORE") {
                for descriptor in message.descriptors {
                    self.store.keep(&name, descriptor);
                }
            }
        }
    }

    /// Notes what a worker says of its singletons, and lets the current one run its own once nobody else does.
    fn note_singletons(&mut self, pid: u32, note: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.worker(pid) {
            note(worker);
        }
        self.grant_singletons();
    }

    fn grant_singletons(&mut self) {
        let is_held =
            self.workers.iter().any(|worker| worker.holds_singletons && worker.part != Part::Current);
        if let Some(current) = self.workers.iter_mut().find(|worker| worker.part == Part::Current)
            && current.wants_singletons
            && !is_held
        {
            current.wants_singletons = false;
            current.holds_singletons = true;
            current.tell(&assign(key::ALONE, "1"));
        }
    }

    /// Passes on to systemd what the current worker says of the service.
    fn pass_on(&self, message: &Message) {
        let mut states = Vec::new();
        // While another worker takes over, or is about to, it would end that reload: this process says when it has ended.
        if message.has("READY") && self.candidate().is_none() && !self.is_unannounced {
            states.push(NotifyState::Ready);
        }
        if message.has("STOPPING") && self.is_stopping() {
            states.push(NotifyState::Stopping);
        }
        if let Some(status) = message.value("STATUS") {
            states.push(NotifyState::Status(status));
        }
        if !states.is_empty() {
            self.systemd.tell(&states);
        }
    }

    /// Lets a candidate serve, in the place of the current worker if there is one.
    fn promote(&mut self, pid: u32) {
        let old = self.workers.iter().position(|worker| worker.part == Part::Current);
        let limit = self.settings.ready_timeout;
        let mut go = assign(key::GO, "1");
        let mut succeeds = false;
        for worker in self.workers.iter_mut().filter(|worker| worker.part != Part::Candidate) {
            // One that has told another already tells no more than the rest.
            succeeds |= !std::mem::replace(&mut worker.has_heir, true);
        }
        if succeeds {
            go = format!("{go}\n{}", assign(key::SUCCEEDS, "1"));
        }
        let Some(worker) = self.worker(pid) else { return };
        worker.becomes(Part::Current);
        // The same time once more to say that it is ready.
        worker.kill_at = worker.kill_at.map(|_| worker.since + limit);
        self.settings = worker.settings.clone();
        self.answer_reloaded(pid);
        if let Some(old) = old {
            let old_pid = self.workers[old].pid;
            tracing::info!(
                message_id = event::WORKER_REPLACED,
                worker = pid,
                predecessor = old_pid,
                "worker {pid} takes over from worker {old_pid}"
            );
            self.replace(old);
        } else if self.phase == Phase::Starting {
            // They are of an earlier main process, and what their own config allows is not known.
            let deadline = self.settings.deadline;
            for worker in self.workers.iter_mut().filter(|worker| worker.part == Part::Predecessor) {
                worker.finishes_within(deadline);
            }
        }
        self.limit_predecessors();
        // Before it serves: its first scrape shows them.
        self.tell_predecessors();
        if let Some(worker) = self.worker(pid) {
            worker.tell(&go);
        }
        self.note_upgrade(old.is_some() && self.program.is_another());
        self.is_unannounced = true;
    }

    /// True while a worker that has taken over is not the only one yet that accepts clients. Before the first is ready it may
    /// be replaced by another at any time.
    pub(super) fn is_being_announced(&self) -> bool {
        self.is_unannounced && self.phase == Phase::Serving && self.exit.is_none()
    }

    /// Tells systemd that the service is ready, or its reload over, once the current worker is ready and no other accepts
    /// clients any more.
    pub(super) fn announce(&mut self) {
        let is_ready = self.current().is_some_and(|worker| worker.beat.is_some());
        let is_alone = self.workers.iter().all(|worker| worker.retires_by.is_none());
        if self.is_being_announced() && is_ready && is_alone {
            self.is_unannounced = false;
            self.systemd.tell(&[NotifyState::Ready]);
            self.go_on_reloading();
        }
    }

    /// Answers those who asked for the reload that has brought this worker.
    fn answer_reloaded(&mut self, pid: u32) {
        for (asking, number) in std::mem::take(&mut self.asked).into_iter().flatten() {
            let text = serde_json::Value::from(pid.to_string());
            self.answer(asking, &format!("{}={number}\n{}={text}", key::RELOADED, key::TEXT));
        }
    }

    /// Makes the current worker a predecessor.
    fn replace(&mut self, index: usize) {
        let old = &mut self.workers[index];
        old.becomes(Part::Predecessor);
        old.finishes_within(old.settings.deadline);
        old.hand_over();
    }

    /// Cuts the oldest predecessors, if there are too many.
    fn limit_predecessors(&mut self) {
        let predecessors: Vec<_> = self.predecessors().map(|worker| worker.pid).collect();
        let too_many = predecessors.len().saturating_sub(self.settings.predecessors as usize);
        for pid in predecessors.into_iter().take(too_many) {
            if let Some(worker) = self.worker(pid) {
                tracing::warn!(
                    message_id = event::WORKER_CUT,
                    worker = pid,
                    "cutting worker {pid}: more than `handover.predecessors` are finishing; it had {}",
                    worker.status
                );
                worker.tell(&assign(key::CUT, key::TOO_MANY));
                worker.kill_at = Some(Instant::now() + GRACE);
            }
        }
    }

    /// Starts another worker in the place of one that stops unasked, or should, while that one finishes.
    pub(super) fn replace_unasked(&mut self, pid: u32, how: &str) {
        if !self.may_restart() {
            self.give_up(pid, how);
        } else if let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) {
            self.replace(index);
            self.restart(pid, how);
        }
    }

    /// The predecessors, oldest first.
    pub(super) fn predecessors(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.part == Part::Predecessor)
    }

    /// Tells the current worker of its predecessors and of restarts, for its status.
    pub(super) fn tell_predecessors(&self) {
        let Some(current) = self.current() else { return };
        let predecessors: Vec<_> = self
            .predecessors()
            .map(|worker| Predecessor {
                pid: worker.pid,
                since: worker.since.elapsed().as_secs_f64(),
                status: worker.drain_status().to_owned(),
                in_flight: worker.drain.and_then(|(drain, _)| drain.in_flight),
                left: worker.left().map(|left| left.as_secs_f64()),
            })
            .collect();
        if let Ok(json) = serde_json::to_string(&predecessors) {
            let restarts = assign(key::RESTARTED, &self.restarted.to_string());
            current.tell(&format!("{}\n{restarts}", assign(key::PREDECESSORS, &json)));
        }
    }

    /// Acts on the end of a worker.
    pub(super) fn ended(&mut self, pid: u32) {
        let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let mut worker = self.workers.remove(index);
        let status = worker.reap();
        self.systemd.unstore(&format!("{STORED}{pid}"));
        let how = describe(status);
        let code = status.and_then(WaitStatus::exit_status);
        // One that had to be killed has cut whatever it had.
        let exit = code.map_or(if self.is_stopping() { Exit::Cut } else { Exit::Failed }, exit_of);
        match worker.part {
            Part::Current if self.is_stopping() => self.last_exit = exit,
            _ if self.is_stopping() => {}
            Part::Candidate if !self.asked.is_empty() => {
                let refusal = refusal(&mut worker, &how);
                self.refuse(&refusal);
                if self.current().is_none() {
                    self.restart(pid, &how);
                }
            }
            // The first one: its log, or its stderr, says why.
            Part::Candidate | Part::Current if self.phase == Phase::Starting => self.exit = Some(exit),
            Part::Candidate | Part::Current => self.restart(pid, &how),
            // Of one that an earlier main process has started it is not known how it ended.
            Part::Predecessor if code.is_some() || status.is_none() => {
                tracing::info!(
                    message_id = event::WORKER_FINISHED,
                    worker = pid,
                    "worker {pid} {how}: it has finished"
                );
            }
            Part::Predecessor => {
                tracing::warn!(
                    message_id = event::WORKER_CUT,
                    worker = pid,
                    "worker {pid} {how} before it had finished: {}",
                    worker.status
                );
            }
        }
        self.grant_singletons();
        self.tell_predecessors();
        self.tell_what_is_left();
        self.exit_if_empty();
    }

    /// True if fewer workers were restarted lately than may be.
    fn may_restart(&mut self) -> bool {
        let Settings { max_restarts, window, .. } = self.settings;
        while self.restarts.front().is_some_and(|at| at.elapsed() > window) {
            self.restarts.pop_front();
        }
        self.restarts.len() < max_restarts as usize
    }

    /// Ends the service: at once where systemd starts the next process beside what the workers finish, else after they
    /// have.
    fn give_up(&mut self, pid: u32, how: &str) {
        let (earlier, window) = (self.restarts.len(), self.settings.window);
        tracing::error!(
            message_id = event::WORKER_GAVE_UP,
            worker = pid,
            cause = how,
            restarts = earlier,
            "worker {pid} {how}; {earlier} were restarted within {window:?}: giving up"
        );
        if self.systemd.stores() && !self.last {
            self.exit = Some(Exit::Failed);
        } else {
            self.last_exit = Exit::Failed;
            self.nobody_can_follow();
            self.stop_workers("the main process", None);
        }
    }

    /// Starts another worker in the place of one that ended unasked, or gives up.
    fn restart(&mut self, pid: u32, how: &str) {
        if !self.may_restart() {
            self.give_up(pid, how);
            return;
        }
        let now = Instant::now();
        let Settings { backoff, backoff_max, .. } = self.settings;
        let earlier = self.restarts.len();
        self.restarts.push_back(now);
        self.restarted += 1;
        let wait = match u32::try_from(earlier).unwrap_or(u32::MAX).checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => backoff.saturating_mul(1 << doublings.min(20)).min(backoff_max),
        };
        if let Some(candidate) = self.candidate() {
            tracing::error!(
                message_id = event::WORKER_ENDED,
                worker = pid,
                cause = how,
                "worker {pid} {how}; worker {} is about to serve",
                candidate.pid
            );
            return;
        }
        tracing::error!(
            message_id = event::WORKER_ENDED,
            worker = pid,
            cause = how,
            "worker {pid} {how}; starting another in {} ms",
            wait.as_millis()
        );
        self.start_at = Some(now + wait);
    }
}

/// The exit that a worker's exit code stands for.
fn exit_of(code: i32) -> Exit {
    [Exit::Clean, Exit::Usage, Exit::Cut, Exit::Config]
        .into_iter()
        .find(|exit| i32::from(exit.code()) == code)
        .unwrap_or(Exit::Failed)
}
