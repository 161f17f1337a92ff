//! The descriptors that systemd passes to a service (`sd_listen_fds(3)`).

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The descriptors this process was started with, by name.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Takes what `LISTEN_FDS` and `LISTEN_FDNAMES` announce to this process (`LISTEN_PID`). Only the first call in a
    /// process gets anything; without such an announcement there is nothing to get.
    #[must_use]
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Relaxed) {
            return Self::default();
        }
        match sd_notify::listen_fds_with_names() {
            Ok(announced) => Self(announced.map(|(fd, name)| (name, adopt(fd))).collect()),
            Err(error) => {
                tracing::warn!(%error, "cannot read the sockets that systemd announces; going on without them");
                Self::default()
            }
        }
    }

    /// Takes the descriptors of a name out; systemd passes several under one name if a unit has several sockets.
    #[must_use]
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (taken, left) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(n, _)| n == name);
        self.0 = left;
        let taken: Vec<(String, OwnedFd)> = taken;
        taken.into_iter().map(|(_, fd)| fd).collect()
    }

    /// The names of what is left.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// Takes ownership of an announced descriptor.
#[expect(unsafe_code, reason = "a descriptor's number is all that systemd passes")]
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: LISTEN_PID says that systemd opened it for this process, and `from_environment` hands out each once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
