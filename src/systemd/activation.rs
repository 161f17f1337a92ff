//! The descriptors that a process is started with (`sd_listen_fds(3)`): those that systemd passes to the main process,
//! or the main process to a worker.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::net::SocketType;

use super::manager::one_line;
use super::{channel, memfd};

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
pub(crate) const FIRST: i32 = 3;

/// The name of the channel to the main process, which is the first descriptor of a worker.
pub(crate) const CHANNEL: &str = "main-process";
/// The name of the stderr that a worker is to have once it is ready: until then it leads to the main process, which
/// tells why one fails.
pub(crate) const STDERR: &str = "stderr";

/// The environment variable that makes a process a worker. `LISTEN_PID` cannot: a process that starts another does not
/// know its number before.
pub(crate) const WORKER: &str = "STEADFAST_WORKER";
/// Its value for a worker beside which another one serves, and goes on if this one cannot.
pub(crate) const BESIDE: &str = "beside";
/// Its value for any other.
pub(crate) const ALONE: &str = "alone";

/// The largest config, in bytes.
pub(crate) const LARGEST: usize = 1 << 20;

/// A process's part in the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Started by somebody else: the main process, or a daemon without one.
    Main,
    /// A worker, started by the main process.
    Worker {
        /// True if another worker serves, and goes on if this one cannot.
        beside: bool,
    },
}

/// The part of this process.
pub(crate) fn role() -> Role {
    static ROLE: LazyLock<Role> = LazyLock::new(|| match std::env::var(WORKER) {
        // A program that a worker starts inherits the variable, but not the channel.
        Ok(value) if is_channel() => Role::Worker { beside: value == BESIDE },
        _ => Role::Main,
    });
    *ROLE
}

/// True if the first descriptor can be a channel.
fn is_channel() -> bool {
    #[expect(unsafe_code, reason = "a descriptor's number is all that is passed")]
    // SAFETY: it is only asked for its type; where there is none the answer is an error.
    let first = unsafe { BorrowedFd::borrow_raw(FIRST) };
    rustix::net::sockopt::socket_type(first).is_ok_and(|kind| kind == SocketType::SEQPACKET)
}

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

    /// Takes the first descriptor of a name out.
    #[must_use]
    pub(crate) fn take_first(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.left.iter().position(|(n, _)| n == name)?;
        Some(self.left.remove(index).1)
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

/// The name under which the last good config is kept.
pub(crate) const LAST_GOOD: &str = "config";

/// The last good config that this process was started with, if it was.
pub(crate) fn last_good() -> Option<String> {
    let passed = passed();
    let (_, kept) = passed.left.iter().find(|(name, _)| name == LAST_GOOD)?;
    let text = memfd::unsealed(kept.try_clone().ok()?, LARGEST).ok()?;
    String::from_utf8(text).ok()
}

/// Gives this process the standard error and output that the service has. Until now they led to the main process.
pub(crate) fn restore_stderr() {
    if let Some(stderr) = passed().take(STDERR).pop() {
        // Best effort: without a stderr a failure cannot be reported.
        let _ = rustix::stdio::dup2_stderr(&stderr);
        let _ = rustix::stdio::dup2_stdout(&stderr);
    }
}

/// Tells the main process, if there is one, why this worker cannot serve. For the time before there is a runtime.
pub(crate) fn decline(reason: &str) {
    if role() != Role::Main
        && let Some(end) = passed().take(CHANNEL).pop()
    {
        // Best effort: the main process may have ended.
        let _ = channel::send(end.as_fd(), &failed(reason), &[]);
    }
}

/// The message by which a worker says why it cannot serve.
pub(crate) fn failed(reason: &str) -> String {
    format!("{}={}", channel::key::FAILED, one_line(reason))
}

fn passed() -> MutexGuard<'static, Inherited> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn announced() -> Inherited {
    let announced: Vec<_> = match (role(), sd_notify::listen_fds_with_names()) {
        (Role::Worker { .. }, _) => passed_by_main_process(),
        (Role::Main, Ok(announced)) => announced.collect(),
        (Role::Main, Err(error)) => {
            // Written to stderr because there may be no log yet.
            eprintln!("cannot read the sockets that systemd announces, going on without them: {error}");
            Vec::new()
        }
    };
    let left: Vec<_> = announced.into_iter().map(|(fd, name)| (name, adopt(fd))).collect();
    let names = left.iter().map(|(name, _)| name.clone()).collect();
    Inherited { left, names, patience: None }
}

/// The descriptors of a worker, by `LISTEN_FDS` and `LISTEN_FDNAMES` alone.
fn passed_by_main_process() -> Vec<(i32, String)> {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<i32>().ok()).unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    (FIRST..FIRST + count).zip(names.split(':').map(str::to_owned)).collect()
}

/// Takes ownership of an announced descriptor.
#[expect(unsafe_code, reason = "a descriptor's number is all that systemd passes")]
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: LISTEN_PID, or the channel, says that it was opened for this process, and `PASSED` is made only once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Best effort: a program that this process starts would get it as well.
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    fd
}
