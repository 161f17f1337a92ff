//! The main process: it keeps what outlives a worker, and starts, watches and replaces workers. It serves nobody.
//!
//! To systemd it is the service; to a worker it is the manager, and speaks the same protocol (`systemd/channel.rs`). It
//! is a loop over what its workers say, signals, and one alarm. A worker is a candidate until it is ready, then the
//! current one until another takes over, then a predecessor that finishes what it has in flight.

mod program;
mod store;
mod worker;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Signal, WaitOptions, wait};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use self::program::Program;
use self::store::Store;
use self::worker::{Part, STORED, Worker, describe};
use crate::systemd::activation::{Inherited, LAST_GOOD};
use crate::systemd::channel::{Channel, Message, key};
use crate::systemd::manager::{Manager, one_line};
use crate::{Exit, logging};

/// The name of this process's own state, on its way to the program that takes its place.
const STATE: &str = "state";

/// The longest time without a heartbeat of the current worker, where systemd has no watchdog on the service.
const UNWATCHED: Duration = Duration::from_secs(30);
/// The time that a worker has to end once it was cut, or its own deadline has passed.
const GRACE: Duration = Duration::from_secs(5);
/// The time between two requests for more time while stopping, and what is asked for: many times that, so that a busy
/// machine may miss some.
const TICK: Duration = Duration::from_secs(1);
const EXTENSION: Duration = Duration::from_secs(15);
/// The messages that may wait to be handled.
const BACKLOG: usize = 64;

/// The part of a config that concerns the main process. A worker tells it before it serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The longest that a predecessor may take; `None` is "never".
    pub(crate) deadline: Option<Duration>,
    /// The most predecessors.
    pub(crate) predecessors: u32,
    /// The longest that a reload waits for the new worker.
    pub(crate) ready_timeout: Duration,
    /// The longest that a stop for good may take; `None` is "never".
    pub(crate) stop: Option<Duration>,
    /// The most restarts of a worker that ended unasked, within `window`.
    pub(crate) max_restarts: u32,
    /// The time in which they are counted.
    pub(crate) window: Duration,
    /// The wait before the second restart; each further one is twice as long. The first is at once.
    pub(crate) backoff: Duration,
    /// The longest wait.
    pub(crate) backoff_max: Duration,
}

/// Those of a config that says nothing.
impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Some(Duration::from_secs(60 * 60)),
            predecessors: 8,
            ready_timeout: Duration::from_secs(30),
            stop: Some(Duration::from_secs(30)),
            max_restarts: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// A predecessor, as the current worker's status shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Predecessor {
    /// Its process.
    pub(crate) pid: u32,
    /// The seconds since another took over.
    pub(crate) since: f64,
    /// What it said last of its state.
    pub(crate) status: String,
}

/// The reason why a reload changed nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// On one line, for STATUS.
    pub(crate) in_short: String,
    /// All of it.
    pub(crate) said: String,
}

/// The sender of a request for a reload: a worker, and the number by which it knows the answer.
type Asked = Option<(u32, String)>;

/// What happens to the main process.
enum Event {
    /// A worker said something.
    Said(u32, Message),
    /// A worker has ended.
    Ended(u32),
    Hangup,
    Stop(&'static str),
    /// Some child has ended.
    Child,
    Alarm,
}

/// This process's state, for the program that takes its place.
#[derive(Default, Serialize, Deserialize)]
struct State {
    current: Option<u32>,
    settings: Settings,
    last: bool,
}

/// Runs the main process to its end.
pub(crate) fn run() -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot set up the main process: {error}");
            return Exit::Failed;
        }
    };
    let exit = runtime.block_on(async {
        match MainProcess::new() {
            Ok(main) => main.run().await,
            Err(error) => {
                tracing::error!("cannot set up the main process: {error}");
                Exit::Failed
            }
        }
    });
    logging::flush();
    exit
}

struct MainProcess {
    program: Program,
    systemd: Manager,
    store: Store,
    workers: Vec<Worker>,
    settings: Settings,
    /// Requests for the reload that is under way; its candidate is a worker of that part.
    asked: Vec<Asked>,
    /// Requests that wait for the end of another reload.
    waiting: VecDeque<Asked>,
    /// The times of the last restarts of a worker that ended unasked.
    restarts: VecDeque<Instant>,
    /// The time of the next start of a worker, where none runs.
    start_at: Option<Instant>,
    /// True once it is known that no process follows this one.
    last: bool,
    /// True once the service is to end.
    stopping: bool,
    /// The number of signals that asked for that.
    signals: u32,
    /// The exit of the worker that served last.
    last_exit: Exit,
    /// The exit of this process, once it is to end.
    exit: Option<Exit>,
    next_tick: Instant,
    /// True once the current worker is of another program than this process.
    is_upgraded: bool,
    events: mpsc::Receiver<Event>,
    heard: mpsc::Sender<Event>,
    tasks: TaskTracker,
}

impl MainProcess {
    fn new() -> io::Result<Self> {
        let program = Program::of_this_process();
        let systemd = Manager::from_environment();
        let mut inherited = Inherited::from_environment();
        let state = inherited.take(STATE).pop().and_then(|state| read_state(state).ok());
        let channels = inherited.retain(|name| !name.starts_with(STORED));
        let kept = inherited.retain(|_| false);
        let (heard, events) = mpsc::channel(BACKLOG);
        let State { current, settings, last } = state.unwrap_or_default();
        let mut main = Self {
            program,
            store: Store::new(systemd.clone(), kept),
            systemd,
            workers: Vec::new(),
            settings,
            asked: Vec::new(),
            waiting: VecDeque::new(),
            restarts: VecDeque::new(),
            start_at: None,
            last,
            stopping: false,
            signals: 0,
            last_exit: Exit::Clean,
            exit: None,
            next_tick: Instant::now(),
            is_upgraded: false,
            events,
            heard,
            tasks: TaskTracker::new(),
        };
        for (name, channel) in channels {
            let pid = name.strip_prefix(STORED).and_then(|pid| pid.parse().ok());
            let part = if pid == current { Part::Current } else { Part::Predecessor };
            let worker = pid.ok_or(io::ErrorKind::InvalidData.into());
            match worker.and_then(|pid| Worker::adopt(pid, Channel::adopt(channel)?, part)) {
                Ok(worker) => main.follow(worker),
                // It has ended.
                Err(_) => main.systemd.unstore(&name),
            }
        }
        Ok(main)
    }

    async fn run(mut self) -> Exit {
        if !Program::has_title() {
            let error = self.exec(Program::command_of_this);
            tracing::warn!("cannot take the title {:?}: {error}", program::MAIN);
        }
        if let Err(error) = self.watch_signals() {
            tracing::error!("cannot install the signal handlers: {error}");
            return Exit::Failed;
        }
        for worker in &self.workers {
            if worker.part == Part::Predecessor {
                // One of an earlier main process; it may know already.
                worker.tell(&assign(key::HAND_OVER, "beside"));
            }
        }
        if self.current().is_none() {
            self.start_worker();
        }
        while self.exit.is_none() {
            if self.is_upgraded && self.candidate().is_none() && self.events.is_empty() {
                // Whoever has heard something can pass it on now, for there is room.
                tokio::task::yield_now().await;
                if self.events.is_empty() {
                    self.follow_upgrade();
                }
            }
            let alarm = self.alarm();
            let event = tokio::select! {
                Some(event) = self.events.recv() => event,
                () = sleep_until(alarm) => Event::Alarm,
            };
            self.handle(event);
        }
        self.exit.unwrap_or(Exit::Failed)
    }

    fn watch_signals(&self) -> io::Result<()> {
        let stops = [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")];
        let stops = stops.map(|(kind, name)| (kind, Event::Stop as fn(&'static str) -> Event, name));
        for (kind, event, name) in stops {
            self.watch_signal(kind, move || event(name))?;
        }
        self.watch_signal(SignalKind::hangup(), || Event::Hangup)?;
        self.watch_signal(SignalKind::child(), || Event::Child)
    }

    fn watch_signal(&self, kind: SignalKind, event: impl Fn() -> Event + Send + 'static) -> io::Result<()> {
        let mut signals = signal(kind)?;
        let heard = self.heard.clone();
        self.tasks.spawn(async move {
            while signals.recv().await.is_some() && heard.send(event()).await.is_ok() {}
        });
        Ok(())
    }

    /// Handles one event.
    fn handle(&mut self, event: Event) {
        match event {
            Event::Said(pid, message) => self.said(pid, message),
            Event::Ended(pid) => self.ended(pid),
            Event::Hangup => self.reload(None),
            Event::Stop(name) => self.stop(name),
            Event::Child => self.reap(),
            Event::Alarm => {}
        }
        self.act_on_time();
    }

    // ---- workers ----

    fn current(&self) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.part == Part::Current)
    }

    fn candidate(&self) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.part == Part::Candidate)
    }

    fn worker(&mut self, pid: u32) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    /// Starts a worker beside the current one, or alone.
    fn start_worker(&mut self) {
        self.start_at = None;
        let beside = self.current().is_some();
        match Worker::start(&self.program, &self.store, beside, LAST_GOOD) {
            Ok(worker) => self.follow(worker),
            Err(error) => {
                let why = format!("cannot start {}: {error}", self.program.path().display());
                if beside {
                    self.refuse(Refusal { in_short: why.clone(), said: why });
                } else {
                    tracing::error!("{why}");
                    self.exit = Some(Exit::Failed);
                }
            }
        }
    }

    fn follow(&mut self, mut worker: Worker) {
        if worker.part == Part::Candidate {
            let limit = self.settings.ready_timeout;
            let is_first = self.current().is_none() && self.restarts.is_empty();
            // At a start of the service it is systemd that waits, as long as its TimeoutStartSec= says.
            worker.kill_at = Some(worker.since + limit).filter(|_| !is_first);
            self.store.leave(&format!("{STORED}{}", worker.pid), worker.channel().as_fd());
        } else if worker.part == Part::Predecessor {
            worker.kill_at = self.settings.deadline.and_then(|limit| worker.since.checked_add(limit + GRACE));
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
    fn said(&mut self, pid: u32, message: Message) {
        let has_current = self.current().is_some();
        let Some(worker) = self.worker(pid) else { return };
        let is_current = worker.part == Part::Current;
        let may_store = is_current || (worker.part == Part::Candidate && !has_current);
        if let Some(settings) = message.value(key::SETTINGS).and_then(|json| serde_json::from_str(json).ok())
        {
            worker.settings = settings;
        }
        if let Some(reason) = message.value(key::FAILED) {
            worker.failed = Some(reason.to_owned());
        }
        if let Some(status) = message.value("STATUS") {
            one_line(status).clone_into(&mut worker.status);
        }
        match message.value("WATCHDOG") {
            Some("1") => worker.beat = Instant::now(),
            Some("trigger") => {
                tracing::error!(worker = pid, "ending worker {pid}: {}", worker.status);
                worker.signal(Signal::ABORT);
            }
            _ => {}
        }
        if message.has(key::BOUND) && worker.part == Part::Candidate {
            self.promote(pid);
        }
        if is_current {
            self.pass_on(&message);
        }
        if is_current && message.has("STOPPING") && !self.stopping {
            self.replace_unasked(pid);
        }
        if message.has("STATUS") && !is_current {
            self.tell_predecessors();
        }
        if let Some(number) = message.value(key::RELOAD) {
            self.reload(Some((pid, number.to_owned())));
        }
        if message.has(key::LAST) {
            self.nobody_follows();
        }
        if message.has(key::STOPS) && is_current {
            self.nobody_follows();
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
        if message.has("READY") {
            states.push(NotifyState::Ready);
        }
        if message.has("STOPPING") && self.stopping {
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
        let Some(worker) = self.worker(pid) else { return };
        worker.becomes(Part::Current);
        worker.kill_at = None;
        worker.tell(&assign(key::GO, "1"));
        self.settings = worker.settings.clone();
        if let Some(old) = old {
            self.systemd.tell(&[NotifyState::Ready]);
            let old_pid = self.workers[old].pid;
            tracing::info!(
                worker = pid,
                predecessor = old_pid,
                "worker {pid} takes over from worker {old_pid}"
            );
            for (asking, number) in std::mem::take(&mut self.asked).into_iter().flatten() {
                let text = serde_json::Value::from(pid.to_string());
                self.answer(asking, &format!("{}={number}\n{}={text}", key::RELOADED, key::TEXT));
            }
            self.replace(old);
        }
        self.tell_predecessors();
        self.is_upgraded = old.is_some() && self.program.is_another();
        self.go_on_reloading();
    }

    /// Makes the current worker a predecessor.
    fn replace(&mut self, index: usize) {
        let deadline = self.settings.deadline;
        let old = &mut self.workers[index];
        old.becomes(Part::Predecessor);
        old.kill_at = deadline.and_then(|limit| old.since.checked_add(limit + GRACE));
        old.tell(&assign(key::HAND_OVER, "beside"));
        let predecessors: Vec<_> = self.predecessors().map(|worker| worker.pid).collect();
        let too_many = predecessors.len().saturating_sub(self.settings.predecessors as usize);
        for pid in predecessors.into_iter().take(too_many) {
            if let Some(worker) = self.worker(pid) {
                tracing::warn!(
                    worker = pid,
                    "cutting worker {pid}: more than `handover.predecessors` are finishing; it had {}",
                    worker.status
                );
                worker.tell(&assign(key::CUT, "handover.predecessors"));
                worker.kill_at = Some(Instant::now() + GRACE);
            }
        }
    }

    /// Starts another worker in the place of one that stops unasked, while that one finishes.
    fn replace_unasked(&mut self, pid: u32) {
        if let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) {
            self.replace(index);
            self.restart(pid, "stops by itself");
        }
    }

    /// The predecessors, oldest first.
    fn predecessors(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.part == Part::Predecessor)
    }

    /// Tells the current worker of its predecessors, for its status.
    fn tell_predecessors(&self) {
        let Some(current) = self.current() else { return };
        let predecessors: Vec<_> = self
            .predecessors()
            .map(|worker| Predecessor {
                pid: worker.pid,
                since: worker.since.elapsed().as_secs_f64(),
                status: worker.status.clone(),
            })
            .collect();
        if let Ok(json) = serde_json::to_string(&predecessors) {
            current.tell(&assign(key::PREDECESSORS, &json));
        }
    }

    /// Acts on the end of a worker.
    fn ended(&mut self, pid: u32) {
        let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let mut worker = self.workers.remove(index);
        let status = worker.reap();
        self.systemd.unstore(&format!("{STORED}{pid}"));
        let how = describe(status);
        let code = status.and_then(|status| status.exit_status());
        let exit = code.map_or(Exit::Failed, exit_of);
        match worker.part {
            Part::Current if self.stopping => self.last_exit = exit,
            _ if self.stopping => {}
            Part::Candidate if self.current().is_some() => {
                let refusal = refusal(&mut worker, &how);
                self.refuse(refusal);
            }
            // The first one: its log, or its stderr, says why.
            Part::Candidate if self.restarts.is_empty() => self.exit = Some(exit),
            Part::Candidate | Part::Current => self.restart(pid, &how),
            Part::Predecessor => tracing::info!(worker = pid, "worker {pid} {how}: it has finished"),
        }
        self.grant_singletons();
        self.tell_predecessors();
        self.exit_if_empty();
    }

    /// Starts another worker in the place of one that ended unasked, or gives up.
    fn restart(&mut self, pid: u32, how: &str) {
        let now = Instant::now();
        let Settings { max_restarts, window, backoff, backoff_max, .. } = self.settings;
        while self.restarts.front().is_some_and(|&at| now.duration_since(at) > window) {
            self.restarts.pop_front();
        }
        let earlier = self.restarts.len();
        if earlier >= max_restarts as usize {
            tracing::error!("worker {pid} {how}; {earlier} were restarted within {window:?}: giving up");
            self.exit = Some(Exit::Failed);
            return;
        }
        self.restarts.push_back(now);
        let wait = match u32::try_from(earlier).unwrap_or(u32::MAX).checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => backoff.saturating_mul(1 << doublings.min(20)).min(backoff_max),
        };
        tracing::error!(worker = pid, "worker {pid} {how}; starting another in {} ms", wait.as_millis());
        self.start_at = Some(now + wait);
    }

    // ---- reload ----

    /// Starts a worker that is to take over; after the one that is under way, if there is one.
    fn reload(&mut self, asked: Asked) {
        if self.stopping || self.current().is_none() {
            let why = if self.stopping { "the service is stopping" } else { "no worker serves yet" };
            let refusal = Refusal { in_short: why.to_owned(), said: why.to_owned() };
            self.answer_refused(&asked, &refusal);
            tracing::warn!("no reload: {why}");
        } else if self.candidate().is_some() {
            self.waiting.push_back(asked);
        } else {
            tracing::info!("reloading");
            let mut states = vec![NotifyState::Reloading, NotifyState::Status("reloading")];
            states.extend(NotifyState::monotonic_usec_now());
            self.systemd.tell(&states);
            self.asked.push(asked);
            self.start_worker();
        }
    }

    /// Ends a reload that changes nothing.
    fn refuse(&mut self, refusal: Refusal) {
        tracing::error!("the reload failed, nothing has changed: {}", refusal.said);
        self.systemd.tell(&[NotifyState::Ready]);
        let asked = std::mem::take(&mut self.asked);
        if let Some(current) = self.current() {
            // Also where nobody asked on the channel: its status tells.
            let text = serde_json::to_string(&refusal).unwrap_or_default();
            current.tell(&format!("{}=0\n{}={text}", key::REFUSED, key::TEXT));
        }
        for asked in &asked {
            self.answer_refused(asked, &refusal);
        }
        self.go_on_reloading();
    }

    fn answer_refused(&self, asked: &Asked, refusal: &Refusal) {
        if let (Some((pid, number)), Ok(text)) = (asked, serde_json::to_string(refusal)) {
            self.answer(*pid, &format!("{}={number}\n{}={text}", key::REFUSED, key::TEXT));
        }
    }

    fn answer(&self, pid: u32, text: &str) {
        if let Some(worker) = self.workers.iter().find(|worker| worker.pid == pid) {
            worker.tell(text);
        }
    }

    /// Begins the next reload that was asked for. A worker that was replaced meanwhile tells those who asked at it to
    /// ask its successor.
    fn go_on_reloading(&mut self) {
        let current = self.current().map(|worker| worker.pid);
        while let Some(asked) = self.waiting.pop_front() {
            if asked.as_ref().is_none_or(|(pid, _)| Some(*pid) == current) {
                return self.reload(asked);
            }
        }
    }

    // ---- stop ----

    /// Acts on a signal that asks for a stop: the first, the second, or the third.
    fn stop(&mut self, name: &'static str) {
        self.signals += 1;
        match self.signals {
            1 if self.systemd.stores() && !self.last && name == "SIGTERM" => self.leave(),
            1 => {
                tracing::info!("{name}: draining; the same again cuts what is in flight");
                self.nobody_follows();
                self.stop_workers(name, None);
            }
            2 => {
                tracing::warn!("{name} again: cutting what is in flight; once more exits at once");
                let now = Instant::now();
                for worker in &mut self.workers {
                    worker.tell(&assign(key::CUT, "the second signal"));
                    worker.kill_at = Some(now + GRACE);
                }
            }
            _ => {
                tracing::warn!("{name} for the third time: exiting at once");
                for worker in &self.workers {
                    worker.signal(Signal::KILL);
                }
                self.exit = Some(Exit::Cut);
            }
        }
    }

    /// Ends this process at once, for another: workers hand over to the next process's and finish by themselves. What
    /// they need is in systemd's store.
    fn leave(&mut self) {
        tracing::info!("SIGTERM: the worker hands over to the next process");
        self.systemd.tell(&[NotifyState::Stopping]);
        for worker in &self.workers {
            match worker.part {
                Part::Candidate => worker.signal(Signal::KILL),
                Part::Current | Part::Predecessor => worker.tell(&assign(key::HAND_OVER, "left")),
            }
        }
        self.exit = Some(Exit::Clean);
    }

    /// Notes that no process follows this one, and tells the workers.
    fn nobody_follows(&mut self) {
        if !std::mem::replace(&mut self.last, true) {
            tracing::info!("the service is being stopped: nothing is left for a next process");
            self.store.forget();
        }
        for worker in &self.workers {
            worker.tell(&assign(key::NOBODY_FOLLOWS, "1"));
        }
    }

    /// Tells every worker to stop for good; all but one that does so by itself.
    fn stop_workers(&mut self, cause: &str, but: Option<u32>) {
        self.stopping = true;
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

    fn exit_if_empty(&mut self) {
        if self.stopping && self.workers.is_empty() {
            self.exit.get_or_insert(self.last_exit);
        }
    }

    // ---- another program ----

    /// Takes the code of the program that is at the path now, as the same process with all that it keeps. What was heard
    /// must have been handled.
    fn follow_upgrade(&mut self) {
        self.is_upgraded = false;
        tracing::info!("going on as the program that is now at {}", self.program.path().display());
        let error = self.exec(Program::command);
        tracing::error!("cannot: {error}; going on as before");
    }

    /// Replaces the program of this process. Returns only if that fails.
    fn exec(
        &self,
        command: impl Fn(&Program, &str, Vec<(String, OwnedFd)>) -> io::Result<std::process::Command>,
    ) -> io::Error {
        let passed = || {
            let mut passed = self.store.duplicates(|_| true)?;
            for worker in &self.workers {
                passed.push((
                    format!("{STORED}{}", worker.pid),
                    worker.channel().as_fd().try_clone_to_owned()?,
                ));
            }
            passed.push((STATE.to_owned(), self.state()?));
            let mut command = command(&self.program, program::MAIN, passed)?;
            command.env("LISTEN_PID", std::process::id().to_string());
            Ok(command)
        };
        match passed() {
            Ok(mut command) => {
                logging::flush();
                command.exec()
            }
            Err(error) => error,
        }
    }

    fn state(&self) -> io::Result<OwnedFd> {
        let current = self.current().map(|worker| worker.pid);
        let state = State { current, settings: self.settings.clone(), last: self.last };
        let mut file = File::from(memfd_create("steadfast-state", MemfdFlags::CLOEXEC)?);
        serde_json::to_writer(&mut file, &state)?;
        file.flush()?;
        file.rewind()?;
        Ok(file.into())
    }

    // ---- time ----

    /// The time of the next thing to do.
    fn alarm(&self) -> Instant {
        let kills = self.workers.iter().filter_map(|worker| worker.kill_at);
        let beats = self.current().map(|worker| worker.beat + patience());
        let far = Instant::now() + Duration::from_secs(60 * 60);
        kills
            .chain(beats)
            .chain(self.start_at)
            .chain(self.ticks().then_some(self.next_tick))
            .min()
            .unwrap_or(far)
    }

    /// True if systemd expects to hear of this process again and again.
    fn ticks(&self) -> bool {
        self.stopping || Manager::watchdog().is_some()
    }

    /// Does what is due.
    fn act_on_time(&mut self) {
        let now = Instant::now();
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_worker();
        }
        let patience = patience();
        let stops = self.stopping;
        let mut late = None;
        for worker in &mut self.workers {
            let (pid, part) = (worker.pid, worker.part);
            if part == Part::Current && !stops && now.duration_since(worker.beat) >= patience {
                tracing::error!(
                    worker = pid,
                    "worker {pid} is stuck: no heartbeat for {patience:?}: ending it"
                );
                worker.signal(Signal::ABORT);
                worker.beat = now;
                worker.kill_at = Some(now + GRACE);
            }
            if worker.kill_at.is_some_and(|at| at <= now) {
                match part {
                    Part::Candidate => late = Some(pid),
                    _ => tracing::warn!(
                        worker = pid,
                        "worker {pid} does not end: killing it; it had {}",
                        worker.status
                    ),
                }
                worker.signal(Signal::KILL);
                worker.kill_at = None;
            }
        }
        if let Some(pid) = late {
            let limit = self.settings.ready_timeout;
            if let Some(worker) = self.worker(pid) {
                worker.failed = Some(format!("the new process was not ready within {limit:?} and was ended"));
            }
        }
        if self.ticks() && self.next_tick <= now {
            if stops {
                let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
                self.systemd.tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
                self.next_tick = now + TICK;
            } else if let Some(period) = Manager::watchdog() {
                self.systemd.tell(&[NotifyState::Watchdog]);
                self.next_tick = now + period / 3;
            }
        }
    }

    /// Reaps every child that has ended, also those that are no workers: as the first process of a container this one
    /// inherits them.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(worker) = self.worker(pid.as_raw_nonzero().get().unsigned_abs()) {
                worker.ended = Some(status);
            }
        }
    }
}

fn read_state(state: OwnedFd) -> io::Result<State> {
    Ok(serde_json::from_reader(File::from(state))?)
}

/// The longest time without a heartbeat of the current worker.
fn patience() -> Duration {
    Manager::watchdog().unwrap_or(UNWATCHED)
}

fn assign(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// The exit that a worker's exit code stands for.
fn exit_of(code: i32) -> Exit {
    [Exit::Clean, Exit::Usage, Exit::Cut, Exit::Config]
        .into_iter()
        .find(|exit| i32::from(exit.code()) == code)
        .unwrap_or(Exit::Failed)
}

/// The reason why a candidate failed: what it said, if it could, and its output on stderr, if any.
fn refusal(worker: &mut Worker, how: &str) -> Refusal {
    let words = worker.last_words();
    match (worker.failed.take(), words) {
        (Some(reason), words) => {
            let said = format!("the new process failed: {}", words.unwrap_or_else(|| reason.clone()));
            Refusal { in_short: reason, said }
        }
        (None, Some(words)) => {
            let first = words.lines().next().unwrap_or_default();
            let more = if words.lines().count() > 1 { "..." } else { "" };
            let in_short = format!("the new process failed: {first}{more}");
            Refusal { in_short, said: format!("the new process failed: {words}") }
        }
        (None, None) => {
            let said = format!("the new process {how} without a word");
            Refusal { in_short: said.clone(), said }
        }
    }
}
