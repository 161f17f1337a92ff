//! The thread that writes the access log: many records with one call where that is possible.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::{Dispatch, dispatcher};

use super::line::Lines;
use super::{Config, OpenError, Record, cannot_open};
use crate::event;
use crate::logging::AccessFormat;
use crate::logging::bounded::{LENGTH, Outlet};
use crate::logging::sink::{Destination, Sink, Text, Unwritten};

/// The time in which records gather for the next call. Whoever puts one in meanwhile need not wake the thread, which
/// costs more than the record.
const GATHER: Duration = Duration::from_millis(5);

/// The time between two looks if the file is still there.
const LOOK: Duration = Duration::from_secs(60);

/// Where records go as events, if this process has set up its log itself. Otherwise they go where all events of the
/// program do.
pub(in crate::logging) static EVENTS: OnceLock<Events> = OnceLock::new();

/// The layers that write accesses as events. They are others than those of the events that an operator must see: to the
/// journal these have another priority.
pub(in crate::logging) struct Events {
    has_ids: bool,
    /// The layers, and where they write. To open them may wait, which the access log's thread does.
    written: LazyLock<(Dispatch, Mutex<Destination>), Open>,
}

type Open = Box<dyn FnOnce() -> (Dispatch, Mutex<Destination>) + Send>;

impl Events {
    pub(in crate::logging) fn new(
        has_ids: bool,
        open: impl FnOnce() -> (Dispatch, Destination) + Send + 'static,
    ) -> Self {
        let open = || {
            let (layers, destination) = open();
            (layers, Mutex::new(destination))
        };
        Self { has_ids, written: LazyLock::new(Box::new(open)) }
    }

    fn destination<T>(&self, with: impl FnOnce(&mut Destination) -> T) -> T {
        with(&mut self.written.1.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where lines go.
#[derive(Debug)]
pub(super) struct Output {
    sink: Sink,
    /// None for stderr.
    path: Option<PathBuf>,
    next_look: Instant,
}

impl Output {
    fn open(path: Option<&PathBuf>) -> Result<Self, OpenError> {
        let sink = match path {
            Some(path) => {
                open(path).map(Sink::file).map_err(|source| OpenError::File { path: path.clone(), source })?
            }
            None => Sink::stderr(),
        };
        Ok(Self { sink, path: path.cloned(), next_look: Instant::now() + LOOK })
    }

    /// Writes lines, and leaves none of them.
    fn write(&mut self, text: &mut Text) -> Result<(), Unwritten> {
        if let Some(path) = &self.path
            && !text.is_empty()
            && Instant::now() >= self.next_look
        {
            if self.sink.is_deleted() {
                match open(path) {
                    Ok(file) => self.sink = Sink::file(file),
                    // Nobody could read them any more, so the next ones try again.
                    Err(error) => return Err(text.give_up(cannot_open(path, &error))),
                }
            }
            self.next_look = Instant::now() + LOOK;
        }
        self.sink.write(text).map_err(|(number, error)| {
            let error = match &self.path {
                Some(path) => format!("cannot write the access log {}: {error}", path.display()),
                None => format!("cannot write the access log to stderr: {error}"),
            };
            Unwritten { number, error }
        })
    }
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
        /// Those that are to be written.
        text: Text,
        output: Output,
    },
}

impl Writer {
    pub(super) fn open(config: &Config) -> Result<Self, OpenError> {
        let lines = match config.access_format {
            AccessFormat::Event => return Ok(Self::Events),
            AccessFormat::Combined => Lines::combined(),
            AccessFormat::Json => Lines::Json,
        };
        let output = Output::open(config.access_file.as_ref())?;
        Ok(Self::Lines { lines, text: Text::default(), output })
    }

    /// Writes what comes, until nobody is left who could put anything in.
    pub(super) fn run(mut self, mut outlet: Outlet<Box<Record>>) {
        if let (Self::Events, Some(events)) = (&self, EVENTS.get()) {
            // Now, for the journal is there: one that is gone by the first record comes back.
            LazyLock::force(&events.written);
        }
        while let Some(taken) = outlet.take(|record| self.write(&record)) {
            outlet.count(self.flush());
            outlet.say_losses(&taken);
            let number = taken.number;
            taken.tell_written();
            // Where they come faster than this there is enough for the next call anyway.
            if number < LENGTH / 8 {
                std::thread::sleep(GATHER);
            }
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), Unwritten> {
        match self {
            Self::Events => {
                let Some(events) = EVENTS.get() else {
                    emit(record, true);
                    return Ok(());
                };
                dispatcher::with_default(&events.written.0, || emit(record, events.has_ids));
                events.destination(Destination::after_event)
            }
            Self::Lines { lines, text, output } => {
                text.add(|text| lines.write(record, text));
                if text.is_enough() { output.write(text) } else { Ok(()) }
            }
        }
    }

    fn flush(&mut self) -> Result<(), Unwritten> {
        match self {
            Self::Events => EVENTS.get().map_or(Ok(()), |events| events.destination(Destination::flush)),
            Self::Lines { text, output, .. } => output.write(text),
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

#[cfg(test)]
mod tests {
    //! A file that is deleted is there again before long.

    use std::fs;

    use super::*;

    fn write(output: &mut Output, line: &str) -> Result<(), String> {
        let mut text = Text::default();
        text.add(|text| text.extend_from_slice(line.as_bytes()));
        output.write(&mut text).map_err(|unwritten| format!("{} lost: {}", unwritten.number, unwritten.error))
    }

    #[test]
    fn a_file_that_was_deleted_is_opened_anew_and_while_it_cannot_be_lines_are_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/access.log");
        let logs = path.parent().expect("its folder");
        fs::create_dir(logs).expect("a folder");
        let mut output = Output::open(Some(&path)).expect("a file");
        assert_eq!(write(&mut output, "one\n"), Ok(()));

        fs::remove_dir_all(logs).expect("it is deleted");
        output.next_look = Instant::now();
        let error = write(&mut output, "two\n").expect_err("it has no folder");
        assert!(error.starts_with("1 lost: cannot open the access log /"), "{error}");
        fs::create_dir(logs).expect("a folder");
        assert_eq!(write(&mut output, "three\n"), Ok(()));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "three\n");

        fs::remove_file(&path).expect("it is deleted");
        assert_eq!(write(&mut output, "before it is looked for\n"), Ok(()));
        output.next_look = Instant::now();
        assert_eq!(write(&mut output, "four\n"), Ok(()));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "four\n");
    }
}
