//! The access log: a record for each request that is logged, on its way to where it is written.
//!
//! Its queue and its thread are its own, so that a flood of accesses takes no room from any other event, and a request
//! costs its thread no more than a copy. What the queue refuses is counted, and the log says so now and then.
//!
//! A record becomes an event as any other, or a line of a format that other programs read (`line`).

mod line;
mod writer;

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use axum::http::{HeaderValue, Version};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, dispatcher};

use self::writer::Writer;
pub(super) use self::writer::{EVENTS, Events};
use super::Config;
use super::bounded::{Entrance, bounded};
use crate::printable::{LONGEST, beginning, split};

/// The records that could not be logged, of all access logs of this process.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The number of requests that could not be logged.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// A request that has ended, as it is logged.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) ended: SystemTime,
    pub(crate) id: Box<str>,
    pub(crate) method: Excerpt,
    pub(crate) path: Excerpt,
    pub(crate) query: Option<Excerpt>,
    pub(crate) version: Version,
    pub(crate) route: Box<str>,
    /// The client's address; none on a unix socket.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) status: Option<u16>,
    pub(crate) outcome: &'static str,
    pub(crate) duration: Duration,
    /// The bytes of its answer, and those of the answer's body alone.
    pub(crate) sent: u64,
    pub(crate) body: u64,
    pub(crate) referer: Option<Box<[u8]>>,
    pub(crate) user_agent: Option<Box<[u8]>>,
}

impl Record {
    fn bytes(&self) -> usize {
        let excerpts = [Some(&self.method), Some(&self.path), self.query.as_ref()].into_iter().flatten();
        let fields = [&self.referer, &self.user_agent].into_iter().flatten();
        size_of::<Self>()
            + self.id.len()
            + self.route.len()
            + excerpts.map(|excerpt| excerpt.text.len()).sum::<usize>()
            + fields.map(|field| field.len()).sum::<usize>()
    }

    /// What is kept of a field's value.
    pub(crate) fn field(value: &HeaderValue) -> Box<[u8]> {
        let value = value.as_bytes();
        value[..value.len().min(LONGEST)].into()
    }

    fn duration_usec(&self) -> u64 {
        u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The beginning of a text whose length its client has chosen, as it came.
#[derive(Debug)]
pub(crate) struct Excerpt {
    text: Box<str>,
    /// The bytes that are left out.
    more: usize,
}

impl Excerpt {
    pub(crate) fn of(text: &str) -> Self {
        let (begin, rest) = split(LONGEST, text);
        Self { text: begin.into(), more: rest.len() }
    }
}

/// As other events show it.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&beginning(&self.text, self.more))
    }
}

/// The reason why there is no access log. The operator must act before a start can succeed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file cannot be opened.
    #[error("{}", cannot_open(path, source))]
    File {
        /// The file.
        path: PathBuf,
        /// The error of opening it.
        source: io::Error,
    },
    /// The system refuses a thread.
    #[error("cannot start the thread that writes the access log: {0}")]
    Thread(#[source] io::Error),
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "; make its directory, or correct `access_file` in [log]",
        io::ErrorKind::PermissionDenied => {
            "; let the user that runs steadfast write there (LogsDirectory= of the unit)"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; allow it in the unit (LogsDirectory=, ReadWritePaths=)",
        _ if path.metadata().is_ok_and(|file| file.file_type().is_fifo()) => {
            "; nobody reads this pipe: start its reader first"
        }
        _ => "",
    };
    format!("cannot open the access log {}: {error}{help}", path.display())
}

/// An access log: the way of records to the thread that writes them, which ends after the last one.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Entrance<Box<Record>>);

impl AccessLog {
    /// Opens the file, if there is one, and starts the thread.
    pub(crate) fn start(config: &Config) -> Result<Self, OpenError> {
        let writer = Writer::open(config)?;
        let (entrance, outlet) = bounded(&LOST, "access", "requests");
        // Whoever takes the events of the thread that opens the log takes those of the log as well.
        let subscriber = dispatcher::get_default(Dispatch::clone);
        let write = move || {
            let _scope = (!subscriber.is::<NoSubscriber>()).then(|| dispatcher::set_default(&subscriber));
            writer.run(outlet);
        };
        std::thread::Builder::new().name("access log".into()).spawn(write).map_err(OpenError::Thread)?;
        Ok(Self(entrance))
    }

    /// Has a record written, if there is room for it.
    pub(crate) fn put(&self, record: Record) {
        let bytes = record.bytes();
        self.0.put(Box::new(record), bytes);
    }

    /// Waits until what was put in so far is written, for `limit` at most.
    pub(crate) fn flush(&self, limit: Duration) {
        self.0.flush(limit);
    }
}
