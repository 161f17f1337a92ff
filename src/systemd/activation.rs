//! The descriptors that systemd, or a process to be relieved, passes to this one (`sd_listen_fds(3)`).

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The names under which a process to be relieved passes the socket to itself, and what stderr was before it listened
/// in.
pub(crate) const CHANNEL: &str = "predecessor";
pub(crate) const STDERR: &str = "stderr";

/// What the environment announces. It can be owned only once, so the process has one place for it.
static PASSED: LazyLock<Mutex<Inherited>> = LazyLock::new(|| Mutex::new(announced()));

/// The descriptors this process was started with, by name.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    left: Vec<(String, OwnedFd)>,
    /// Also of those that were taken.
    names: Vec<String>,
    /// How long a listener that is not among them may be waited for.
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

    /// From now on a listener that cannot be bound may be possible later: the service starts, perhaps with the machine,
    /// or the manager has not closed another listener yet. Until then it is tried again.
    pub(crate) fn wait_until(&mut self, until: Instant) {
        self.patience = Some(until);
    }

    /// Until when, if at all.
    pub(crate) fn patience(&self) -> Option<Instant> {
        self.patience
    }

    /// The names of all that was passed.
    #[must_use]
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

/// Gives this process the standard error and output of the one it relieves. Until now they led to that process, which
/// wants to know why a successor fails.
pub(crate) fn restore_stderr() {
    if let Some(stderr) = passed().take(STDERR).pop() {
        // Nothing can be said about a failure, for want of a stderr.
        let _ = rustix::stdio::dup2_stderr(&stderr);
        let _ = rustix::stdio::dup2_stdout(&stderr);
    }
}

/// Tells the process that this one was to relieve, if there is one, why it will not: before there is a runtime.
pub(crate) fn decline(reason: &str) {
    if let Some(channel) = passed().take(CHANNEL).pop() {
        // If that process is gone, there is nobody to tell.
        let _ = UnixStream::from(channel).write_all(failed(reason).as_bytes());
    }
}

/// The line by which a new process says why it cannot take over.
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
            // This may be before there is a log.
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
