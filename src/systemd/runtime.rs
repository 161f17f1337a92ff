//! The unit's `RuntimeDirectory=`, and the control socket in it.

use std::path::{Path, PathBuf};

/// The control socket's file name.
const CONTROL: &str = "control.sock";

/// The `RuntimeDirectory=` of the unit as it is shipped.
const SHIPPED: &str = "/run/steadfast";

/// The control socket's path: in the unit's `RuntimeDirectory=`, which systemd passes in `$RUNTIME_DIRECTORY`
/// (systemd.exec(5)); none outside of a unit. Of several directories, whose order is systemd's, it is in the one of the
/// unit as shipped.
pub(crate) fn control_socket() -> Option<PathBuf> {
    let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
    let mut folders = std::env::split_paths(&folders);
    let first = folders.next()?;
    let shipped = folders.find(|folder| folder == Path::new(SHIPPED));
    Some(shipped.unwrap_or(first).join(CONTROL))
}

/// The path of the running daemon's control socket, for the commands that ask it: the daemon's own if the command runs
/// in the unit, as `ExecStop=` does, else that of the unit as shipped.
#[must_use]
pub fn control_path() -> PathBuf {
    control_socket().unwrap_or_else(|| Path::new(SHIPPED).join(CONTROL))
}
