//! The rates of the last minutes, out of what was counted every two seconds.
//!
//! The admin child's loop looks at the counters. What they rose by between two looks is a point of the plots; a request's
//! path knows nothing of it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::exposition::as_f64;
use super::status::{History as Shown, Rates};
use crate::server::Registry;
use crate::server::durations::BOUNDS;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// The points that are kept: five minutes.
const POINTS: usize = 150;
/// The points whose time the rates of this moment are of: ten seconds.
const RECENT: usize = 5;

/// The counters at some moment.
#[derive(Clone, Copy, Debug)]
struct Counts {
    at: Instant,
    sent: u64,
    /// Requests that have ended, by how long they took.
    buckets: [u64; BOUNDS.len() + 1],
}

/// The counters of the last minutes, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<Counts>>>);

impl History {
    /// Looks at the counters until it is dropped.
    pub(super) async fn keep(&self, registry: &Registry) -> Infallible {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.note(Counts::of(registry));
        }
    }

    fn note(&self, now: Counts) {
        let mut looks = self.looks();
        // Between so many looks there is one point less.
        if looks.len() > POINTS {
            looks.pop_front();
        }
        looks.push_back(now);
    }

    /// The rates of the last ten seconds.
    pub(super) fn rates(&self, registry: &Registry) -> Rates {
        let now = Counts::of(registry);
        let looks = self.looks();
        let since = looks.len().saturating_sub(RECENT);
        looks.get(since).map(|then| now.since(then)).unwrap_or_default()
    }

    /// The rates between each two looks, oldest first.
    pub(super) fn points(&self) -> Shown {
        let looks = self.looks();
        let rates = looks.iter().zip(looks.iter().skip(1)).map(|(then, now)| now.since(then)).collect();
        Shown { interval: INTERVAL.as_secs_f64(), rates }
    }

    fn looks(&self) -> MutexGuard<'_, VecDeque<Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(registry: &Registry) -> Self {
        let buckets = registry.totals().durations().buckets;
        let [_, sent] = registry.moved();
        Self { at: Instant::now(), sent, buckets }
    }

    /// What the counters rose by, for each second, and how long the requests took.
    fn since(&self, then: &Self) -> Rates {
        let buckets: [u64; BOUNDS.len() + 1] =
            std::array::from_fn(|n| self.buckets[n].saturating_sub(then.buckets[n]));
        let seconds = self.at.saturating_duration_since(then.at).as_secs_f64();
        let rate = |number| if seconds > 0.0 { as_f64(number) / seconds } else { 0.0 };
        Rates {
            requests: rate(buckets.iter().sum()),
            sent: rounded(rate(self.sent.saturating_sub(then.sent))),
            p50: quantile(&buckets, 0.5),
            p90: quantile(&buckets, 0.9),
            p99: quantile(&buckets, 0.99),
        }
    }
}

/// The time, in seconds, that this part of the requests took at most. Within a bucket they are taken to be spread evenly, and
/// what is beyond the last bound to be at it, as by Prometheus (`histogram_quantile`).
fn quantile(buckets: &[u64; BOUNDS.len() + 1], part: f64) -> Option<f64> {
    let rank = part * as_f64(buckets.iter().sum());
    let (mut below, mut lower) = (0.0, 0.0);
    for (number, bound) in buckets.iter().zip(BOUNDS) {
        let number = as_f64(*number);
        if number > 0.0 && below + number >= rank {
            return Some(lower + (bound - lower) * (rank - below) / number);
        }
        below += number;
        lower = bound;
    }
    (buckets[BOUNDS.len()] > 0).then_some(lower)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is neither negative nor that large"
)]
fn rounded(rate: f64) -> u64 {
    rate.round() as u64
}

#[cfg(test)]
mod tests {
    //! Rates are of the time between two looks, and only so many are kept.

    use super::*;

    fn counts(start: Instant, second: u64, requests: u64) -> Counts {
        let mut buckets = [0; BOUNDS.len() + 1];
        buckets[4] = requests;
        Counts { at: start + Duration::from_secs(second), sent: 1000 * requests, buckets }
    }

    #[test]
    fn a_rate_is_what_was_counted_since_the_look_before() {
        let start = Instant::now();
        let history = History::default();
        assert!(history.points().rates.is_empty());
        for (second, requests) in [(0, 10), (2, 10), (4, 30)] {
            history.note(counts(start, second, requests));
        }
        let [idle, busy] = history.points().rates.try_into().expect("one less than looks");
        assert_eq!((idle.requests, idle.sent, idle.p50), (0.0, 0, None));
        assert_eq!((busy.requests, busy.sent), (10.0, 10_000));
        // Half of those between 1 and 2.5 ms.
        assert!(busy.p50.is_some_and(|p50| (p50 - 0.00175).abs() < 1e-9), "{busy:?}");
        assert!(busy.p50 < busy.p90 && busy.p90 < busy.p99 && busy.p99 < Some(0.0025), "{busy:?}");
    }

    #[test]
    fn counters_that_begin_anew_are_no_rate() {
        let start = Instant::now();
        assert_eq!(counts(start, 2, 1).since(&counts(start, 0, 5)), Rates::default());
        // Nor is there one in no time.
        let at_once = counts(start, 0, 5).since(&counts(start, 0, 1));
        assert_eq!((at_once.requests, at_once.sent), (0.0, 0));
    }

    #[test]
    fn five_minutes_are_kept() {
        let start = Instant::now();
        let history = History::default();
        for look in 0..1000 {
            history.note(counts(start, look, look));
        }
        assert_eq!(history.points().rates.len(), POINTS);
    }

    #[test]
    fn what_took_longer_than_any_bound_is_shown_at_the_last_one() {
        let mut buckets = [0; BOUNDS.len() + 1];
        assert_eq!(quantile(&buckets, 0.5), None);
        buckets[BOUNDS.len()] = 3;
        assert_eq!(quantile(&buckets, 0.5), Some(30.0));
        buckets[0] = 3;
        assert!(quantile(&buckets, 0.5).is_some_and(|half| half <= 0.001));
    }
}
