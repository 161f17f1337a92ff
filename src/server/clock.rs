//! The clock that connections are timed by. It does not count the time in which the process stood still.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// A moment of a [`Clock`], in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    /// The time since an earlier moment; zero if that is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment that comes `duration` before this one.
    pub(crate) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// The moment that comes `duration` after this one.
    #[cfg(test)]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0 + micros(duration))
    }
}

/// The time that counts against clients: it stops while the process is frozen, or the machine paused, and nothing that
/// they send is read.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The time that the process stood still in all, in microseconds. Written by the sweep alone.
    stood_still: AtomicU64,
}

impl Clock {
    /// The first moment, 35 years after zero: a connection that is taken over has been idle since before the start.
    const START: u64 = 1 << 50;

    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), stood_still: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Tick {
        // `Relaxed`: it changes only after a freeze, and a value that is a little old does no harm.
        let stood_still = self.stood_still.load(Relaxed);
        Tick((Self::START + micros(self.start.elapsed())).saturating_sub(stood_still))
    }

    /// Leaves out a time in which the process stood still.
    pub(crate) fn skip(&self, standstill: Duration) {
        self.stood_still.fetch_add(micros(standstill), Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 1)
}
