//! The time that requests took: a histogram that a thread of its own adds to, for a scrape to sum up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds. What is beyond the last one is in a bucket without a bound.
pub(crate) const BOUNDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The durations of a thread's requests.
#[derive(Debug, Default)]
pub(super) struct Durations {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds; there is room for 580 years.
    sum: AtomicU64,
}

impl Durations {
    pub(super) fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// A copy of the durations of all threads.
#[derive(Debug, Default)]
pub(crate) struct DurationsView {
    /// The number of requests in each bucket alone.
    pub(crate) buckets: [u64; BOUNDS.len() + 1],
    /// The time that they all took.
    pub(crate) sum: Duration,
}

impl DurationsView {
    pub(super) fn add(&mut self, durations: &Durations) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&durations.buckets) {
            *sum += bucket.load(Relaxed);
        }
        self.sum += Duration::from_nanos(durations.sum.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    //! A duration is in the bucket of the least bound that is not below it.

    use super::*;

    #[test]
    fn a_bound_is_in_its_bucket_and_what_is_beyond_all_in_the_last() {
        let durations = Durations::default();
        for millis in [0, 1, 2, 30_000, 30_001] {
            durations.add(Duration::from_millis(millis));
        }
        let mut view = DurationsView::default();
        view.add(&durations);
        assert_eq!(view.buckets, [1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(view.sum, Duration::from_millis(60_004));
    }
}
