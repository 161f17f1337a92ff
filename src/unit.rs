//! The unit's own settings, about which `steadfast check` asks systemd.

use std::process::Command;
use std::time::Duration;

use jiff::SignedDuration;
use steadfast::config::Shutdown;

/// The unit as it is shipped.
const UNIT: &str = "steadfast.service";

/// Warns if the unit's `TimeoutStopSec=` is shorter than a stop may take by the config. A daemon that drains has it
/// extended; but a `systemctl daemon-reload` meanwhile makes systemd forget that, and count from the stop's beginning.
pub(crate) fn warn_of_stop_timeout(config: &Shutdown) {
    let Some(limit) = stop_timeout() else { return };
    let stop = config.deadline.and_then(|deadline| deadline.checked_add(config.delay));
    if stop.is_some_and(|stop| stop < limit) {
        return;
    }
    let stop = stop.map_or("go on without end".to_owned(), |stop| format!("take {stop:?}"));
    eprintln!(
        "warning: a stop may {stop} by [shutdown], but TimeoutStopSec= of {UNIT} is {limit:?}: `systemctl \
         daemon-reload` during such a stop would have it killed; raise it with `systemctl edit {UNIT}`"
    );
}

/// The longest that systemd waits for the unit to stop. `None` if it waits for ever, or there is no such unit, or no
/// systemd.
fn stop_timeout() -> Option<Duration> {
    let show = ["show", "--property=LoadState", "--property=TimeoutStopUSec", UNIT];
    let output = Command::new("systemctl").args(show).output().ok()?;
    let properties = String::from_utf8(output.stdout).ok()?;
    let value = |name| properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value("LoadState").filter(|state| *state == "loaded")?;
    // "1min 30s", "infinity".
    value("TimeoutStopUSec")?.parse::<SignedDuration>().ok()?.try_into().ok()
}
