//! The keys of connections that were parked a moment ago.
//!
//! A parked connection has the material of its keys, and not the keys, which take more memory than all else of it. But to
//! expand them takes some microseconds, and a busy connection is parked after each answer. So the keys of the last few
//! connections that a thread has parked rest with the thread: the busy ones find theirs again, the idle ones lose them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::keys::Keys;

/// The number of times that a thread parks a connection while the keys of one rest with it: some 1.5 KiB each.
const MOST: usize = 256;

/// The keys of both directions, as far as they have been expanded.
pub(super) type Pair = [Option<Box<Keys>>; 2];

/// The keys of a parked connection, if they are still there. They go with it, on whatever thread that is.
pub(super) struct Resting(Arc<Mutex<Pair>>);

thread_local! {
    /// Those that rest, the latest last. Of a connection that has taken its own back, the empty shell is left.
    static LATEST: RefCell<VecDeque<Arc<Mutex<Pair>>>> = const { RefCell::new(VecDeque::new()) };
}

fn take(pair: &Mutex<Pair>) -> Pair {
    std::mem::take(&mut *pair.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Resting {
    /// Lets keys rest, until the thread has parked connections a number of times.
    pub(super) fn new(pair: Pair) -> Self {
        let pair = Arc::new(Mutex::new(pair));
        LATEST.with_borrow_mut(|latest| {
            if latest.len() == MOST
                && let Some(oldest) = latest.pop_front()
            {
                drop(take(&oldest));
            }
            latest.push_back(Arc::clone(&pair));
        });
        Self(pair)
    }

    /// True if they are still there.
    #[cfg(test)]
    pub(super) fn is_there(&self) -> bool {
        self.0.lock().expect("nobody panics with it").iter().any(Option::is_some)
    }

    /// Takes them back.
    pub(super) fn wake(&self) -> Pair {
        take(&self.0)
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        // No key outlives its connection, though the thread has the shell.
        drop(take(&self.0));
    }
}

#[cfg(test)]
mod tests {
    //! Keys rest while they may be wanted soon, and no longer than their connection lives.

    use super::*;
    use crate::tls::keys::{Material, Suite};

    fn pair() -> Pair {
        let suite = Suite::by_id(0x1302).expect("a suite that is known");
        let keys = || Box::new(Material::new(suite, &[7; 48]).expect("its own length").keys(suite));
        [Some(keys()), Some(keys())]
    }

    #[test]
    fn a_thread_keeps_the_keys_of_the_last_connections_that_it_has_parked() {
        let first = Resting::new(pair());
        let others: Vec<_> = (1..MOST).map(|_| Resting::new(pair())).collect();
        assert!(first.is_there());
        let _last = Resting::new(pair());
        assert!(!first.is_there(), "it is the oldest");
        assert!(first.wake().iter().all(Option::is_none));
        assert!(others.iter().all(Resting::is_there));
        assert!(others[0].wake().iter().all(Option::is_some));
    }

    #[test]
    fn keys_go_with_their_connection() {
        let resting = Resting::new(pair());
        let shell = Arc::clone(&resting.0);
        std::thread::spawn(|| drop(resting)).join().expect("it is dropped elsewhere");
        assert!(take(&shell).iter().all(Option::is_none));
    }
}
