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
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}, in vain");
        thread::sleep(GLANCE);
    }
}
