//! The threads that a daemon runs on.
//!
//! A process of its own has three kinds: the I/O threads, on which connections live; a small runtime for the tree; and
//! another one for what is the caller's own. Within a caller's runtime it has none.

use std::io;
use std::num::NonZero;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle, Runtime};

use super::Daemon;
use crate::Exit;
use crate::server::threads::IoThreads;

/// The threads that a daemon is bound to.
#[derive(Debug)]
pub(super) enum Threads {
    /// Those of the runtime that it is bound in.
    Shared,
    /// Its own. `users` is where the caller's `Router` and children run; none if there are none.
    Own { users: Option<Handle> },
}

impl Threads {
    /// The threads that connections live on: as many as were asked for, or as there are cores.
    pub(super) fn io(&self, asked: Option<usize>) -> io::Result<IoThreads> {
        match self {
            Self::Shared => Ok(IoThreads::default()),
            Self::Own { .. } => IoThreads::start(asked.unwrap_or_else(cores)),
        }
    }

    /// The runtime of what is the caller's own; none if that is no other than the tree's.
    pub(super) fn users(&self) -> Option<Handle> {
        match self {
            Self::Shared => None,
            Self::Own { users } => users.clone(),
        }
    }
}

/// The runtimes of a process of its own, beside the I/O threads'.
#[derive(Debug)]
pub(super) struct Runtimes {
    tree: Runtime,
    users: Option<Runtime>,
}

impl Runtimes {
    /// Makes them; one for what is the caller's own only if there is something.
    pub(super) fn start(has_users: bool) -> io::Result<Self> {
        // Where one is blocked by a child, the other goes on.
        let tree = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // Two at least, for handlers do the same.
        let threads = cores().max(2);
        let users = || Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        Ok(Self { tree, users: has_users.then(users).transpose()? })
    }

    /// Runs a daemon to its end.
    pub(super) fn run(self, daemon: Daemon) -> Exit {
        let users = self.users.as_ref().map(|runtime| runtime.handle().clone());
        let exit = self.tree.block_on(daemon.run_on(&Threads::Own { users }));
        // The stop is complete: tasks that are left are not waited for.
        self.tree.shutdown_background();
        if let Some(users) = self.users {
            users.shutdown_background();
        }
        exit
    }
}

fn cores() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}
