//! Waiting for what no channel announces.

use std::thread;
use std::time::{Duration, Instant};

/// The longest that any wait of the harness lasts before it counts as failed.
/// No test measures with it; it only turns a hang into a failure that names its
/// cause.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks, for the rest of the machine.
const GLANCE: Duration = Duration::from_millis(5);

/// Looks again and again until `look` returns something, and returns that.
///
/// # Panics
///
/// After [`PATIENCE`], naming `what` it waited for.
pub fn wait_until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_with(look, || what.to_owned())
}

/// The same where what it waited for is said at length, once that was in vain.
///
/// # Panics
///
/// After [`PATIENCE`], with what `what` says.
pub fn wait_with<T>(mut look: impl FnMut() -> Option<T>, what: impl FnOnce() -> String) -> T {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(GLANCE);
    }
    panic!("waited {PATIENCE:?} for {}, in vain", what())
}
