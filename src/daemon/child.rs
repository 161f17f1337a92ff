//! A child of the tree: what it sees of the tree, and what the tree knows of it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Why a child failed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A child's place in the tree, as the child itself sees it.
#[derive(Clone, Debug)]
pub struct Child {
    pub(super) stopping: CancellationToken,
    pub(super) vitals: Arc<Vitals>,
}

impl Child {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.vitals.name
    }

    /// Returns when the child is to stop: it should then finish what it has begun and return.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Says what the child is doing, for the log and STATUS if it gets stuck there: "waiting for the queue".
    pub fn doing(&self, what: &'static str) {
        *self.vitals.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Whether the child is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}

/// What the supervisor knows of a child.
#[derive(Debug)]
pub struct Vitals {
    pub(super) name: Arc<str>,
    pub(super) restarts: AtomicU32,
    /// Milliseconds of the supervisor's clock; `u64::MAX` while it does not run.
    pub(super) beat: AtomicU64,
    pub(super) doing: Mutex<&'static str>,
    #[cfg(feature = "faults")]
    pub(super) faults: super::faults::Faults,
}

impl Vitals {
    pub(super) const NOT_RUNNING: u64 = u64::MAX;

    /// The child's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it was restarted.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts.load(Relaxed)
    }

    /// What it last said that it was doing.
    #[must_use]
    pub fn last_doing(&self) -> &'static str {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it runs: neither ended nor waiting to be restarted.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.beat.load(Relaxed) != Self::NOT_RUNNING
    }
}
