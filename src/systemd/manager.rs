//! The line to the service manager (`sd_notify(3)`), and its store of descriptors. To a worker the main process is the
//! manager.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use super::channel::{Channel, key};
use crate::event;
use crate::printable::{excerpt_of, printable};

/// The manager's store for descriptors that are to outlive this process (`FileDescriptorStoreMax=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    /// There is none.
    None,
    /// There is one, of unknown size.
    OfUnknownSize,
    /// There is one for this number of descriptors.
    Of(usize),
}

impl Store {
    /// Reads the environment: systemd 254 and later sets `$FDSTORE` to the store's size (systemd.exec(5)). For an
    /// older systemd the unit sets `$STEADFAST_FDSTORE`, where "1" means a store of unknown size.
    fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<usize>().ok().filter(|n| *n > 0);
        match (number("FDSTORE"), number("STEADFAST_FDSTORE")) {
            (None, Some(1)) => Self::OfUnknownSize,
            (Some(size), _) | (None, Some(size)) => Self::Of(size),
            (None, None) => Self::None,
        }
    }
}

/// The way to the manager.
#[derive(Clone, Debug)]
enum Line {
    /// There is no manager: every call does nothing.
    None,
    /// systemd, or who else listens at `NOTIFY_SOCKET`.
    Systemd,
    /// The main process.
    MainProcess(Arc<Channel>),
}

/// The service manager, as a process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    line: Line,
    store: Store,
    /// The names of the descriptors that it stores for this process.
    stored: Arc<Mutex<BTreeSet<String>>>,
}

impl Manager {
    /// systemd, as the environment has it.
    pub(crate) fn from_environment() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            line: if listens { Line::Systemd } else { Line::None },
            store: if listens { Store::from_environment() } else { Store::None },
            stored: Arc::default(),
        }
    }

    /// The main process, at the other end of a worker's channel.
    pub(crate) fn main_process(channel: Arc<Channel>) -> Self {
        Self { line: Line::MainProcess(channel), store: Store::OfUnknownSize, stored: Arc::default() }
    }

    /// True if there is a service manager.
    pub(crate) fn listens(&self) -> bool {
        !matches!(self.line, Line::None)
    }

    /// True if descriptors can be left with it.
    pub(crate) fn stores(&self) -> bool {
        self.store != Store::None
    }

    /// Warns if the store has no room for all that was left in it, and so many more: the manager drops the rest
    /// silently.
    pub(crate) fn check_room(&self, more: usize) {
        let needed = self.stored.lock().unwrap_or_else(PoisonError::into_inner).len() + more;
        if let Store::Of(size) = self.store
            && needed > size
        {
            tracing::warn!(
                message_id = event::STORE_TOO_SMALL,
                needed,
                "systemd keeps {size} of {needed} descriptors for the next process and drops the others: set \
                 FileDescriptorStoreMax={needed} and Environment=STEADFAST_FDSTORE={needed} in the unit"
            );
        }
    }

    /// The longest that it waits between two pings, if it has a watchdog on this process.
    pub(crate) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// Sends one datagram.
    pub(crate) fn tell(&self, states: &[NotifyState<'_>]) {
        self.send(states, &[]);
    }

    /// Sends one datagram with descriptors.
    pub(crate) fn send(&self, states: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) {
        let sent = match &self.line {
            Line::None => Ok(()),
            Line::Systemd if descriptors.is_empty() => sd_notify::notify(states),
            Line::Systemd => sd_notify::notify_with_fds(states, descriptors),
            Line::MainProcess(channel) => channel.send(&lines(states), descriptors),
        };
        match sent {
            // The main process has ended, which is known from elsewhere.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::warn!(%error, "cannot reach the service manager"),
            Ok(()) => {}
        }
    }

    /// Leaves a descriptor with the manager, for the successor, which inherits it under its name.
    pub(crate) fn store(&self, name: &str, descriptor: impl AsFd) {
        if self.stores() {
            // `FDPOLL=0` is not needed: systemd drops a stored descriptor that hangs up, and listeners and mailboxes
            // never do.
            self.stored(name);
            self.send(&[NotifyState::FdStore, NotifyState::FdName(name)], &[descriptor.as_fd()]);
        }
    }

    /// Notes that the manager stores a descriptor already: this process has inherited it from there.
    pub(crate) fn stored(&self, name: &str) {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// Has the manager close all that it stores for this process.
    pub(crate) fn unstore_all(&self) {
        let stored = std::mem::take(&mut *self.stored.lock().unwrap_or_else(PoisonError::into_inner));
        for name in &stored {
            self.unstore(name);
        }
    }

    /// Says that this process stops by itself, and that no other is to take its place.
    pub(crate) fn stops(&self) {
        if matches!(self.line, Line::MainProcess(_)) {
            self.tell(&[NotifyState::Custom(&format!("{}=1", key::STOPS))]);
        }
    }

    /// Announces that the coming stop is for good, so that nothing is kept for a next process.
    pub(crate) fn announce_stop(&self) {
        match &self.line {
            Line::MainProcess(_) => self.tell(&[NotifyState::Custom(&format!("{}=1", key::LAST))]),
            Line::None | Line::Systemd => self.unstore_all(),
        }
    }

    /// Has the manager close what it stores under a name.
    pub(crate) fn unstore(&self, name: &str) {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if self.stores() {
            self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }
}

/// Assignments, one per line.
fn lines(states: &[NotifyState<'_>]) -> String {
    states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The text as STATUS can have it: a line break would begin another assignment, systemd ignores a datagram of more
/// than 4,096 bytes, and `systemctl status` prints it as it is.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 900;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Escapes are longer than what they stand for.
    excerpt_of(LONGEST, &printable(&line)).into_owned()
}
