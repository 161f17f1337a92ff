//! The unit that a daemon runs as: where it is found, and its settings, about which `steadfast check` asks systemd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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

    /// The user that its processes run as, by systemd, or the one that is shipped; `None` if that cannot be told, or is
    /// root, or this process, which is not root, could not try what that user may.
    pub(crate) fn user(&self) -> Option<User> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let properties = properties(&self.name(), ["User", "Group", "SupplementaryGroups"]);
        let [name, group, more] = properties.unwrap_or(["steadfast".into(), String::new(), String::new()]);
        let id = |option| said(Command::new("id").args([option, "--", &*name]));
        if name.is_empty() || id("-u")?.trim() == "0" {
            return None;
        }
        let group = if group.is_empty() { id("-g")?.trim().to_owned() } else { group };
        let groups = [id("-G")?, more].join(" ").split_whitespace().collect::<Vec<_>>().join(",");
        Some(User { name, group, groups })
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
    let [timeout] = properties(unit, ["TimeoutStopUSec"])?;
    // "1min 30s", "infinity".
    timeout.parse::<SignedDuration>().ok()?.try_into().ok()
}

/// Properties of a unit, as systemd has them; `None` if there is no such unit, or no systemd.
fn properties<const N: usize>(unit: &str, names: [&str; N]) -> Option<[String; N]> {
    let shown = said(Command::new("systemctl").args(["show", unit]))?;
    let value = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value("LoadState").filter(|state| *state == "loaded")?;
    Some(names.map(|name| value(name).unwrap_or_default().to_owned()))
}

/// The output of a command that has succeeded.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// The user that a unit's processes run as.
#[derive(Debug)]
pub(crate) struct User {
    name: String,
    group: String,
    /// All of its groups, and those that the unit adds, with commas between them.
    groups: String,
}

impl User {
    /// True if the user may read a file. It is tried as that user: modes, access lists and directories all have a say in
    /// this.
    pub(crate) fn may_read(&self, path: &Path) -> bool {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.name)).arg(format!("--regid={}", self.group));
        command.arg(format!("--groups={}", self.groups));
        command.args(["sh", "-c", "test -r \"$1\" || echo no", "sh"]).arg(path);
        // Where it cannot be tried, nothing is said.
        said(command.stderr(Stdio::null())).is_none_or(|said| said.trim() != "no")
    }
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
