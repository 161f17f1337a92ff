//! The log: events on their way to journald or to stderr.

mod queue;

use std::io::{self, IsTerminal};
use std::time::Duration;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry};

use self::queue::Queue;
pub(crate) use self::queue::lost;
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Some(Level::INFO),
            target: Target::Auto,
            format: Format::Text,
            access: Access::Errors,
            slow: Duration::from_secs(1),
        }
    }
}

impl Config {
    pub(crate) fn check(&self, check: &mut Check) {
        check.delay("slow", self.slow);
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
    /// None.
    Off,
}

/// The longest that the end of the process waits for the last events to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Sends events, and the messages of panics, to where the config says. Call it once, first thing; if the process has
/// a subscriber already, that one is kept. Code that logs never waits: events that a slow journal leaves no room for
/// are lost, and counted.
pub fn start(config: &Config) {
    restore_stderr();
    let levels = Targets::new()
        .with_default(config.level.map_or(LevelFilter::OFF, LevelFilter::from_level))
        // The tree's own account of a stop, and of a child that failed for good, repeats ours.
        .with_target("tokio_graceful_shutdown", LevelFilter::OFF);
    let writer = match journal(config.target) {
        Ok(Some(journal)) => journal.boxed(),
        Ok(None) => stderr(config.format),
        Err(error) => {
            eprintln!("cannot reach journald, logging to stderr: {error}");
            stderr(config.format)
        }
    };
    match Queue::start(tracing_subscriber::registry().with(writer).into()) {
        Ok(Some(queue)) => _ = tracing_subscriber::registry().with(queue.with_filter(levels)).try_init(),
        Ok(None) => {}
        Err(error) => eprintln!("cannot start the thread that logs, there is no log: {error}"),
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// Returns when what was logged so far is written, or cannot be for want of time.
pub(crate) fn flush() {
    queue::flush(FLUSH);
}

/// The journal, if events go there.
fn journal(target: Target) -> io::Result<Option<tracing_journald::Layer>> {
    let wanted = match target {
        Target::Auto => stderr_is_the_journal(),
        Target::Journald => true,
        Target::Stderr => false,
    };
    if !wanted {
        return Ok(None);
    }
    let journal = tracing_journald::layer()?
        // Fields keep their names: METHOD, PATH, MESSAGE_ID.
        .with_field_prefix(None)
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        });
    Ok(Some(journal))
}

fn stderr(format: Format) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match format {
        Format::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// True if systemd connected stderr to journald: then `$JOURNAL_STREAM` names stderr's device and inode
/// (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
