//! The handover: sockets on their way to the successor, the next process of the unit.
//!
//! The main process, and systemd, keep the listeners and the `mailbox`; each worker inherits them. One that hands over
//! puts what it has counted and its idle connections into the mailbox, and the next one takes them out: at once if it runs
//! already, as a rule, else when it starts. The rest of the program sees `Handover`.

mod envelope;
pub(crate) mod mailbox;
pub(crate) mod parcel;
#[cfg(test)]
mod seeds;

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::mailbox::Mailbox;
use self::parcel::Parcel;
use crate::rules::Check;
use crate::systemd::activation::Inherited;
use crate::systemd::manager::Manager;

/// `[handover]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Carry connections between two requests to the successor; true by default.
    pub connections: bool,
    /// Carry tunnels, the upgraded connections through `proxy`; true by default.
    pub tunnels: bool,
    /// The longest that a reload waits for the new worker to be ready; 30 s by default.
    pub ready_timeout: Duration,
    /// The longest that a predecessor may take to finish beside its successor; 1 h by default, `None` is "never".
    pub deadline: Option<Duration>,
    /// The most predecessors that finish at a time; of more, the oldest is cut. 8 by default.
    pub predecessors: u32,
    /// Serve the last good config when a restart finds a broken one; true by default.
    pub last_good: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: true,
            tunnels: true,
            ready_timeout: Duration::from_secs(30),
            deadline: Some(Duration::from_secs(60 * 60)),
            predecessors: 8,
            last_good: true,
        }
    }
}

impl Config {
    pub(crate) fn check(&self, check: &mut Check) {
        check.timeout("ready_timeout", self.ready_timeout);
        if let Some(deadline) = self.deadline {
            check.delay("deadline", deadline);
        }
        check.number("predecessors", self.predecessors.into(), PREDECESSORS);
    }
}

/// The reason why a connection is not carried to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum NotCarried {
    /// There is no store that would keep it until there is a successor.
    NoStore,
    /// The service is stopped for good.
    NoSuccessor,
    /// `[handover]` says so.
    SwitchedOff,
    /// The mailbox did not take it.
    MailboxFull,
    /// It speaks HTTP/2: its requests end here, and its client asks the next process on another connection.
    Http2,
    /// It is a tunnel whose TLS cannot go on: the server has said goodbye, for the upstream has, or the client has broken it.
    TlsEnded,
}

impl NotCarried {
    /// All reasons, in the order of their discriminants.
    pub(crate) const ALL: [Self; 6] =
        [Self::NoStore, Self::NoSuccessor, Self::SwitchedOff, Self::MailboxFull, Self::Http2, Self::TlsEnded];

    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoStore => "no_store",
            Self::NoSuccessor => "no_successor",
            Self::SwitchedOff => "switched_off",
            Self::MailboxFull => "mailbox_full",
            Self::Http2 => "http2",
            Self::TlsEnded => "tls_ended",
        }
    }
}

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStore => "there is no store",
            Self::NoSuccessor => "there is no next process",
            Self::SwitchedOff => "switched off in [handover]",
            Self::MailboxFull => "refused by the mailbox",
            Self::Http2 => "they spoke HTTP/2",
            Self::TlsEnded => "their TLS had ended",
        })
    }
}

/// The numbers of predecessors that may be allowed.
pub(crate) const PREDECESSORS: RangeInclusive<u64> = 1..=64;

/// The names of the mailbox's ends, in the store and on the way to a successor.
const ENTRANCE: &str = "mailbox-in";
const EXIT: &str = "mailbox-out";

/// The longest that a successor may leave the mailbox full.
const ROOM: Duration = Duration::from_secs(5);

/// The way to the successor.
#[derive(Debug)]
pub(crate) struct Handover {
    config: Config,
    mailbox: Option<Mailbox>,
    /// True if another process may have put something into it.
    inherited: bool,
    /// True if the mailbox and the listeners outlive this process, in the manager's store.
    stored: bool,
    /// True once it is known that the main process has no store above it.
    lacks_store: AtomicBool,
    /// True once a running successor holds them too, and takes connections out as they are put in.
    succeeded: AtomicBool,
    /// Cancelled once the service is being stopped for good.
    last: CancellationToken,
}

impl Handover {
    /// Takes the inherited mailbox, or makes one; none without a service manager, which alone can start a successor.
    pub(crate) fn bind(config: Config, inherited: &mut Inherited, manager: &Manager) -> io::Result<Self> {
        let (mailbox, inherited) = match (inherited.take(ENTRANCE).pop(), inherited.take(EXIT).pop()) {
            _ if !manager.listens() => (None, false),
            (Some(entrance), Some(exit)) => (Some(Mailbox::adopt(entrance, exit)?), true),
            _ => (Some(Mailbox::new()?), false),
        };
        Ok(Self {
            config,
            mailbox,
            inherited,
            stored: manager.stores(),
            lacks_store: AtomicBool::new(false),
            succeeded: AtomicBool::new(false),
            last: CancellationToken::new(),
        })
    }

    /// A handover over a restart, through this mailbox.
    #[cfg(test)]
    pub(crate) fn over(mailbox: Mailbox) -> Self {
        Self {
            config: Config::default(),
            mailbox: Some(mailbox),
            inherited: true,
            stored: true,
            lacks_store: AtomicBool::new(false),
            succeeded: AtomicBool::new(false),
            last: CancellationToken::new(),
        }
    }

    /// Leaves the mailbox with the service manager, which keeps one copy of each end however often it is given.
    pub(crate) fn store(&self, manager: &Manager) {
        for (name, end) in self.ends() {
            manager.store(name, end);
        }
    }

    /// The mailbox's ends by name, for the store and for a successor.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.mailbox.iter().flat_map(|m| [(ENTRANCE, m.entrance()), (EXIT, m.exit())])
    }

    /// Notes that a successor runs and takes out what is put in from now on.
    pub(crate) fn succeeded(&self) {
        self.succeeded.store(true, Relaxed);
    }

    /// Notes that nothing outlives the main process, which is about to end.
    pub(crate) fn lacks_store(&self) {
        self.lacks_store.store(true, Relaxed);
    }

    /// Notes that the service is stopped for good: connections left in the mailbox would be lost.
    pub(crate) fn nobody_follows(&self) {
        self.succeeded.store(false, Relaxed);
        self.last.cancel();
    }

    /// Is cancelled once nobody follows.
    pub(crate) fn last(&self) -> &CancellationToken {
        &self.last
    }

    /// True if a running successor takes parcels out as they are put in.
    pub(crate) fn is_taken_out(&self) -> bool {
        self.succeeded.load(Relaxed)
    }

    /// True if the listeners live on in the store or in a successor.
    pub(crate) fn keeps_listeners(&self) -> bool {
        (self.stored && !self.last.is_cancelled()) || self.is_taken_out()
    }

    /// The reason why a connection is not carried; `None` if it is.
    pub(crate) fn refuses(&self, is_tunnel: bool) -> Option<NotCarried> {
        let wanted = if is_tunnel { self.config.tunnels } else { self.config.connections };
        match wanted {
            false => Some(NotCarried::SwitchedOff),
            true if self.lacks_store.load(Relaxed) => Some(NotCarried::NoStore),
            true if self.last.is_cancelled() && !self.is_taken_out() => Some(NotCarried::NoSuccessor),
            true if self.mailbox.is_none() || !self.keeps_listeners() => Some(NotCarried::NoStore),
            true => None,
        }
    }

    /// Puts parcels into the mailbox, as many as it takes now, and leaves the rest.
    pub(crate) fn put(&self, parcels: &mut Vec<Parcel>) -> io::Result<()> {
        match &self.mailbox {
            Some(mailbox) => mailbox.put(parcels),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Waits for room, after the mailbox was full. False if nobody makes any.
    pub(crate) async fn has_room(&self) -> bool {
        match &self.mailbox {
            Some(mailbox) if self.is_taken_out() => tokio::time::timeout(ROOM, mailbox.room()).await.is_ok(),
            _ => false,
        }
    }

    /// True if something may wait in the mailbox from before this process.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// The mailbox that a predecessor's connections come from.
    pub(crate) fn mailbox(&self) -> Option<&Mailbox> {
        self.mailbox.as_ref()
    }
}
