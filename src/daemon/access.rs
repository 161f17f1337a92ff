//! The access log: one event a request, written off the request's path.
//!
//! A request's end only puts a record into a bounded queue; one thread turns records into events, so a slow
//! journal holds up that thread alone. What the full queue refuses is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use tokio::sync::oneshot;

use super::registry::{Outcome, Peer};
use crate::logging::{self, Access};

/// How many records may wait for the thread that writes them.
const QUEUE: usize = 4096;
/// How long the end of the daemon waits for them.
const FLUSH: Duration = Duration::from_secs(1);

/// A request that ended.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) peer: Peer,
    pub(super) status: Option<StatusCode>,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    pub(super) sent: u64,
}

/// What waits for the thread.
#[derive(Debug)]
enum Entry {
    Request(Record),
    /// Tells when everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// Where the registry puts its records.
#[derive(Clone, Debug)]
pub struct AccessLog {
    policy: Access,
    slow: Duration,
    queue: Option<SyncSender<Entry>>,
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread that writes. It ends when the last clone of the log is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: &logging::Config) -> std::io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(&entries))?;
        Ok(Self { policy: config.access, slow: config.slow, queue: Some(queue), lost: Arc::default() })
    }

    /// A log that keeps nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { policy: Access::Off, slow: Duration::MAX, queue: None, lost: Arc::default() }
    }

    /// How many records were lost because the queue was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) fn log(&self, record: Record) {
        let failed = record.outcome == Outcome::Cut || record.status.is_some_and(|s| s.is_server_error());
        let wanted = match self.policy {
            Access::All => true,
            Access::Errors => failed,
            Access::Off => false,
        };
        if let Some(queue) = &self.queue
            && (wanted || record.took >= self.slow)
            && queue.try_send(Entry::Request(record)).is_err()
        {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until what was logged so far is written, or for a moment if the journal is too slow for that.
    pub(super) async fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (written, wait) = oneshot::channel();
        if queue.try_send(Entry::Flush(written)).is_ok() {
            let _ = tokio::time::timeout(FLUSH, wait).await;
        }
    }
}

fn write(entries: &Receiver<Entry>) {
    for entry in entries {
        match entry {
            Entry::Request(record) => emit(&record),
            // Whoever asked may have given up.
            Entry::Flush(written) => _ = written.send(()),
        }
    }
}

fn emit(r: &Record) {
    tracing::info!(
        target: "steadfast::access",
        method = %r.method,
        path = r.uri.path(),
        query = r.uri.query(),
        peer = %r.peer,
        status = r.status.map(|s| s.as_u16()),
        outcome = r.outcome.name(),
        took_ms = u64::try_from(r.took.as_millis()).unwrap_or(u64::MAX),
        sent = r.sent,
        "{} {} {} {} in {} ms",
        r.method,
        r.uri.path(),
        r.status.map_or("-".into(), |s| s.as_u16().to_string()),
        r.outcome.name(),
        r.took.as_millis(),
    );
}
