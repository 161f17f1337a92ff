//! The descriptors that systemd, or a predecessor, passes to this process (`sd_listen_fds(3)`).

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The names under which a predecessor passes the socket to itself, and the stderr that the successor is to have once
/// it is ready.
pub(crate) const CHANNEL: &str = "predecessor";
pub(crate) const STDERR: &str = "stderr";

/// The descriptors that the environment announces. They can be owned only once, so they are in a static.
static PASSED: LazyLock<Mutex<Inherited>> = LazyLock::new(|| Mutex::new(announced()));

/// The descriptors this process was started with, by name.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    left: Vec<(String, OwnedFd)>,
    /// The names of all, also of those that were taken.
    names: Vec<String>,
    /// The end of the wait for a listener that is not among them and cannot be bound yet.
    patience: Option<Instant>,
}

impl Inherited {
    /// Takes what `LISTEN_FDS` and `LISTEN_FDNAMES` announce to this process (`LISTEN_PID`). Only the first call in a
    /// process gets anything; without such an announcement there is nothing to get.
    #[must_use]
    pub(crate) fn from_environment() -> Self {
        std::mem::take(&mut *passed())
    }

    /// Takes the descriptors of a name out; systemd passes several under one name if a unit has several sockets.
    #[must_use]
    pub(crate) fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (taken, left): (Vec<_>, _) =
            std::mem::take(&mut self.left).into_iter().partition(|(n, _)| n == name);
        self.left = left;
        taken.into_iter().map(|(_, fd)| fd).collect()
    }

    /// Keeps what is `wanted`, and returns the rest.
    #[must_use]
    pub(crate) fn retain(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<(String, OwnedFd)> {
        let (kept, rest) = std::mem::take(&mut self.left).into_iter().partition(|(name, _)| wanted(name));
        self.left = kept;
        rest
    }

    /// Sets the time until which binding a listener is tried again: while a service starts, an address may be missing
    /// yet, or the manager may not have closed another listener yet.
    pub(crate) fn wait_until(&mut self, until: Instant) {
        self.patience = Some(until);
    }

    /// The end of the wait for a listener that cannot be bound yet; none without such a wait.
    pub(crate) fn patience(&self) -> Option<Instant> {
        self.patience
    }

    /// The names of all that was passed.
    #[must_use]
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

/// Gives this process the standard error and output of its predecessor. Until now they led to the predecessor, which
/// reports why a successor fails.
pub(crate) fn restore_stderr() {
    if let Some(stderr) = passed().take(STDERR).pop() {
        // Best effort: without a stderr a failure cannot be reported.
        let _ = rustix::stdio::dup2_stderr(&stderr);
        let _ = rustix::stdio::dup2_stdout(&stderr);
    }
}

/// Tells the predecessor, if there is one, why this process cannot take over. For the time before there is a runtime.
pub(crate) fn decline(reason: &str) {
    if let Some(channel) = passed().take(CHANNEL).pop() {
        // Best effort: the predecessor may have ended.
        let _ = UnixStream::from(channel).write_all(failed(reason).as_bytes());
    }
}

/// The line by which a successor says why it cannot take over.
pub(crate) fn failed(reason: &str) -> String {
    format!("failed {}\n", reason.replace('\n', " "))
}

fn passed() -> MutexGuard<'static, Inherited> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn announced() -> Inherited {
    match sd_notify::listen_fds_with_names() {
        Ok(announced) => {
            let left: Vec<_> = announced.map(|(fd, name)| (name, adopt(fd))).collect();
            let names = left.iter().map(|(name, _)| name.clone()).collect();
            Inherited { left, names, patience: None }
        }
        Err(error) => {
            // Written to stderr because there may be no log yet.
            eprintln!("cannot read the sockets that systemd announces, going on without them: {error}");
            Inherited::default()
        }
    }
}

/// Takes ownership of an announced descriptor.
#[expect(unsafe_code, reason = "a descriptor's number is all that systemd passes")]
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: LISTEN_PID says that it was opened for this process, and `PASSED` is made only once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
