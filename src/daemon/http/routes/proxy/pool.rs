//! The idle connections to the upstream, apart for each thread: a connection is used where its socket is registered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use thread_local::ThreadLocal;
use tokio::runtime;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::POOL_IDLE;
use super::connection::Connection;

/// The most idle connections on one thread. The oldest is closed for another one.
pub(super) const MOST: usize = 256;

/// The time between two looks at the idle connections, and the longest that one is kept beyond [`POOL_IDLE`] or after
/// the upstream has closed it.
pub(super) const STEP: Duration = Duration::from_millis(500);

/// The idle connections of one route.
#[derive(Debug)]
pub(super) struct Pool {
    threads: ThreadLocal<Arc<Mutex<Idle>>>,
    /// Where the sweeps run.
    tasks: TaskTracker,
}

/// The idle connections on one thread.
#[derive(Debug, Default)]
struct Idle {
    /// The newest is the last, and the next to be used.
    connections: VecDeque<(Instant, Box<Connection>)>,
    /// The runtime that the sweep runs in; none while there is nothing to sweep.
    swept_in: Option<runtime::Id>,
}

impl Pool {
    pub(super) fn new(tasks: &TaskTracker) -> Self {
        Self { threads: ThreadLocal::new(), tasks: tasks.clone() }
    }

    /// Takes the connection that was used last. It may have ended since, which shows when it is driven.
    pub(super) fn take(&self) -> Option<Box<Connection>> {
        let idle = self.threads.get()?;
        let runtime = runtime::Handle::current().id();
        loop {
            let (since, connection) = lock(idle).connections.pop_back()?;
            // A thread may have had another runtime before, whose sockets nobody looks at any more.
            if connection.runtime() == runtime && since.elapsed() < POOL_IDLE {
                return Some(connection);
            }
        }
    }

    /// The number of idle connections, on all threads.
    pub(super) fn len(&self) -> usize {
        self.threads.iter().map(|idle| lock(idle).connections.len()).sum()
    }

    /// Keeps a connection that is idle.
    pub(super) fn put(&self, connection: Box<Connection>) {
        let idle = self.threads.get_or_default();
        let runtime = connection.runtime();
        let oldest = {
            let mut idle = lock(idle);
            let oldest = if idle.connections.len() < MOST { None } else { idle.connections.pop_front() };
            idle.connections.push_back((Instant::now(), connection));
            if idle.swept_in == Some(runtime) {
                return;
            }
            idle.swept_in = Some(runtime);
            oldest
        };
        drop(oldest);
        self.tasks.spawn(unconstrained(sweep(Arc::downgrade(idle), runtime)));
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes idle connections that are too old, or that the upstream has ended, until there are none left, or another
/// runtime sweeps.
async fn sweep(idle: Weak<Mutex<Idle>>, runtime: runtime::Id) {
    loop {
        sleep(STEP).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        if idle.swept_in != Some(runtime) {
            return;
        }
        idle.connections
            .retain_mut(|(since, connection)| since.elapsed() < POOL_IDLE && connection.is_quiet());
        if idle.connections.is_empty() {
            *idle = Idle::default();
            return;
        }
    }
}
