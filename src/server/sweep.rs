//! The sweep: the one look at all connections. Now and then it sees whether a client takes too long.

use std::convert::Infallible;
use std::time::Duration;

use super::limits::Limits;
use super::registry::Registry;

/// The time between two looks at every connection: no limit is kept more exactly than this.
pub(crate) const STEP: Duration = Duration::from_millis(250);

/// Sweeps over the connections until it is dropped.
pub(super) async fn sweep(registry: &Registry, limits: &Limits) -> Infallible {
    let clock = registry.clock();
    loop {
        while !registry.is_empty() {
            let passed = clock.look();
            let now = clock.now();
            for connection in registry.connections_and_streams() {
                connection.look(now, passed, limits);
            }
            tokio::time::sleep(STEP).await;
        }
        // An idle daemon does not wake up.
        clock.rest();
        registry.occupied().await;
    }
}
