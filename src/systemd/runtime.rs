//! The unit's `RuntimeDirectory=`, and the control socket in it.

use std::path::{Path, PathBuf};

/// The control socket's file name.
const CONTROL: &str = "control.sock";

/// The `RuntimeDirectory=` of the unit as it is shipped.
const SHIPPED: &str = "steadfast";

/// The folder of all `RuntimeDirectory=` of the system's services.
const RUN: &str = "/run";

/// The control socket's path: in the unit's `RuntimeDirectory=`, which systemd passes in `$RUNTIME_DIRECTORY`
/// (systemd.exec(5)); none outside of a unit. Of several directories, whose order is systemd's, it is in the one of the
/// unit as shipped.
pub(crate) fn control_socket() -> Option<PathBuf> {
    let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
    let mut folders = std::env::split_paths(&folders);
    let first = folders.next()?;
    let shipped = folders.find(|folder| *folder == Path::new(RUN).join(SHIPPED));
    Some(shipped.unwrap_or(first).join(CONTROL))
}

/// The path of the running daemon's control socket, for the commands that ask it: that of the instance `NAME`, which is
/// `steadfast@NAME.service`, if one is named. Else the daemon's own if the command runs in the unit, as `ExecStop=`
/// does, or `$RUNTIME_DIRECTORY` is set; else that of the unit as shipped.
#[must_use]
pub fn control_path(instance: Option<&str>) -> PathBuf {
    match instance {
        Some(instance) => path_in(&format!("{SHIPPED}-{instance}")),
        None => control_socket().unwrap_or_else(|| path_in(SHIPPED)),
    }
}

/// The control socket in the `RuntimeDirectory=` of this name: the system's, or where there is none, that of the same
/// unit under the user's own manager (`$XDG_RUNTIME_DIR`).
fn path_in(name: &str) -> PathBuf {
    let system = Path::new(RUN).join(name).join(CONTROL);
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join(name).join(CONTROL));
    user.filter(|user| !system.exists() && user.exists()).unwrap_or(system)
}
