//! The thread that writes the access log: many records with one call where that is possible.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::{Dispatch, dispatcher};
use tracing_subscriber::fmt::MakeWriter;

use super::line::Lines;
use super::{Account, Config, Entry, LENGTH, OpenError, Record};
use crate::event;
use crate::logging::AccessFormat;
use crate::logging::queue::Losses;

/// The time in which records gather for the next call. Whoever puts one in meanwhile need not wake the thread, which
/// costs more than the record.
const GATHER: Duration = Duration::from_millis(5);

/// The most bytes that are written with one call.
const BATCH: usize = 64 << 10;

/// Where records go as events, if this process has set up its log itself. Otherwise they go where all events of the
/// program do.
pub(in crate::logging) static EVENTS: OnceLock<Events> = OnceLock::new();

/// The layers that write accesses as events. They are others than those of the events that an operator must see: to the
/// journal these have another priority, and on stderr many are written at once.
#[derive(Debug)]
pub(in crate::logging) struct Events {
    pub(in crate::logging) layers: Dispatch,
    pub(in crate::logging) has_ids: bool,
    pub(in crate::logging) stderr: Gathered,
}

/// Text for stderr that is written once there is enough of it, or no more for now.
#[derive(Clone, Debug, Default)]
pub(in crate::logging) struct Gathered(Arc<Mutex<Vec<u8>>>);

impl Gathered {
    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Gathered {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut gathered = self.text();
        gathered.extend_from_slice(text);
        if gathered.len() >= BATCH {
            write_out(&mut gathered, &mut io::stderr())?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        write_out(&mut self.text(), &mut io::stderr())
    }
}

impl MakeWriter<'_> for Gathered {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Writes all of a text, and leaves none of it. Of stderr nobody else writes meanwhile.
fn write_out(text: &mut Vec<u8>, out: &mut impl Write) -> io::Result<()> {
    let written = out.write_all(text);
    text.clear();
    written
}

/// Opens a file to add to, or makes it.
fn open(path: &Path) -> io::Result<File> {
    // To open a pipe that nobody reads would wait for its reader otherwise (fifo(7)).
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// The destination of records, and their format.
pub(super) enum Writer {
    Events,
    Lines {
        lines: Lines,
        /// Those that are to be written, and their number.
        text: Vec<u8>,
        number: u64,
        /// None for stderr.
        file: Option<File>,
    },
}

impl Writer {
    pub(super) fn open(config: &Config) -> Result<Self, OpenError> {
        let lines = match config.access_format {
            AccessFormat::Event => return Ok(Self::Events),
            AccessFormat::Combined => Lines::combined(),
            AccessFormat::Json => Lines::Json,
        };
        let open =
            |path: &PathBuf| open(path).map_err(|source| OpenError::File { path: path.clone(), source });
        let file = config.access_file.as_ref().map(open).transpose()?;
        Ok(Self::Lines { lines, text: Vec::new(), number: 0, file })
    }

    /// Writes what comes, until nobody is left who could put anything in.
    pub(super) fn run(mut self, waiting: &Receiver<Entry>, account: &Account) {
        let mut losses = Losses::default();
        let mut flushes: Vec<Sender<()>> = Vec::new();
        while let Ok(first) = waiting.recv() {
            let mut taken = 0;
            // No more than wait at a time: others may come as fast as these are written.
            for entry in std::iter::once(first).chain(waiting.try_iter().take(LENGTH)) {
                taken += 1;
                match entry {
                    Entry::Record(record) => {
                        self.write(&record, account);
                        account.bytes.fetch_sub(record.bytes(), Relaxed);
                    }
                    Entry::Flush(written) => flushes.push(written),
                }
            }
            self.flush(account);
            for written in flushes.drain(..) {
                // The waiting thread may have given up.
                let _ = written.send(());
            }
            if let Some(lost) = losses.due(account.lost.load(Relaxed)) {
                tracing::warn!(
                    message_id = event::LOG_LOST,
                    log = "access",
                    lost,
                    "{lost} requests could not be logged: the access log is written more slowly than they come"
                );
            }
            // Where they come faster than this there is enough for the next call anyway.
            if taken < LENGTH / 8 {
                std::thread::sleep(GATHER);
            }
        }
    }

    fn write(&mut self, record: &Record, account: &Account) {
        match self {
            Self::Events => match EVENTS.get() {
                Some(events) => dispatcher::with_default(&events.layers, || emit(record, events.has_ids)),
                None => emit(record, true),
            },
            Self::Lines { lines, text, number, .. } => {
                lines.write(record, text);
                *number += 1;
                if text.len() >= BATCH {
                    self.flush(account);
                }
            }
        }
    }

    fn flush(&mut self, account: &Account) {
        match self {
            Self::Events => {
                if let Some(events) = EVENTS.get() {
                    // There is no other place to say that stderr takes nothing.
                    let _ = events.stderr.clone().flush();
                }
            }
            Self::Lines { text, number, file, .. } => {
                let written = match file {
                    Some(file) => write_out(text, file),
                    None => write_out(text, &mut io::stderr()),
                };
                if written.is_err() {
                    // Some may have been written, of which no one can tell how many.
                    account.lose(*number);
                }
                *number = 0;
            }
        }
    }
}

/// To the journal it has priority debug(7), see `logging::start`.
fn emit(record: &Record, has_id: bool) {
    let (method, path) = (record.method.to_string(), record.path.to_string());
    tracing::info!(
        target: "steadfast::access",
        message_id = has_id.then_some(event::ACCESS),
        request_id = &*record.id,
        method = &*method,
        path = &*path,
        query = record.query.as_ref().map(ToString::to_string).as_deref(),
        route = &*record.route,
        peer = record.peer.map_or("unix".to_owned(), |peer| peer.to_string()),
        status = record.status,
        outcome = record.outcome,
        duration_usec = record.duration_usec(),
        bytes_sent = record.sent,
        "{} {} {} {} in {} ms",
        method,
        path,
        record.status.map_or("-".into(), |status| status.to_string()),
        record.outcome,
        record.duration.as_millis(),
    );
}
