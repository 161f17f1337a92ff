//! What can be said to the service manager (`sd_notify(3)`), and its store of descriptors.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::printable::{excerpt_of, printable};

/// Its room for descriptors that are to outlive this process (`FileDescriptorStoreMax=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    /// There is none.
    None,
    /// There is one, of a size that nobody tells.
    OfUnknownSize,
    /// There is one for so many.
    Of(usize),
}

impl Store {
    /// Reads the environment: systemd 254 and later tells of the store in `$FDSTORE` (systemd.exec(5)), for an older one
    /// the unit does. There "1" is what a unit says that tells no number.
    fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<usize>().ok().filter(|n| *n > 0);
        match (number("FDSTORE"), number("STEADFAST_FDSTORE")) {
            (None, Some(1)) => Self::OfUnknownSize,
            (Some(size), _) | (None, Some(size)) => Self::Of(size),
            (None, None) => Self::None,
        }
    }
}

/// The line to the service manager. Without `NOTIFY_SOCKET` all of it is silent and free.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    listens: bool,
    store: Store,
    /// Whether this process is, or is about to be, the unit's main one: the only one that is heard.
    speaks: Arc<Mutex<bool>>,
    /// The names of what it stores for this process.
    stored: Arc<Mutex<BTreeSet<String>>>,
}

impl Manager {
    /// Reads the environment. A process that takes another's place keeps silent until [`Self::speak`].
    pub(crate) fn from_environment(speaks: bool) -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            listens,
            store: if listens { Store::from_environment() } else { Store::None },
            speaks: Arc::new(Mutex::new(speaks)),
            stored: Arc::default(),
        }
    }

    /// Whether anyone listens.
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// Whether descriptors can be left with it.
    pub(crate) fn stores(&self) -> bool {
        self.store != Store::None
    }

    /// Warns if it has no room for all that was left with it: it says nothing of what it drops.
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

    /// How long it waits between two pings, if it has a watchdog on this process.
    pub(crate) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }

    /// This process is the main one now.
    pub(crate) fn speak(&self) {
        *self.speaks.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Makes another process the unit's main one. The last word of this one.
    pub(crate) fn resign_to(&self, pid: u32) {
        let mut speaks = self.speaks.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *speaks, false) {
            heard(sd_notify::notify(&[NotifyState::MainPid(pid)]));
        }
    }

    /// Sends one datagram.
    pub(crate) fn tell(&self, states: &[NotifyState<'_>]) {
        let speaks = self.speaks.lock().unwrap_or_else(PoisonError::into_inner);
        if *speaks {
            heard(sd_notify::notify(states));
        }
    }

    /// Leaves a descriptor with the manager, for the next process. It comes back under its name.
    pub(crate) fn store(&self, name: &str, descriptor: impl AsFd) {
        if self.stores() {
            // Only what was sent to be stored is polled: a listener and a mailbox never hang up.
            self.stored(name);
            let states = [NotifyState::FdStore, NotifyState::FdName(name)];
            heard(sd_notify::notify_with_fds(&states, &[descriptor.as_fd()] as &[BorrowedFd<'_>]));
        }
    }

    /// It stores a descriptor already, from which this process inherited its own.
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
            heard(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]));
        }
    }
}

fn heard(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot reach systemd's notification socket");
    }
}

/// A text fit for STATUS: a line break would begin another assignment, systemd ignores a datagram of more than 4,096
/// bytes, and `systemctl status` prints it as it is.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 900;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Escapes are longer than what they stand for.
    excerpt_of(LONGEST, &printable(&line)).into_owned()
}
