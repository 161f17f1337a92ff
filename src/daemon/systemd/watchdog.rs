//! The watchdog: a thread outside of the runtime, which notices when the runtime, or a part of it, is stuck.
//!
//! It looks at three things. Each child has a heartbeat from its own task; without it the child is stuck, and the
//! service manager is told, which restarts the unit. The same holds for an I/O thread that does not run a task that it
//! is given. A connection's task, or its handler's, notes when it begins to be polled; where that was long ago, a handler
//! blocks its thread, which is logged.
//!
//! After the process stood still as a whole (SIGSTOP, a frozen cgroup, a paused machine, swap) all heartbeats are
//! late. The watchdog notices, because its own thread stood still too, and gives every child its time anew.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::runtime::Handle;

use crate::daemon::http;
use crate::daemon::observer::Observer;
use crate::daemon::phase::Phase;
use crate::event;
use crate::logging;
use crate::printable::excerpt;
use crate::server::threads::IoThreads;
use crate::systemd::manager::{Manager, one_line};

/// The longest that a handler may hold its thread before that is logged.
const BLOCKED: Duration = Duration::from_secs(1);
/// The longest time without a heartbeat where the manager has no watchdog on the unit.
const UNWATCHED: Duration = Duration::from_secs(10);

/// The time between two looks, in ticks, above which the whole process stood still, not a child alone.
const STOOD_STILL: u32 = 4;

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Watchdog {
    _stop: Sender<()>,
}

impl Watchdog {
    /// Starts the thread.
    pub(in crate::daemon) fn start(observer: Observer, manager: Manager) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let tick = observer.supervisor.heartbeat() / 2;
        let users = observer.supervisor.runtime_of_users().cloned();
        let runtimes: Vec<Handle> = users.into_iter().chain([Handle::current()]).collect();
        // Sets the clock before the first look: a handler may block its thread before that.
        observer.registry.tick();
        let threads = observer.io.runtimes().iter().cloned().map(Pulse::new).collect();
        let mut watch = Watch {
            period: Manager::watchdog(),
            observer,
            manager,
            tick,
            last_look: Instant::now(),
            nobody_stuck_until: Instant::now(),
            next_ping: Instant::now(),
            threads,
            stuck: HashSet::new(),
            blocking: HashSet::new(),
        };
        let run = move || {
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                watch.look();
                // A thread of a work-stealing runtime that is blocked may be the one that polls for events and timers:
                // then the others sleep on, although they are free. A task spawned from outside wakes one of them.
                for runtime in &runtimes {
                    runtime.spawn(std::future::ready(()));
                }
            }
        };
        std::thread::Builder::new().name("watchdog".into()).spawn(run)?;
        Ok(Self { _stop: stop })
    }
}

/// The pulse of an I/O thread: it is given a task now and then, and has to run that.
struct Pulse {
    runtime: Handle,
    answered: Arc<AtomicBool>,
    /// The time since which the thread has been owing an answer.
    asked: Instant,
}

impl Pulse {
    fn new(runtime: Handle) -> Self {
        Self { runtime, answered: Arc::new(AtomicBool::new(true)), asked: Instant::now() }
    }

    /// Takes the pulse: the time for which the thread has been owing an answer.
    fn take(&mut self, now: Instant) -> Duration {
        // `Relaxed`: nothing else is read by it.
        if self.answered.swap(false, Relaxed) {
            self.asked = now;
            let answered = Arc::clone(&self.answered);
            self.runtime.spawn(async move { answered.store(true, Relaxed) });
        }
        now.duration_since(self.asked)
    }
}

struct Watch {
    observer: Observer,
    manager: Manager,
    /// The longest that the manager waits between two pings.
    period: Option<Duration>,
    /// The time between two looks.
    tick: Duration,
    last_look: Instant,
    /// The time before which no child counts as stuck.
    nobody_stuck_until: Instant,
    next_ping: Instant,
    /// Of the I/O threads.
    threads: Vec<Pulse>,
    /// The names that were logged, so that each is logged once.
    stuck: HashSet<String>,
    blocking: HashSet<(u64, u64)>,
}

impl Watch {
    fn look(&mut self) {
        let now = Instant::now();
        let stood_still = now.duration_since(self.last_look) > self.tick * STOOD_STILL;
        self.last_look = now;
        if stood_still {
            self.nobody_stuck_until = now + self.patience();
            // The manager may be about to end the process: ping at once.
            self.next_ping = now;
        }
        self.observer.registry.tick();
        if !stood_still {
            self.find_blocking_handlers();
        }
        let stuck = self.find_stuck(now);
        // The manager neither expects a ping before READY nor once a stop has begun.
        let Some(period) = self.period.filter(|_| self.observer.lifecycle.phase() == Phase::Serving) else {
            return;
        };
        if !stuck.is_empty() {
            // The manager ends the process at once: its log must say why by then.
            logging::finish();
            let status = one_line(&format!("stuck: no heartbeat from {}", stuck.join(", ")));
            self.manager.tell(&[NotifyState::Status(&status), NotifyState::WatchdogTrigger]);
        } else if now >= self.next_ping {
            // At least twice in each period, as sd_watchdog_enabled(3) recommends.
            self.next_ping = now + period / 3;
            self.manager.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The longest time without a heartbeat.
    fn patience(&self) -> Duration {
        self.period.map_or(UNWATCHED, |period| period / 2).max(self.observer.supervisor.heartbeat() * 3)
    }

    /// The children that are stuck, each with what it was doing. An I/O thread is http's.
    fn find_stuck(&mut self, now: Instant) -> Vec<String> {
        let limit = self.patience();
        let threads = self.threads.iter_mut().enumerate();
        let silent = threads.filter_map(|(n, pulse)| (pulse.take(now) > limit).then_some(n));
        let mut stuck: Vec<_> = silent
            .map(|n| (http::NAME.to_owned(), format!("serving connections on {}", IoThreads::name(n))))
            .collect();
        if now < self.nobody_stuck_until {
            stuck.clear();
        } else {
            let children = self.observer.supervisor.stuck_for(limit);
            stuck.extend(
                children.iter().map(|child| (child.name().to_owned(), child.last_doing().to_owned())),
            );
        }
        for (child, doing) in stuck.iter().filter(|(child, _)| !self.stuck.contains(child)) {
            tracing::error!(
                message_id = event::CHILD_STUCK,
                child,
                doing,
                "{child} is stuck: no heartbeat for {limit:?}; last it was {doing}"
            );
        }
        self.stuck = stuck.iter().map(|(child, _)| child.clone()).collect();
        stuck.iter().map(|(child, doing)| format!("{child} (last {doing})")).collect()
    }

    fn find_blocking_handlers(&mut self) {
        let blocking = self.observer.registry.blocked_for(BLOCKED);
        for (id, request, blocked) in &blocking {
            if !self.blocking.contains(id) {
                let (method, path) = (excerpt(request.method.as_str()), excerpt(request.uri.path()));
                tracing::warn!(
                    message_id = event::HANDLER_BLOCKED,
                    request_id = request.id,
                    method = &*method,
                    path = &*path,
                    route = request.route,
                    duration_usec = u64::try_from(blocked.as_micros()).unwrap_or(u64::MAX),
                    "{} {} blocks its thread for {:.1} s now: a handler that waits must do so with `await`, or on \
                     a thread of its own",
                    method,
                    path,
                    blocked.as_secs_f64(),
                );
            }
        }
        self.blocking = blocking.into_iter().map(|(id, ..)| id).collect();
    }
}

#[cfg(test)]
mod tests {
    //! A thread that runs what it is given is told from one that does not.

    use super::*;

    #[test]
    fn an_io_thread_that_is_blocked_owes_an_answer_since_it_was_asked() {
        let threads = IoThreads::start(1).expect("a thread");
        let runtime = &threads.runtimes()[0];
        let mut pulse = Pulse::new(runtime.clone());
        let mut now = Instant::now();
        let mut later = || {
            now += Duration::from_secs(10);
            now
        };
        let answered = |pulse: &Pulse| {
            while !pulse.answered.load(Relaxed) {
                std::thread::yield_now();
            }
        };
        assert_eq!(pulse.take(later()), Duration::ZERO);
        answered(&pulse);
        let (release, blocked) = channel::<()>();
        runtime.spawn(async move { blocked.recv() });
        assert_eq!(pulse.take(later()), Duration::ZERO);
        assert_eq!(pulse.take(later()), Duration::from_secs(10));
        assert_eq!(pulse.take(later()), Duration::from_secs(20));
        drop(release);
        answered(&pulse);
        assert_eq!(pulse.take(later()), Duration::ZERO);
    }
}
