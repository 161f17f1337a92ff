//! The line to the service manager (`sd_notify(3)`), and its store of descriptors.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

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

/// The notification socket of the service manager. Without `NOTIFY_SOCKET` every call does nothing.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    listens: bool,
    store: Store,
    /// True if this process is, or is about to be, the unit's main one, the only one that the manager listens to.
    speaks: Arc<Mutex<bool>>,
    /// The names of the descriptors that it stores for this process.
    stored: Arc<Mutex<BTreeSet<String>>>,
}

impl Manager {
    /// Reads the environment. A successor of a reload keeps silent until [`Self::speak`].
    pub(crate) fn from_environment(speaks: bool) -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            listens,
            store: if listens { Store::from_environment() } else { Store::None },
            speaks: Arc::new(Mutex::new(speaks)),
            stored: Arc::default(),
        }
    }

    /// True if there is a service manager.
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// True if descriptors can be left with it.
    pub(crate) fn stores(&self) -> bool {
        self.store != Store::None
    }

    /// Warns if the store has no room for all that was left in it: the manager drops the rest silently.
    pub(crate) fn check_room(&self) {
        let needed = self.stored.lock().unwrap_or_else(PoisonError::into_inner).len();
        if let Store::Of(size) = self.store
            && needed > size
        {
            tracing::warn!(
                "systemd keeps {size} of {needed} sockets for the next process and drops the others: set \
                 FileDescriptorStoreMax={needed} and Environment=STEADFAST_FDSTORE={needed} in the unit"
            );
        }
    }

    /// The longest that it waits between two pings, if it has a watchdog on this process.
    pub(crate) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// Lets this process send: it is the main one now.
    pub(crate) fn speak(&self) {
        *self.speaks.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Makes another process the unit's main one. This process says nothing afterwards.
    pub(crate) fn resign_to(&self, pid: u32) {
        let mut speaks = self.speaks.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *speaks, false) {
            log_failure(sd_notify::notify(&[NotifyState::MainPid(pid)]));
        }
    }

    /// Sends one datagram.
    pub(crate) fn tell(&self, states: &[NotifyState<'_>]) {
        let speaks = self.speaks.lock().unwrap_or_else(PoisonError::into_inner);
        if *speaks {
            log_failure(sd_notify::notify(states));
        }
    }

    /// Leaves a descriptor with the manager, for the successor, which inherits it under its name.
    pub(crate) fn store(&self, name: &str, descriptor: impl AsFd) {
        if self.stores() {
            // `FDPOLL=0` is not needed: systemd drops a stored descriptor that hangs up, and listeners and mailboxes
            // never do.
            self.stored(name);
            let states = [NotifyState::FdStore, NotifyState::FdName(name)];
            log_failure(sd_notify::notify_with_fds(&states, &[descriptor.as_fd()] as &[BorrowedFd<'_>]));
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

    /// Has the manager close what it stores under a name.
    pub(crate) fn unstore(&self, name: &str) {
        if self.stores() {
            log_failure(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]));
        }
    }
}

fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot reach systemd's notification socket");
    }
}

/// The text as STATUS can have it: a line break would begin another assignment, systemd ignores a datagram of more
/// than 4,096 bytes, and `systemctl status` prints it as it is.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 900;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Escapes are longer than what they stand for.
    excerpt_of(LONGEST, &printable(&line)).into_owned()
}
