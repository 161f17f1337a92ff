//! The queue of a log: bounded in entries and in bytes, on their way to a thread that writes.
//!
//! Code that logs never waits for room: what a full queue refuses is counted. What was lost, the thread says in an event
//! of its own, seldom, for it may be much.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use super::sink::Unwritten;
use crate::event;

/// The most entries that may wait to be written, and the most bytes that they may hold: whichever is reached first.
pub(super) const LENGTH: usize = 8192;
const BYTES: usize = 8 << 20;

/// An entry of the queue.
enum Entry<T> {
    /// What is logged, and its memory in bytes.
    Logged(T, usize),
    /// A request to be told when all before it is written.
    Flush(mpsc::Sender<()>),
}

/// The end of the queue that code which logs has.
pub(super) struct Entrance<T> {
    entries: SyncSender<Entry<T>>,
    account: Arc<Account>,
}

/// The end that the writing thread has, with the account of what is lost.
pub(super) struct Outlet<T> {
    entries: Receiver<Entry<T>>,
    account: Arc<Account>,
    losses: Losses,
}

/// What both ends share.
#[derive(Debug)]
struct Account {
    /// The memory of the waiting entries, in bytes.
    bytes: AtomicUsize,
    /// The entries that there was no room for.
    refused: AtomicU64,
    /// Everything that is lost of all the queues that count here: what was refused, and what could not be written.
    lost: &'static AtomicU64,
}

/// A queue that counts what is lost in `lost`. `log` and `things` are what the event of it says: "access", "requests".
pub(super) fn bounded<T>(
    lost: &'static AtomicU64,
    log: &'static str,
    things: &'static str,
) -> (Entrance<T>, Outlet<T>) {
    let (entries, waiting) = sync_channel(LENGTH);
    let account = Arc::new(Account { bytes: AtomicUsize::new(0), refused: AtomicU64::new(0), lost });
    let losses = Losses { log, things, refused: 0, unwritten: 0, error: String::new(), at: None };
    let entrance = Entrance { entries, account: Arc::clone(&account) };
    (entrance, Outlet { entries: waiting, account, losses })
}

impl<T> Clone for Entrance<T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), account: Arc::clone(&self.account) }
    }
}

impl<T> fmt::Debug for Entrance<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entrance").field(&self.account).finish()
    }
}

impl<T> Entrance<T> {
    /// Has an entry written that holds so many bytes beside its own, if there is room for it.
    pub(super) fn put(&self, entry: T, bytes: usize) {
        let bytes = size_of::<Entry<T>>() + bytes;
        let grown = |waiting: usize| waiting.checked_add(bytes).filter(|waiting| *waiting <= BYTES);
        let has_room = self.account.bytes.fetch_update(Relaxed, Relaxed, grown).is_ok();
        if has_room && self.entries.try_send(Entry::Logged(entry, bytes)).is_ok() {
            return;
        }
        if has_room {
            self.account.bytes.fetch_sub(bytes, Relaxed);
        }
        self.account.refused.fetch_add(1, Relaxed);
        self.account.lost.fetch_add(1, Relaxed);
    }

    /// Waits until what was put in so far is written, and what is lost is said, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        /// Between two looks for room.
        const LOOK: Duration = Duration::from_millis(5);
        let end = Instant::now() + limit;
        let (written, wait) = channel();
        let mut flush = Entry::Flush(written);
        while let Err(TrySendError::Full(refused)) = self.entries.try_send(flush) {
            if Instant::now() >= end {
                return;
            }
            flush = refused;
            std::thread::sleep(LOOK);
        }
        // What is not written by then is lost.
        let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// What the thread has taken at a time.
pub(super) struct Taken {
    pub(super) number: usize,
    flushes: Vec<mpsc::Sender<()>>,
}

impl Taken {
    /// Tells those who wait for it that all is written.
    pub(super) fn tell_written(self) {
        for waiting in self.flushes {
            // It may have given up.
            let _ = waiting.send(());
        }
    }
}

impl<T> Outlet<T> {
    /// Waits for entries, and hands over those that are there; `None` once nobody is left who could put any in. No more
    /// than the queue holds at a time: others may come as fast as these are written.
    pub(super) fn take(&mut self, mut write: impl FnMut(T) -> Result<(), Unwritten>) -> Option<Taken> {
        let first = self.entries.recv().ok()?;
        let mut taken = Taken { number: 0, flushes: Vec::new() };
        for entry in std::iter::once(first).chain(self.entries.try_iter().take(LENGTH)) {
            taken.number += 1;
            match entry {
                Entry::Logged(entry, bytes) => {
                    if let Err(unwritten) = write(entry) {
                        self.losses.count(unwritten, &self.account);
                    }
                    self.account.bytes.fetch_sub(bytes, Relaxed);
                }
                Entry::Flush(written) => taken.flushes.push(written),
            }
        }
        Some(taken)
    }

    /// Counts what could not be written.
    pub(super) fn count(&mut self, written: Result<(), Unwritten>) {
        if let Err(unwritten) = written {
            self.losses.count(unwritten, &self.account);
        }
    }

    /// Says what was lost since it was said last, if that is long ago, or somebody waits for the end of the log.
    pub(super) fn say_losses(&mut self, taken: &Taken) {
        self.losses.say(self.account.refused.load(Relaxed), !taken.flushes.is_empty());
    }
}

/// What was lost, as the log itself says it.
#[derive(Debug)]
struct Losses {
    log: &'static str,
    things: &'static str,
    /// Those refused of which it was said.
    refused: u64,
    /// Those that could not be written and of which it was not said, and why the last of them could not be.
    unwritten: u64,
    error: String,
    at: Option<Instant>,
}

impl Losses {
    fn count(&mut self, Unwritten { number, error }: Unwritten, account: &Account) {
        account.lost.fetch_add(number, Relaxed);
        self.unwritten += number;
        self.error = error;
    }

    fn say(&mut self, refused: u64, at_once: bool) {
        const SELDOM: Duration = Duration::from_secs(60);
        let (log, things) = (self.log, self.things);
        let is_early = !at_once && self.at.is_some_and(|at| at.elapsed() < SELDOM);
        if is_early || (refused, 0) == (self.refused, self.unwritten) {
            return;
        }
        self.at = Some(Instant::now());
        let lost = refused - std::mem::replace(&mut self.refused, refused);
        if lost > 0 {
            tracing::warn!(
                message_id = event::LOG_LOST,
                log,
                lost,
                "{lost} {things} could not be logged: they come faster than the log is written"
            );
        }
        let lost = std::mem::take(&mut self.unwritten);
        if lost > 0 {
            let error = &*self.error;
            tracing::error!(
                message_id = event::LOG_FAILED,
                log,
                lost,
                error,
                "{lost} {things} could not be logged: {error}"
            );
        }
    }
}
