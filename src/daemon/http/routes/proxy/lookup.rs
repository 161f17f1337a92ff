//! The addresses of an upstream that has a name.
//!
//! A name is looked up for each attempt to connect, for nobody here is told how long an answer of DNS holds. A lookup
//! blocks a thread until `getaddrinfo(3)` returns, which may be long after its caller has given up, and nothing ends it
//! before. So there is one at a time for all attempts: a resolver that is silent takes one thread, however many requests
//! come.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// A host by its name, and a port.
#[derive(Debug)]
pub(super) struct Name {
    host: Arc<str>,
    port: u16,
    resolve: Resolve,
    /// The last lookup. Its thread has the other end, and drops it when it is done.
    last: Mutex<Option<watch::Receiver<Found>>>,
}

/// A function that returns the addresses of a host and a port. May block.
pub(super) type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// The outcome of a lookup, for all who have waited for it.
type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// As the machine does it: by its hosts file, DNS, whatever nsswitch.conf(5) says.
pub(super) fn by_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

impl Name {
    pub(super) fn new(host: &str, port: u16, resolve: Resolve) -> Self {
        Self { host: host.into(), port, resolve, last: Mutex::default() }
    }

    /// Returns its addresses, by the lookup in flight or a new one, which goes on if this is dropped. Needs a runtime.
    pub(super) async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        let mut lookup = self.lookup();
        // It has ended without an outcome if its runtime has.
        lookup.changed().await.map_err(io::Error::other)?;
        let found = lookup.borrow().clone();
        found.map_err(|error| io::Error::new(error.kind(), error))
    }

    /// The lookup in flight, or else a new one.
    fn lookup(&self) -> watch::Receiver<Found> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = last.as_ref().filter(|lookup| lookup.has_changed().is_ok()) {
            return lookup.clone();
        }
        let (sender, lookup) = watch::channel(Ok(Arc::default()));
        let (host, port, resolve) = (Arc::clone(&self.host), self.port, self.resolve);
        spawn_blocking(move || {
            let found = resolve(&host, port);
            // The upstream's route may be gone.
            let _ = sender.send(found.map(Arc::from).map_err(Arc::new));
        });
        last.insert(lookup).clone()
    }
}

#[cfg(test)]
mod tests {
    //! A lookup is for all who wait for it, and for nobody who comes later.

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
    use std::thread;
    use std::time::Duration;

    use futures_util::poll;
    use tokio::time::sleep;

    use super::*;

    static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
    static MAY_ANSWER: AtomicBool = AtomicBool::new(false);

    /// Fails at first, once it may, and knows an address from then on.
    fn recovering(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let lookup = LOOKUPS.fetch_add(1, Relaxed);
        while !MAY_ANSWER.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        if lookup == 0 {
            Err(io::Error::other(host.to_owned()))
        } else {
            Ok(vec![([192, 0, 2, 1], port).into()])
        }
    }

    #[tokio::test]
    async fn a_lookup_is_for_all_who_wait_for_it_and_for_nobody_who_comes_later() {
        let name = Name::new("app.example", 80, recovering);
        // One gives up, two wait on.
        let mut given_up = Box::pin(name.addresses());
        assert!(poll!(&mut given_up).is_pending());
        drop(given_up);
        let (mut first, mut second) = (Box::pin(name.addresses()), Box::pin(name.addresses()));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        MAY_ANSWER.store(true, Relaxed);
        for waiting in [first, second] {
            assert_eq!(waiting.await.expect_err("it fails").to_string(), "app.example");
        }
        while name.last.lock().expect("no panic").as_ref().is_some_and(|lookup| lookup.has_changed().is_ok())
        {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(*name.addresses().await.expect("addresses"), [SocketAddr::from(([192, 0, 2, 1], 80))]);
        assert_eq!(LOOKUPS.load(Relaxed), 2);
    }
}
