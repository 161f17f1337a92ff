//! The main process: it keeps what outlives a worker, and starts, watches and replaces workers. It serves nobody.
//!
//! To systemd it is the service; to a worker it is the manager, and speaks the same protocol (`systemd/channel.rs`). It
//! is a loop over what its workers say, signals, and one alarm. A worker is a candidate until it is ready, then the
//! current one until another takes over, then a predecessor that finishes what it has in flight.

mod program;
mod reload;
mod replacement;
mod stop;
mod store;
#[cfg(test)]
mod tests;
mod upgrade;
mod worker;

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use rustix::process::{Signal, WaitOptions, wait};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use self::program::Program;
use self::store::Store;
use self::upgrade::State;
use self::worker::{Part, STORED, Worker, pid_of};
use crate::event;
use crate::systemd::activation::Inherited;
use crate::systemd::channel::{Channel, Message};
use crate::systemd::manager::Manager;
use crate::systemd::process;
use crate::{Exit, logging};

/// The longest time without a heartbeat of the current worker, where systemd has no watchdog on the service.
const UNWATCHED: Duration = Duration::from_secs(30);
/// The number of looks at the current worker in that time.
const LOOKS: u32 = 4;
/// The time that a worker has to end once it was cut, or its own deadline has passed.
const GRACE: Duration = Duration::from_secs(5);
/// The time that news of predecessors waits for more of it.
const NEWS: Duration = Duration::from_millis(250);
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
    /// Its requests in flight, as it said last; none if it has not said.
    #[serde(default)]
    pub(crate) in_flight: Option<u64>,
    /// The seconds until it is cut; none without a deadline.
    #[serde(default)]
    pub(crate) left: Option<f64>,
}

/// What the main process knows, and its current worker's status shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct News {
    /// The workers that finish what they had in flight when others took over, oldest first.
    pub(crate) predecessors: Vec<Predecessor>,
    /// The number of workers that were started in the place of others that failed.
    pub(crate) restarts: u64,
}

/// How far a worker's drain is, as it tells the main process beside its STATUS. Another version may leave out any of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DrainProgress {
    /// The requests in flight.
    pub(crate) in_flight: Option<u64>,
    /// The seconds until the rest is cut; none without a deadline.
    pub(crate) left: Option<f64>,
}

/// The reason why a reload changed nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// On one line, for STATUS.
    pub(crate) in_short: String,
    /// All of it.
    pub(crate) said: String,
}

/// The sender of a request for a reload: a worker, and the number by which it knows the answer; none if nobody waits.
type Asked = Option<(u32, String)>;

/// A phase of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No worker has served yet: one that cannot ends the service.
    Starting,
    /// A worker that ends is replaced.
    Serving,
    /// The service is to end with the last worker.
    Stopping,
}

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

/// Runs the main process to its end.
pub(crate) fn run() -> Exit {
    let exit = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async { MainProcess::new().run().await }),
        Err(error) => {
            tracing::error!(
                message_id = event::START_FAILED,
                %error,
                "cannot set up the main process: {error}"
            );
            Exit::Failed
        }
    };
    logging::finish();
    exit
}

struct MainProcess {
    program: Program,
    systemd: Manager,
    store: Store,
    workers: Vec<Worker>,
    settings: Settings,
    /// Requests for the reload that is under way; the candidate is its worker.
    asked: Vec<Asked>,
    /// Requests that wait for the end of another reload.
    waiting: VecDeque<Asked>,
    /// The times of the last restarts of a worker that ended unasked.
    restarts: VecDeque<Instant>,
    /// The number of all of them.
    restarted: u64,
    /// The time of the next start of a worker, where none runs.
    start_at: Option<Instant>,
    phase: Phase,
    /// True once it is known that no process follows this one.
    last: bool,
    /// The number of signals that asked for a stop.
    signals: u32,
    /// The exit of the worker that served last.
    last_exit: Exit,
    /// The exit of this process, once it is to end.
    exit: Option<Exit>,
    next_tick: Instant,
    /// The time of the last look at the clock: one that is long past means that this process stood still.
    last_look: Instant,
    /// The time at which the current worker is told of its predecessors, if there is news of them.
    news_at: Option<Instant>,
    /// True from the time at which a worker takes over until systemd is told so.
    is_unannounced: bool,
    /// True once the current worker is of another program than this process.
    is_upgraded: bool,
    events: mpsc::Receiver<Event>,
    heard: mpsc::Sender<Event>,
    tasks: TaskTracker,
}

impl MainProcess {
    fn new() -> Self {
        let program = Program::of_this_process();
        let systemd = Manager::from_environment();
        let mut inherited = Inherited::from_environment();
        let state = State::take(&mut inherited);
        let mut channels = inherited.retain(|name| !name.starts_with(STORED));
        // systemd passes them in an order of its own.
        channels.sort_by_cached_key(|(name, _)| pid_of(name).map(|pid| (process::started(pid), pid)));
        let kept = inherited.retain(|_| false);
        let (heard, events) = mpsc::channel(BACKLOG);
        let State { current, wants_singletons, settings, last, restarted } = state;
        let mut main = Self {
            program,
            store: Store::new(systemd.clone(), kept),
            systemd,
            workers: Vec::new(),
            settings,
            asked: Vec::new(),
            waiting: VecDeque::new(),
            restarts: VecDeque::new(),
            restarted,
            start_at: None,
            phase: if current.is_some() { Phase::Serving } else { Phase::Starting },
            last,
            signals: 0,
            last_exit: Exit::Clean,
            exit: None,
            next_tick: Instant::now(),
            last_look: Instant::now(),
            news_at: None,
            is_unannounced: false,
            is_upgraded: false,
            events,
            heard,
            tasks: TaskTracker::new(),
        };
        for (name, channel) in channels {
            let pid = pid_of(&name);
            let part = if pid == current { Part::Current } else { Part::Predecessor };
            let worker = pid.ok_or(io::ErrorKind::InvalidData.into());
            match worker.and_then(|pid| Worker::adopt(pid, Channel::adopt(channel)?, part)) {
                Ok(mut worker) => {
                    if part == Part::Current {
                        worker.settings = main.settings.clone();
                        worker.wants_singletons = wants_singletons;
                        worker.holds_singletons = !wants_singletons;
                        worker.beat = Some(Instant::now());
                    } else {
                        // Those of an earlier main process may not have handed over yet.
                        worker.has_heir = current.is_some();
                    }
                    main.systemd.stored(&name);
                    main.follow(worker);
                }
                // It has ended.
                Err(_) => main.systemd.unstore(&name),
            }
        }
        main
    }

    async fn run(mut self) -> Exit {
        if !Program::has_title() {
            let error = self.exec(Program::command_of_this);
            tracing::warn!("cannot take the title {:?}: {error}", program::MAIN);
        }
        self.program.take_name();
        if let Err(error) = self.watch_signals() {
            tracing::error!(
                message_id = event::START_FAILED,
                %error,
                "cannot install the signal handlers: {error}"
            );
            return Exit::Failed;
        }
        // A predecessor serves until the worker does. It is told then.
        if self.current().is_none() {
            self.start_worker();
        }
        while self.exit.is_none() {
            if self.may_follow_upgrade() {
                self.follow_upgrade().await;
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
        self.watch_signal(SignalKind::terminate(), || Event::Stop("SIGTERM"))?;
        self.watch_signal(SignalKind::interrupt(), || Event::Stop("SIGINT"))?;
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

    /// Handles one event, and whatever is due by now.
    fn handle(&mut self, event: Event) {
        // One look at the clock: between two this process may stand still unnoticed.
        let now = Instant::now();
        self.notice_standstill(now);
        match event {
            Event::Said(pid, message) => self.said(pid, message),
            Event::Ended(pid) => self.ended(pid),
            Event::Hangup => self.reload(None),
            Event::Stop(name) => self.stop(name),
            Event::Child => self.reap(),
            Event::Alarm => {}
        }
        self.act_on_time(now);
        self.announce();
    }

    /// The time of the next thing to do.
    fn alarm(&self) -> Instant {
        let workers = self.workers.iter().flat_map(|worker| [worker.kill_at, worker.retires_by]).flatten();
        let tick = self.ticks().then_some(self.next_tick);
        let look = self.last_look + look();
        workers.chain(self.start_at).chain(self.news_at).chain(tick).min().map_or(look, |at| at.min(look))
    }

    /// True if systemd expects to hear of this process again and again.
    fn ticks(&self) -> bool {
        self.is_stopping() || Manager::watchdog().is_some()
    }

    /// Counts the time since the last look against no worker, if this process slept through an alarm: so did they, for
    /// the machine was paused, or the whole control group frozen.
    fn notice_standstill(&mut self, now: Instant) {
        // A shorter standstill leaves enough of GRACE.
        if now.duration_since(self.alarm()) > look().min(GRACE / 2) {
            let standstill = now.duration_since(self.last_look);
            for worker in &mut self.workers {
                worker.beat = worker.beat.map(|_| now);
                worker.kill_at = worker.kill_at.and_then(|at| at.checked_add(standstill));
                worker.retires_by = worker.retires_by.and_then(|at| at.checked_add(standstill));
            }
        }
        self.last_look = now;
    }

    /// Does what is due.
    fn act_on_time(&mut self, now: Instant) {
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_worker();
        }
        if self.news_at.is_some_and(|at| at <= now) {
            self.news_at = None;
            self.tell_predecessors();
            self.tell_what_is_left();
        }
        for worker in &mut self.workers {
            if worker.retires_by.take_if(|at| *at <= now).is_some() {
                tracing::warn!(
                    worker = worker.pid,
                    "worker {} has not said that it accepts no client any more: it may still answer new ones",
                    worker.pid
                );
            }
        }
        self.replace_stuck(now);
        self.kill_late(now);
        if self.ticks() && self.next_tick <= now {
            if self.is_stopping() {
                let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
                self.systemd.tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
                self.next_tick = now + TICK;
            } else if let Some(period) = Manager::watchdog() {
                self.systemd.tell(&[NotifyState::Watchdog]);
                self.next_tick = now + period / 3;
            }
        }
    }

    /// Replaces the current worker if it has had no heartbeat for too long. It is given the time to write a core dump.
    fn replace_stuck(&mut self, now: Instant) {
        let patience = patience();
        let is_late =
            |worker: &&mut Worker| worker.beat.is_some_and(|beat| now.duration_since(beat) >= patience);
        let current = self.workers.iter_mut().find(|worker| worker.part == Part::Current).filter(is_late);
        if let Some(worker) = current
            && self.phase == Phase::Serving
        {
            worker.signal(Signal::ABORT);
            let pid = worker.pid;
            self.replace_unasked(pid, &format!("is stuck: no heartbeat for {patience:?}"));
            if let Some(worker) = self.worker(pid) {
                worker.kill_at = Some(now + GRACE);
                // What it has counted is lost: nobody is to wait for it, nor until it accepts nobody any more.
                worker.has_heir = true;
                worker.retires_by = None;
            }
        }
    }

    /// Kills the workers whose time is over.
    fn kill_late(&mut self, now: Instant) {
        let limit = self.settings.ready_timeout;
        for worker in &mut self.workers {
            if worker.kill_at.is_none_or(|at| at > now) {
                continue;
            }
            let pid = worker.pid;
            match worker.part {
                // Whoever asked for the reload is told, and the log, once it has ended.
                Part::Candidate => {
                    let why = format!("the new process was not ready within {limit:?} and was ended");
                    worker.failed = Some(why);
                }
                Part::Current if worker.beat.is_none() => {
                    tracing::error!(
                        message_id = event::WORKER_ENDED,
                        worker = pid,
                        "worker {pid} was not ready within {limit:?}: killing it"
                    );
                }
                Part::Current | Part::Predecessor => tracing::warn!(
                    message_id = event::WORKER_CUT,
                    worker = pid,
                    "worker {pid} does not end: killing it; it had {}",
                    worker.status
                ),
            }
            worker.signal(Signal::KILL);
            worker.kill_at = None;
            worker.beat = worker.beat.map(|_| now);
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

/// The longest time between two looks at the clock.
fn look() -> Duration {
    patience() / LOOKS
}

/// The longest time without a heartbeat of the current worker.
fn patience() -> Duration {
    Manager::watchdog().unwrap_or(UNWATCHED)
}

fn assign(key: &str, value: &str) -> String {
    format!("{key}={value}")
}
