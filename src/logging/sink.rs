//! Where a log is written, and how much of it could not be.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, fstat};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tracing_subscriber::fmt::MakeWriter;

/// The bytes of text that are worth a call.
const BATCH: usize = 64 << 10;

/// The most bytes that a pipe takes as a whole, whoever else writes to it (`PIPE_BUF`, pipe(7)).
const WHOLE: usize = 4096;

/// Where journald takes events (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
pub(super) const JOURNAL: &str = "/run/systemd/journal/socket";

/// Fails if nobody listens there. Waits for no room.
pub(super) fn find_journal() -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to(&[], JOURNAL) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        sent => sent.map(drop),
    }
}

/// More datagrams without a byte than the smallest buffer has room for: its 4.5 KiB, of which each takes half a KiB and more.
const EMPTY: usize = 16;

/// Returns when whoever listens there has taken all that was sent to it before, by whatever socket of this process.
///
/// journald looks up whose an entry is when it takes it. Of a process that has ended by then it knows nothing but the number,
/// and `journalctl -u` does not find what it has said last.
///
/// # Errors
/// Nobody listens, or not all was taken in time.
pub(super) fn wait_until_taken(listener: impl AsRef<Path>, limit: Duration) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    set_socket_send_buffer_size(&socket, 0)?;
    let end = Instant::now() + limit;
    let mut sent = 0;
    // They are nothing to it. There is room for the last once it has taken the first, and with that all before.
    while sent < EMPTY {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_write_timeout(Some(left))?;
        match socket.send_to(&[], &listener) {
            Ok(_) => sent += 1,
            // A signal: the kernel does not go on by itself where there is a limit (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A number of entries that could not be written, and why.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) number: u64,
    pub(super) error: String,
}

/// Entries that are to be written: each a line, or several.
#[derive(Debug, Default)]
pub(super) struct Text {
    bytes: Vec<u8>,
    /// Where each entry ends.
    ends: Vec<usize>,
}

impl Text {
    /// Adds an entry, which ends with a line feed.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// True if it is worth a call.
    pub(super) fn is_enough(&self) -> bool {
        self.bytes.len() >= BATCH
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Leaves out all entries, since they cannot be written.
    pub(super) fn give_up(&mut self, error: String) -> Unwritten {
        let number = self.ends.len() as u64;
        self.clear();
        Unwritten { number, error }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// A file or stderr, to which whole entries are added.
#[derive(Debug)]
pub(super) struct Sink {
    /// None for stderr.
    file: Option<File>,
    /// The most bytes that are written with one call, but for an entry that is longer.
    piece: usize,
    /// True if half an entry is the last that was written.
    is_torn: bool,
}

impl Sink {
    pub(super) fn file(file: File) -> Self {
        let is_regular = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        Self { file: Some(file), piece: piece(is_regular), is_torn: false }
    }

    pub(super) fn stderr() -> Self {
        let is_regular =
            fstat(io::stderr()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        Self { file: None, piece: piece(is_regular), is_torn: false }
    }

    /// True of a file without a name.
    pub(super) fn is_deleted(&self) -> bool {
        self.file.as_ref().is_some_and(|file| fstat(file).is_ok_and(|stat| stat.st_nlink == 0))
    }

    /// Writes a text's entries, and leaves none of them.
    pub(super) fn write(&mut self, text: &mut Text) -> Result<(), (u64, io::Error)> {
        match &mut self.file {
            Some(file) => write_entries(text, file, self.piece, &mut self.is_torn),
            None => write_entries(text, &mut io::stderr(), self.piece, &mut self.is_torn),
        }
    }
}

/// Into a file as much goes with one call as there is; elsewhere the lines of another process may come between two calls.
fn piece(is_regular: bool) -> usize {
    if is_regular { usize::MAX } else { WHOLE }
}

/// Writes entries in pieces of several, or of one that is longer. The error comes with the number of those that did not
/// go out whole.
fn write_entries(
    text: &mut Text,
    out: &mut impl Write,
    piece: usize,
    is_torn: &mut bool,
) -> Result<(), (u64, io::Error)> {
    let mut at = 0;
    let written = write_pieces(text, out, piece, is_torn, &mut at);
    let written = written.map_err(|error| {
        let number = text.ends.partition_point(|end| *end <= at);
        *is_torn |= at > number.checked_sub(1).map_or(0, |last| text.ends[last]);
        ((text.ends.len() - number) as u64, error)
    });
    text.clear();
    written
}

/// `at` is the number of bytes that went out.
fn write_pieces(
    text: &Text,
    out: &mut impl Write,
    piece: usize,
    is_torn: &mut bool,
    at: &mut usize,
) -> io::Result<()> {
    if *is_torn && !text.is_empty() {
        out.write_all(b"\n")?;
        *is_torn = false;
    }
    let mut ends = text.ends.iter().copied().peekable();
    while let Some(mut end) = ends.next() {
        let begin = *at;
        while let Some(next) = ends.next_if(|next| next - begin <= piece) {
            end = next;
        }
        while *at < end {
            match out.write(&text.bytes[*at..end]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => *at += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Text that a layer of events writes, until it is written to stderr.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered(Arc<Mutex<Text>>);

impl Gathered {
    fn text(&self) -> MutexGuard<'_, Text> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The layer writes an event with one call, and could say to nobody that it failed. So it never does.
impl Write for Gathered {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.text().add(|text| text.extend_from_slice(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Gathered {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Where a layer's events end up, as far as the layer cannot tell: it ignores the errors of its writes.
#[derive(Debug)]
pub(super) enum Destination {
    /// The journal, and the number of the events that went there since it was looked for.
    Journal(UnixDatagram, u64),
    Stderr(Gathered, Sink),
}

impl Destination {
    pub(super) fn journal() -> io::Result<Self> {
        Ok(Self::Journal(UnixDatagram::unbound()?, 0))
    }

    pub(super) fn stderr(text: &Gathered) -> Self {
        Self::Stderr(text.clone(), Sink::stderr())
    }

    /// Goes on after an event that the layer has got.
    pub(super) fn after_event(&mut self) -> Result<(), Unwritten> {
        match self {
            Self::Journal(_, number) => *number += 1,
            Self::Stderr(text, _) if text.text().is_enough() => return self.flush(),
            Self::Stderr(..) => {}
        }
        Ok(())
    }

    /// Has all written that the layer has got.
    pub(super) fn flush(&mut self) -> Result<(), Unwritten> {
        match self {
            Self::Journal(_, 0) => Ok(()),
            Self::Journal(socket, number) => {
                let number = std::mem::take(number);
                // Of what is sent nothing comes back. This says at least if there was nobody to take it.
                socket.send_to(&[], JOURNAL).map(drop).map_err(|error| Unwritten {
                    number,
                    error: format!("cannot reach the journal: {error}"),
                })
            }
            Self::Stderr(text, sink) => sink.write(&mut text.text()).map_err(|(number, error)| Unwritten {
                number,
                error: format!("cannot write to stderr: {error}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Of what cannot be written only that counts as lost, and whole lines follow half a one.

    use super::*;

    /// Where nothing has been taken yet.
    fn journal() -> (tempfile::TempDir, std::path::PathBuf, UnixDatagram) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).expect("a socket");
        journal.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
        UnixDatagram::unbound().expect("a socket").send_to(b"last words", &path).expect("there is room");
        (folder, path, journal)
    }

    #[test]
    fn whoever_waits_for_the_journal_waits_until_it_has_taken_what_was_sent_before() {
        let (_folder, path, journal) = journal();
        let error = wait_until_taken(&path, Duration::from_millis(10)).expect_err("it takes nothing");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        std::thread::scope(|scope| {
            scope.spawn(|| while journal.recv(&mut [0; 100]).is_ok() {});
            wait_until_taken(&path, Duration::from_secs(60)).expect("it takes all");
        });
        drop(journal);
        assert!(wait_until_taken(&path, Duration::from_secs(60)).is_err(), "nobody is there");
    }

    #[test]
    fn a_journal_that_takes_one_after_the_other_is_waited_for_no_longer_than_one_that_takes_none() {
        let (_folder, path, journal) = journal();
        let (limit, slow) = (Duration::from_millis(100), Duration::from_millis(80));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while journal.recv(&mut [0; 100]).is_ok() {
                    std::thread::sleep(slow);
                }
            });
            let error = wait_until_taken(&path, limit).expect_err("it has not taken all");
            // Each of those that there was no room for would have been taken within the limit.
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        });
    }

    #[test]
    fn a_signal_does_not_end_the_wait_for_the_journal() {
        let (_folder, path, journal) = journal();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _handled = {
            let _runtime = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()).expect("a handler")
        };
        let waiting = rustix::thread::gettid();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    // The kernel has the thread of this number handle it, if that can.
                    rustix::process::kill_process(waiting, rustix::process::Signal::CHILD)
                        .expect("it is sent");
                    std::thread::sleep(Duration::from_millis(5));
                }
                while journal.recv(&mut [0; 100]).is_ok() {}
            });
            wait_until_taken(&path, Duration::from_secs(60)).expect("it takes all");
        });
    }

    /// A disk with so much room.
    struct Disk {
        written: Vec<u8>,
        room: usize,
        calls: Vec<usize>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(self.room);
            if some == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= some;
            self.written.extend_from_slice(&bytes[..some]);
            self.calls.push(some);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text(entries: &[&str]) -> Text {
        let mut text = Text::default();
        for entry in entries {
            text.add(|text| text.extend_from_slice(entry.as_bytes()));
        }
        text
    }

    #[test]
    fn lines_that_went_out_before_a_disk_was_full_are_not_lost_and_the_next_begins_anew() {
        let mut disk = Disk { written: Vec::new(), room: 6, calls: Vec::new() };
        let mut torn = false;
        let mut write = |disk: &mut Disk, entries: &[&str]| {
            let mut text = text(entries);
            let written = write_entries(&mut text, disk, usize::MAX, &mut torn);
            assert!(text.is_empty());
            written.map_err(|(lost, error)| (lost, error.kind()))
        };
        assert_eq!(write(&mut disk, &["one\n", "two\n", "three\n"]), Err((2, ErrorKind::StorageFull)));
        assert_eq!(write(&mut disk, &["four\n"]), Err((1, ErrorKind::StorageFull)));
        disk.room = 100;
        assert_eq!(write(&mut disk, &[]), Ok(()));
        assert_eq!(write(&mut disk, &["five\n"]), Ok(()));
        // Full behind a whole line: nothing is torn.
        disk.room = 4;
        assert_eq!(write(&mut disk, &["six\n", "seven\n"]), Err((1, ErrorKind::StorageFull)));
        disk.room = 100;
        assert_eq!(write(&mut disk, &["eight\n"]), Ok(()));
        assert_eq!(disk.written.escape_ascii().to_string(), r"one\ntw\nfive\nsix\neight\n");
    }

    #[test]
    fn a_pipe_gets_whole_lines_in_pieces_that_it_takes_as_a_whole() {
        let mut disk = Disk { written: Vec::new(), room: usize::MAX, calls: Vec::new() };
        let (short, long) = (format!("{}\n", "s".repeat(1499)), format!("{}\n", "l".repeat(4999)));
        let mut entries = text(&[&short, &short, &short, &long, &short]);
        write_entries(&mut entries, &mut disk, WHOLE, &mut false).expect("there is room");
        assert_eq!(disk.calls, [3000, 1500, 5000, 1500]);
    }
}
