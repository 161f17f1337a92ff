//! The store of descriptors that outlive a worker, and, mirrored into systemd's, the main process itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::systemd::manager::Manager;

/// Descriptors by name; as with systemd's store, several may have the same one.
#[derive(Debug)]
pub(super) struct Store {
    kept: Vec<(String, OwnedFd)>,
    /// systemd, whose store has the same.
    systemd: Manager,
}

impl Store {
    /// What this process was started with.
    pub(super) fn new(systemd: Manager, inherited: Vec<(String, OwnedFd)>) -> Self {
        for (name, _) in &inherited {
            systemd.stored(name);
        }
        Self { kept: inherited, systemd }
    }

    /// Keeps a descriptor, unless it is there already.
    pub(super) fn keep(&mut self, name: &str, descriptor: OwnedFd) {
        let is_there = self.kept.iter().any(|(other, kept)| other == name && is_same(kept, &descriptor));
        if !is_there {
            self.systemd.store(name, &descriptor);
            self.kept.push((name.to_owned(), descriptor));
        }
    }

    /// Leaves a descriptor with systemd alone.
    pub(super) fn leave(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.systemd.store(name, descriptor);
    }

    /// Closes all that is kept under a name.
    pub(super) fn drop(&mut self, name: &str) {
        self.kept.retain(|(other, _)| other != name);
        self.systemd.unstore(name);
    }

    /// Has systemd close all that it keeps: there will be no next process.
    pub(super) fn forget(&self) {
        self.systemd.unstore_all();
    }

    /// Duplicates of those whose names are wanted, for another process.
    pub(super) fn duplicates(&self, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(String, OwnedFd)>> {
        let wanted = self.kept.iter().filter(|(name, _)| wanted(name));
        wanted.map(|(name, kept)| Ok((name.clone(), kept.try_clone()?))).collect()
    }
}

/// True if two descriptors are of one socket or file.
fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => identity(one) == identity(other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    //! Like systemd's store: one socket once, however often it comes; several under one name.

    use std::os::unix::net::UnixStream;

    use super::*;

    fn socket() -> OwnedFd {
        UnixStream::pair().expect("a pair of sockets").0.into()
    }

    fn names(store: &Store) -> Vec<String> {
        let kept = store.duplicates(|_| true).expect("descriptors can be duplicated");
        kept.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_socket_that_comes_again_is_kept_once_and_another_of_its_name_beside_it() {
        let first = socket();
        let inherited = vec![("listen".to_owned(), first.try_clone().expect("a duplicate"))];
        let mut store = Store::new(Manager::from_environment(), inherited);
        store.keep("listen", first);
        assert_eq!(names(&store), ["listen"]);
        store.keep("listen", socket());
        store.keep("mailbox-in", socket());
        assert_eq!(names(&store), ["listen", "listen", "mailbox-in"]);
        store.drop("listen");
        assert_eq!(names(&store), ["mailbox-in"]);
    }
}
