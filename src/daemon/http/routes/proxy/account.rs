//! What happens between this server and an upstream, in numbers. Each thread counts in memory of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use thread_local::ThreadLocal;

/// The account of an upstream.
#[derive(Clone, Debug, Default)]
pub(super) struct Account(Arc<ThreadLocal<OfThread>>);

/// The part of one thread, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OfThread {
    happened: [AtomicU64; Happened::ALL.len()],
    /// Those that began on the thread less those that ended there: below 0 where they change threads.
    in_flight: AtomicI64,
}

/// Something that is counted of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// A request was to be passed on.
    Request,
    /// A connection was made.
    Connect,
    /// An attempt to make one failed.
    ConnectFailure,
    /// An attempt was made again, to connect or to send a request that was lost with its connection.
    Retry,
    /// A request got no answer of the upstream's, or not all of it.
    Failure,
}

impl Happened {
    pub(crate) const ALL: [Self; 5] =
        [Self::Request, Self::Connect, Self::ConnectFailure, Self::Retry, Self::Failure];
}

impl Account {
    /// Counts.
    pub(super) fn count(&self, what: Happened) {
        self.0.get_or_default().happened[what as usize].fetch_add(1, Relaxed);
    }

    /// A request begins; it ends when what is returned is dropped.
    pub(super) fn begin(&self) -> InFlight {
        let thread = self.0.get_or_default();
        thread.happened[Happened::Request as usize].fetch_add(1, Relaxed);
        thread.in_flight.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }

    /// The number of times that something has happened.
    pub(super) fn number(&self, what: Happened) -> u64 {
        self.0.iter().map(|thread| thread.happened[what as usize].load(Relaxed)).sum()
    }

    /// The number of requests that the upstream has yet to answer, to the end.
    pub(super) fn in_flight(&self) -> u64 {
        let sum: i64 = self.0.iter().map(|thread| thread.in_flight.load(Relaxed)).sum();
        u64::try_from(sum).unwrap_or_default()
    }
}

/// A request that the upstream has yet to answer, to the end.
#[derive(Debug)]
pub(super) struct InFlight(Account);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.get_or_default().in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    //! An account is the sum over the threads that have had a part in it.

    use super::*;

    #[test]
    fn a_request_that_ends_on_another_thread_is_in_flight_no_more() {
        let account = Account::default();
        let begun = account.begin();
        account.count(Happened::Connect);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _there = account.begin();
                drop(begun);
                assert_eq!(account.in_flight(), 1);
            });
        });
        let numbers = Happened::ALL.map(|what| account.number(what));
        assert_eq!((numbers, account.in_flight()), ([2, 1, 0, 0, 0], 0));
    }
}
