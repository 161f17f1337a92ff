//! The threads that connections live on.
//!
//! Each I/O thread has a runtime of its own. A connection stays on the thread that it was given when it came, so that
//! its requests touch nothing that another thread writes.

use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The I/O threads of a worker. They end with the last of its clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct IoThreads {
    /// None where connections live on the runtime that serves them.
    runtimes: Arc<[Handle]>,
    _stop: Option<Arc<DropGuard>>,
}

impl IoThreads {
    /// Starts so many.
    ///
    /// # Errors
    /// There is no thread or no descriptor left for one.
    pub(crate) fn start(number: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let start = |number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stop = stop.clone();
            let run = move || {
                runtime.block_on(stop.cancelled());
                // What still runs on its blocking threads is not waited for.
                runtime.shutdown_background();
            };
            std::thread::Builder::new().name(Self::name(number)).spawn(run)?;
            Ok(handle)
        };
        let runtimes = (0..number).map(start).collect::<io::Result<_>>()?;
        Ok(Self { runtimes, _stop: Some(Arc::new(guard)) })
    }

    /// The name of one of them, as `ps -L` shows it.
    pub(crate) fn name(thread: usize) -> String {
        format!("io-{thread}")
    }

    /// Their number; 1 where connections live on the runtime that serves them.
    pub(crate) fn number(&self) -> usize {
        self.runtimes.len().max(1)
    }

    /// The runtime of one of them.
    ///
    /// # Panics
    /// Outside of a runtime, where connections live on the runtime that serves them.
    pub(super) fn runtime(&self, thread: usize) -> Handle {
        self.runtimes.get(thread).cloned().unwrap_or_else(Handle::current)
    }

    /// The runtime of each.
    pub(crate) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }
}
