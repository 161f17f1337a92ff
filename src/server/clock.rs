//! The clock that connections are timed by. It does not count the time in which the process stood still.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// A moment of a [`Clock`], in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl Tick {
    /// How long after an earlier moment this one is; nothing if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment that was so long before this one.
    pub(crate) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// The moment that is so long after this one.
    #[cfg(test)]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0 + micros(duration))
    }
}

/// Time as clients have it: while a frozen process, or a paused machine, could not have heard them, none passes.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// How long the process stood still in all, in microseconds. Written by the sweep alone.
    stood_still: AtomicU64,
}

impl Clock {
    /// Leaves room before the start for connections that have been idle since before it: 35 years.
    const START: u64 = 1 << 50;

    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), stood_still: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Tick {
        // A little out of date it does no harm: it grows once in a freeze.
        let stood_still = self.stood_still.load(Relaxed);
        Tick((Self::START + micros(self.start.elapsed())).saturating_sub(stood_still))
    }

    /// The process could do nothing for so long.
    pub(crate) fn skip(&self, standstill: Duration) {
        self.stood_still.fetch_add(micros(standstill), Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 1)
}
