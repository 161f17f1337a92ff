//! The unit that a daemon runs as: where it is found, and its settings, about which `steadfast check` asks systemd.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use jiff::SignedDuration;
use steadfast::config::Shutdown;
use steadfast::status::control_path;

/// A unit as it is shipped: `steadfast.service`, or an instance of `steadfast@.service`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unit {
    instance: Option<String>,
}

impl Unit {
    /// The unit of this instance, or the one that is none.
    pub(crate) fn new(instance: Option<String>) -> Self {
        Self { instance }
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        match &self.instance {
            Some(instance) => format!("steadfast@{instance}.service"),
            None => "steadfast.service".to_owned(),
        }
    }

    /// Its name as it is typed in a shell, which would eat the backslashes of `systemd-escape`.
    pub(crate) fn shown(&self) -> String {
        let name = self.name();
        match name.trim_end_matches(".service") {
            name if name.contains('\\') => format!("'{name}'"),
            name => name.to_owned(),
        }
    }

    /// The config of an instance.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        Some(format!("/etc/steadfast/{}.toml", self.instance.as_ref()?).into())
    }

    /// The control socket of the daemon that it runs.
    pub(crate) fn control_path(&self) -> PathBuf {
        control_path(self.instance.as_deref())
    }

    /// Warns if its `TimeoutStopSec=` is shorter than a stop may take by the config. A daemon that drains has it extended;
    /// but a `systemctl daemon-reload` meanwhile makes systemd forget that, and count from the stop's beginning.
    pub(crate) fn warn_of_stop_timeout(&self, config: &Shutdown) {
        let name = self.name();
        let Some(limit) = stop_timeout(&name) else { return };
        let stop = config.deadline.and_then(|deadline| deadline.checked_add(config.delay));
        if stop.is_some_and(|stop| stop < limit) {
            return;
        }
        let stop = stop.map_or("go on without end".to_owned(), |stop| format!("take {stop:?}"));
        eprintln!(
            "warning: a stop may {stop} by [shutdown], but TimeoutStopSec= of {name} is {limit:?}: `systemctl \
             daemon-reload` during such a stop would have it killed; raise it with `systemctl edit {}`",
            self.shown()
        );
    }
}

/// The longest that systemd waits for a unit to stop. `None` if it waits for ever, or there is no such unit, or no
/// systemd.
fn stop_timeout(unit: &str) -> Option<Duration> {
    let show = ["show", "--property=LoadState", "--property=TimeoutStopUSec", unit];
    let output = Command::new("systemctl").args(show).output().ok()?;
    let properties = String::from_utf8(output.stdout).ok()?;
    let value = |name| properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value("LoadState").filter(|state| *state == "loaded")?;
    // "1min 30s", "infinity".
    value("TimeoutStopUSec")?.parse::<SignedDuration>().ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    //! A unit's name.

    use super::*;

    #[test]
    fn a_unit_is_shown_as_a_shell_takes_it() {
        let shown = |instance: &str| Unit::new(Some(instance.to_owned())).shown();
        assert_eq!(Unit::default().shown(), "steadfast");
        assert_eq!(shown("one"), "steadfast@one");
        assert_eq!(shown(r"a\x2db"), r"'steadfast@a\x2db'");
    }
}
