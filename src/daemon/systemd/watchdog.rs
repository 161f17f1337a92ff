//! The watchdog: a thread outside of the runtime, which notices when the runtime, or a part of it, is stuck.
//!
//! It looks at two things. Each child has a heartbeat from its own task; without it the child is stuck, and the
//! service manager is told, which restarts the unit. A connection's task notes when it begins to be polled; where
//! that was long ago, a handler blocks its thread, which is logged.
//!
//! After the process stood still as a whole (SIGSTOP, a frozen cgroup, a paused machine, swap) all heartbeats are
//! late. The watchdog notices, because its own thread stood still too, and gives every child its time anew.

use std::collections::HashSet;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::runtime::Handle;

use crate::daemon::phase::Phase;
use crate::daemon::status::Observer;
use crate::logging;
use crate::printable::excerpt;
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
        let runtime = Handle::current();
        // Sets the clock before the first look: a handler may block its thread before that.
        observer.registry.tick();
        let mut watch = Watch {
            period: Manager::watchdog(),
            observer,
            manager,
            tick,
            last_look: Instant::now(),
            nobody_stuck_until: Instant::now(),
            next_ping: Instant::now(),
            stuck: HashSet::new(),
            blocking: HashSet::new(),
        };
        let run = move || {
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                watch.look();
                // A thread of the runtime that is blocked may be the one that polls for events and timers: then the
                // other threads sleep on, although they are free. A task spawned from outside wakes one of them.
                runtime.spawn(std::future::ready(()));
            }
        };
        std::thread::Builder::new().name("watchdog".into()).spawn(run)?;
        Ok(Self { _stop: stop })
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
        let stuck = if now < self.nobody_stuck_until { Vec::new() } else { self.find_stuck_children() };
        // The manager neither expects a ping before READY nor once a stop has begun.
        let Some(period) = self.period.filter(|_| self.observer.lifecycle.phase() == Phase::Serving) else {
            return;
        };
        if !stuck.is_empty() {
            // The manager ends the process at once: its log must say why by then.
            logging::flush();
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

    fn find_stuck_children(&mut self) -> Vec<String> {
        let limit = self.patience();
        let stuck: Vec<_> = self.observer.supervisor.stuck_for(limit);
        let names: HashSet<_> = stuck.iter().map(|child| child.name().to_owned()).collect();
        for child in stuck.iter().filter(|child| !self.stuck.contains(child.name())) {
            let (name, doing) = (child.name(), child.last_doing());
            tracing::error!(
                child = name,
                doing,
                "{name} is stuck: no heartbeat for {limit:?}; last it was {doing}"
            );
        }
        self.stuck = names;
        stuck.iter().map(|child| format!("{} (last {})", child.name(), child.last_doing())).collect()
    }

    fn find_blocking_handlers(&mut self) {
        let blocking = self.observer.registry.blocked_for(BLOCKED);
        for (id, request, blocked) in &blocking {
            if !self.blocking.contains(id) {
                let (method, path) = (excerpt(request.method.as_str()), excerpt(request.uri.path()));
                tracing::warn!(
                    method = &*method,
                    path = &*path,
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
