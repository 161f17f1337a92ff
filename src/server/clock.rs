//! The clock that connections are timed by. It does not count the time in which the process stood still.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::sweep::STEP;

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
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

/// The time between two looks above which the whole process stood still: it was stopped, its cgroup frozen, its machine
/// paused.
const STANDSTILL: Duration = Duration::from_secs(2);

/// The time that counts against clients: it stops while the process is frozen, or the machine paused, and nothing that
/// they send is read.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The time that the process stood still in all, in microseconds. Written by the sweep alone.
    stood_still: AtomicU64,
    /// The moment of the sweep's last look; [`Self::NEVER`] if it has nobody to look at. Where no sweep looks, as for a moment
    /// between serving and draining, that counts as a standstill, too. Written by the sweep alone.
    looked: AtomicU64,
}

// `Relaxed`: what the sweep writes changes what others read by no more than a step, but after a freeze, and a value that is
// a little old does no harm.
impl Clock {
    /// The first moment, 35 years after zero: a connection that is taken over has been idle since before the start.
    const START: u64 = 1 << 50;

    /// Later than every moment: no time has passed since.
    const NEVER: u64 = u64::MAX;

    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), stood_still: AtomicU64::new(0), looked: AtomicU64::new(Self::NEVER) }
    }

    /// This moment.
    pub(crate) fn now(&self) -> Tick {
        let ticked = self.ticked();
        Tick(ticked - standstill(ticked, self.looked.load(Relaxed)))
    }

    /// The time since the last look of the sweep, which looks now. No client could have been served while the process stood
    /// still, so that counts against none.
    pub(super) fn look(&self) -> Duration {
        let looked = self.looked.load(Relaxed);
        self.stood_still.fetch_add(standstill(self.ticked(), looked), Relaxed);
        let now = self.ticked();
        self.looked.store(now, Relaxed);
        Tick(now).since(Tick(looked))
    }

    /// The sweep has nobody to look at: what passes until its next look is no standstill.
    pub(super) fn rest(&self) {
        self.looked.store(Self::NEVER, Relaxed);
    }

    /// This moment, if the process has not stood still since the last look.
    fn ticked(&self) -> u64 {
        let stood_still = self.stood_still.load(Relaxed);
        (Self::START + micros(self.start.elapsed())).saturating_sub(stood_still)
    }
}

/// The part of the time since the last look in which the process stood still, in microseconds.
fn standstill(now: u64, looked: u64) -> u64 {
    let passed = now.saturating_sub(looked);
    if passed > micros(STANDSTILL) { passed - micros(STEP) } else { 0 }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 1)
}
