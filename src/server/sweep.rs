//! The sweep: the one clock of all connections. Now and then it looks whether a client takes too long.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limits;
use super::registry::Registry;

/// The time between two looks at every connection: no limit is kept more exactly than this.
pub(crate) const STEP: Duration = Duration::from_millis(250);

/// The time between two looks above which the whole process stood still: it was stopped, its cgroup frozen, its
/// machine paused.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Sweeps over the connections until it is dropped.
pub(super) async fn sweep(registry: &Registry, limits: &Limits) -> Infallible {
    loop {
        // An idle daemon does not wake up.
        registry.occupied().await;
        let mut last = Instant::now();
        let mut passed = Duration::ZERO;
        while !registry.is_empty() {
            let now = registry.clock().now();
            for connection in registry.connections_and_streams() {
                connection.look(now, passed, limits);
            }
            tokio::time::sleep(STEP).await;
            passed = last.elapsed();
            last = Instant::now();
            if passed > STANDSTILL {
                // No client could have been served meanwhile, so the time counts against none.
                registry.clock().skip(passed.saturating_sub(STEP));
                passed = STEP;
            }
        }
    }
}
