//! The log: events on their way to journald or to stderr, and the access log.

pub(crate) mod access;
mod bounded;
mod queue;
mod sink;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Level};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry};

pub use self::access::OpenError as AccessLogError;
pub(crate) use self::access::lost as access_lost;
use self::access::{EVENTS, Events};
use self::queue::Queue;
pub(crate) use self::queue::lost;
use self::sink::{Destination, Gathered};
use crate::event;
use crate::rules::Check;
use crate::systemd::activation::restore_stderr;

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The least severe level that is logged; `None` is "off". Info by default.
    pub level: Option<Level>,
    /// The destination of events; [`Target::Auto`] by default.
    pub target: Target,
    /// The format of events on stderr; [`Format::Text`] by default.
    pub format: Format,
    /// Which requests are logged; [`Access::Errors`] by default.
    pub access: Access,
    /// Requests slower than this are logged whatever `access` says; 1 s by default.
    pub slow: Duration,
    /// The format of the access log; [`AccessFormat::Event`] by default.
    pub access_format: AccessFormat,
    /// The file that the access log's lines are added to; `None`, the default, is stderr. Not with
    /// [`AccessFormat::Event`].
    pub access_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Some(Level::INFO),
            target: Target::Auto,
            format: Format::Text,
            access: Access::Errors,
            slow: Duration::from_secs(1),
            access_format: AccessFormat::Event,
            access_file: None,
        }
    }
}

impl Config {
    pub(crate) fn check(&self, check: &mut Check) {
        check.delay("slow", self.slow);
        let Some(file) = &self.access_file else { return };
        if !file.is_absolute() {
            check.note("access_file", "`access_file` is not an absolute path", ACCESS_FILE);
        } else if self.access_format == AccessFormat::Event {
            let also = check.path("access_format");
            check
                .note(
                    "access_file",
                    "`access_file` is for lines, and accesses are events",
                    "a format of lines",
                )
                .also(also, "the format")
                .help("set `access_format` to \"combined\" or \"json\"");
        }
    }
}

/// The destination of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// To journald when systemd connected stderr to it, else to stderr.
    Auto,
    /// To journald.
    Journald,
    /// To stderr.
    Stderr,
}

/// The format of events on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A line of text.
    Text,
    /// A JSON object a line.
    Json,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Every request.
    All,
    /// Those answered with 5xx, and those that were broken off or cut.
    Errors,
    /// None but the slow ones.
    Off,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessFormat {
    /// Events, where all others go.
    Event,
    /// Lines in the combined format of Apache and nginx.
    Combined,
    /// A JSON object a line.
    Json,
}

/// The text of a mistake that says what is expected of `access_file`.
pub(crate) const ACCESS_FILE: &str =
    "\"stderr\", or an absolute path, such as \"/var/log/steadfast/access.log\"";

/// True if this process's events go to the journal.
static IS_TO_JOURNAL: AtomicBool = AtomicBool::new(false);

/// The longest wait for events to be written, and the longest for the journal to take them.
const FLUSH: Duration = Duration::from_secs(1);

/// Sends events, and the messages of panics, to where the config says. Call it once, first thing; if the process has
/// a subscriber already, that one is kept. Code that logs never waits: events that a slow journal leaves no room for
/// are lost, and counted.
pub fn start(config: &Config) {
    restore_stderr();
    let levels = Targets::new()
        .with_default(config.level.map_or(LevelFilter::OFF, LevelFilter::from_level))
        // The tree's own account of a stop, and of a child that failed for good, repeats ours.
        .with_target("tokio_graceful_shutdown", LevelFilter::OFF)
        // An HTTP/2 client could have it say as much as it likes, each frame at `debug`.
        .with_target("h2", LevelFilter::OFF);
    let format = config.format;
    let to_journal = match config.target {
        Target::Auto => is_to_journal(),
        Target::Journald => true,
        Target::Stderr => false,
    } && sink::find_journal().inspect_err(no_journal).is_ok();
    let has_ids = to_journal || format == Format::Json;
    match Queue::start(move || written(to_journal, format, Priority::Informational)) {
        Ok(Some(queue)) => {
            let queue = queue.with_ids(has_ids);
            let log = tracing_subscriber::registry().with(queue.with_filter(levels));
            if log.try_init().is_ok() {
                IS_TO_JOURNAL.store(to_journal, Relaxed);
                // journald's rate limit counts by priority, and takes notice and info for one (`priority_map` in its
                // journald-rate-limit.c): debug is the only one in which many accesses use up nothing but their own share.
                let accesses = move || written(to_journal, format, Priority::Debug);
                // The first, as that queue is.
                let _ = EVENTS.set(Events::new(has_ids, accesses));
            }
        }
        Ok(None) => {}
        Err(error) => eprintln!("cannot start the thread that logs, there is no log: {error}"),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(message_id = event::PANIC, "{panic}");
        // The process ends. Within a runtime it may not; where it does, `run_blocking` has `LastWords`.
        if std::thread::current().name() == Some("main") && runtime::Handle::try_current().is_err() {
            finish();
        }
    }));
}

/// Returns when what was logged so far is written, or cannot be for want of time.
pub(crate) fn flush() {
    queue::flush(FLUSH);
}

/// The same at the end of the process: the journal has taken it as well, if it goes there.
pub(crate) fn finish() {
    flush();
    if IS_TO_JOURNAL.load(Relaxed) {
        // Whatever it is, nobody is left to be told.
        let _ = sink::wait_until_taken(sink::JOURNAL, FLUSH);
    }
}

/// Has the log finished if what runs in its scope panics.
pub(crate) struct LastWords;

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            finish();
        }
    }
}

/// The same of an access log.
pub(crate) fn flush_access(log: &access::AccessLog) {
    log.flush(FLUSH);
}

/// What writes events, to the journal or to stderr, and where they end up. Waits while the journal has no room.
fn written(to_journal: bool, format: Format, info: Priority) -> (Dispatch, Destination) {
    let journal = to_journal.then(|| journal(info).inspect_err(no_journal).ok()).flatten();
    let (layer, destination) = journal.unwrap_or_else(|| stderr(format));
    (tracing_subscriber::registry().with(layer).into(), destination)
}

fn no_journal(error: &io::Error) {
    eprintln!("cannot reach journald, logging to stderr: {error}");
}

/// A layer that writes somewhere, and where that is.
type Written = (Box<dyn Layer<Registry> + Send + Sync>, Destination);

/// The journal, and the layer that writes there, with this priority for events of level info.
fn journal(info: Priority) -> io::Result<Written> {
    let layer = tracing_journald::layer()?
        // Fields keep their names: METHOD, PATH, MESSAGE_ID.
        .with_field_prefix(None)
        .with_syslog_identifier(program())
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info,
            debug: Priority::Debug,
            trace: Priority::Debug,
        });
    Ok((layer.boxed(), Destination::journal()?))
}

/// The program's name, by which `journalctl -t` finds it. The first argument is a title.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // As the kernel names a file that an upgrade has replaced.
    name.trim_end_matches(" (deleted)").to_owned()
}

/// Stderr, and the layer that writes there in this format.
fn stderr(format: Format) -> Written {
    let text = Gathered::default();
    let destination = Destination::stderr(&text);
    let layer = tracing_subscriber::fmt::layer().with_writer(text);
    let layer = match format {
        Format::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    (layer, destination)
}

/// True if systemd connected stderr to journald: then `$JOURNAL_STREAM` names stderr's device and inode
/// (systemd.exec(5)).
pub(crate) fn is_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
