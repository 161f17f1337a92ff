//! The config: its file, and the parts that a [`Config`] is made of.
//!
//! Each part is named for its section. A program that has no file starts from a part's `default()`, or its `new(..)`
//! where there is no default, and sets what is to be different:
//!
//! ```
//! use steadfast::Config;
//! use steadfast::config::{Action, Address, Proxy, Route, Upstream};
//!
//! let mut config = Config::default();
//! config.http.listen = vec![Address::Tcp(([127, 0, 0, 1], 8080).into())];
//! let mut app = Proxy::new(Upstream::Unix("/run/app.sock".into()));
//! app.timeout = std::time::Duration::from_secs(10);
//! config.http.routes.push(Route::new("/app/*", Action::Proxy(app)));
//! ```
//!
//! One process has one config for its life: a changed file is for its successor.
// `written` reads the file's tables, and `value` the values in them; `meant` makes them a config, `places` finds in
// the file the values that the config's own rules refuse, and `diagnostic` shows them.

mod diagnostic;
mod meant;
mod places;
mod tree;
mod value;
mod written;

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use annotate_snippets::{Level, Renderer};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

pub use diagnostic::Mistakes;
pub use tree::Tree;
pub use value::ParseError;

pub use crate::daemon::admin::Config as Admin;
pub use crate::daemon::http::Config as Http;
pub use crate::daemon::http::https::{ClientAuth, Config as Https, TlsVersion};
pub use crate::daemon::http::routes::files::Config as Files;
pub use crate::daemon::http::routes::proxy::{Config as Proxy, Upstream};
pub use crate::daemon::http::routes::respond::Config as Respond;
pub use crate::daemon::http::routes::{Action, Route};
pub use crate::daemon::shutdown::Config as Shutdown;
pub use crate::daemon::supervisor::Config as Supervision;
pub use crate::handover::Config as Handover;
pub use crate::logging::{Access, AccessFormat, Config as Log, Format, Target};
pub use crate::rules::{Violation, Violations};
pub use crate::server::address::Address;
pub use crate::server::limits::{AtLimit, Limits, Trusted};
pub use crate::tls::certificates::CertificateFiles;

use crate::Exit;
use crate::daemon::Config;
use crate::daemon::config::{HTTPS, Source, Stale};
use crate::rules::Check;
use crate::systemd::activation::{LARGEST, decline, last_good};
use crate::{event, logging};
use diagnostic::{Mistake, stderr_has_colour};

/// The reason why there is no config. Either way the operator must act before a start can succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}", unreadable(path, source, &Renderer::plain()))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of reading it.
        source: io::Error,
    },
    /// The file has these mistakes.
    #[error(transparent)]
    Wrong(#[from] Mistakes),
}

impl Error {
    /// All of it for stderr: in colour where that is a terminal and `NO_COLOR` is not set.
    #[must_use]
    pub fn for_stderr(&self) -> String {
        match self {
            Self::Unreadable { path, source } if stderr_has_colour() => {
                unreadable(path, source, &Renderer::styled())
            }
            Self::Unreadable { .. } => self.to_string(),
            Self::Wrong(mistakes) => mistakes.for_stderr(),
        }
    }
}

impl Error {
    /// Tells one line of it to the main process, if that has started this one as a worker, and writes all of it to stderr.
    /// Returns the exit code of a program that has no config.
    #[must_use]
    pub fn report(&self) -> Exit {
        // First, for it waits for nobody: stderr may be a pipe that is full.
        decline(&self.in_short());
        // Whoever has read it may have gone, which changes nothing for the exit code.
        let _ = writeln!(io::stderr(), "{}", self.for_stderr());
        if logging::is_to_journal() {
            // What stderr takes there has no fields. There is no config that says where to log.
            logging::start(&Log::default());
            let in_short = self.in_short();
            tracing::error!(
                message_id = event::CONFIG_REFUSED,
                cause = in_short,
                "the config is wrong: {in_short}"
            );
            logging::finish();
        }
        Exit::Config
    }

    /// The reason on one line.
    fn in_short(&self) -> String {
        match self {
            Self::Unreadable { path, source } => format!("cannot read {}: {source}", path.display()),
            Self::Wrong(mistakes) => mistakes.summary(),
        }
    }
}

fn unreadable(path: &Path, source: &io::Error, renderer: &Renderer) -> String {
    let help = match source.kind() {
        io::ErrorKind::NotFound => "make the file, or name another with --config",
        io::ErrorKind::PermissionDenied => {
            "let the user that runs steadfast read the file and enter its directories"
        }
        io::ErrorKind::IsADirectory => "name the file in it",
        io::ErrorKind::FileTooLarge => "a config has at most 1 MiB",
        io::ErrorKind::InvalidInput => "name a file with --config, which each new worker can read again",
        _ => "name another file with --config",
    };
    let title = Level::ERROR.primary_title(format!("cannot read {}: {source}", path.display()));
    renderer.render(&[title.element(Level::HELP.message(help))])
}

/// The time in which somebody must have begun to write a config that is read from a pipe: a shell that starts both at once
/// may start the writer last.
const WRITER: Duration = Duration::from_secs(5);

/// The bytes of a config's file. It may be a pipe, as `/dev/stdin` is and what a shell makes of `<(command)`, and is read as
/// long as somebody writes it. One that nobody writes is no empty config, which would be every default; nor is a device,
/// such as the `/dev/null` that a worker has for its `/dev/stdin`.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // To open a named pipe would wait for its writer otherwise, for ever (fifo(7)).
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    let kind = file.metadata()?.file_type();
    let (mut bytes, end) = (Vec::new(), Instant::now() + WRITER);
    // Without a writer a pipe is at its end, also before the first one has come.
    while (&file).take(LARGEST as u64 + 1).read_to_end(&mut bytes)? == 0 && !kind.is_file() {
        if !kind.is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, and nothing is in it"));
        } else if Instant::now() >= end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing is written to this pipe"));
        }
        std::thread::sleep(WRITER / 100);
    }
    if bytes.len() > LARGEST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Refuses a pipe without a name: what was read of it is gone, and the next process could not read its config.
fn refuse_pipe(path: &Path) -> io::Result<()> {
    let is_pipe = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    // It is a link in `/proc` to no path (proc_pid_fd(5)).
    if is_pipe && path.canonicalize().is_err() {
        let why = "a pipe can be read once, and the config is read again for each worker";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}

impl Config {
    /// Reads a file, and the certificates that it names. That a directory it names is not there, or cannot be read, is no
    /// mistake: it may come later.
    ///
    /// Where the file is wrong at a restart of the service, or of a worker that crashed, this is the last config that
    /// was good, unless that has `[handover] last_good = false`; the log and the status say so.
    ///
    /// # Errors
    /// The file cannot be read, or is a pipe without a name, which the next process could not read; or it is wrong, or a
    /// certificate of it cannot be served.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let read = || {
            refuse_pipe(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
            Self::read(path, |mistake| !mistake.may_pass())
        };
        read().or_else(|error| Self::last_good(&error).ok_or(error))
    }

    /// The last good config, in the place of one that is wrong for this reason.
    fn last_good(error: &Error) -> Option<Self> {
        let mut config = Self::parse(&last_good()?, "the last good config").ok()?;
        config.source.stale = Some(Stale { in_short: error.in_short(), said: error.to_string() });
        Some(config)
    }

    /// The same, and checks that what the file names is there now, such as the directories that are served.
    ///
    /// # Errors
    /// The file cannot be read, is wrong, or names what is not there.
    pub fn check_file(path: &Path) -> Result<Self, Error> {
        Self::read(path, |_| true)
    }

    /// Checks the text of a file, as [`load`](Self::load) does, but for the certificates that it names; `origin` is what its
    /// mistakes are said to be in.
    ///
    /// # Errors
    /// The text is wrong: [`Error::Wrong`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        Self::parse_if(text, origin, |mistake| !mistake.may_pass(), |_, _| {})
    }

    /// What is doubtful in a config that was read from a file, although it can be served: a certificate that is about to
    /// expire or that some clients refuse, a file that the user who serves may not read, as `may_read` knows, a key that has
    /// no effect beside others. `None` if nothing is.
    #[must_use]
    pub fn warnings(&self, may_read: impl Fn(&Path) -> bool) -> Option<Mistakes> {
        let Source { name, text, .. } = &self.source;
        let (_, places) = meant::config(written::File::parse(text, &mut Vec::new())?, &mut Vec::new());
        let mut check = Check::default();
        self.load_https(&mut check);
        if let Some(https) = &self.https {
            check.table(HTTPS, |check| {
                for (key, path, expected) in https.files() {
                    if !may_read(path) {
                        let what =
                            format!("{} may not be read by the user that steadfast runs as", path.display());
                        check.warn(&key, what, expected).help(
                            "let it read the file and enter its directories, as by `chgrp` and `chmod g+r`",
                        );
                    }
                }
            });
        }
        let warnings = self.check().into_iter().flatten().chain(check.warnings());
        let warnings = warnings.filter_map(|warning| places.mistake(warning));
        Mistakes::warnings(name, text, warnings.collect())
    }

    fn read(path: &Path, counts: impl Fn(&Mistake) -> bool) -> Result<Self, Error> {
        let bytes = bytes(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let origin = path.display().to_string();
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse_if(text, &origin, counts, |config, check| _ = config.load_https(check)),
            Err(error) => {
                let at = error.valid_up_to();
                let text = String::from_utf8_lossy(&bytes);
                let stranger = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
                let mistake = Mistake::new(stranger, "the file is not UTF-8", "expected text")
                    .help("save the file as UTF-8".to_owned());
                Err(Mistakes::new(&origin, &text, vec![mistake]).into())
            }
        }
    }

    /// The same, with the mistakes that satisfy `counts` alone, and those that `look` finds in what the config names.
    fn parse_if(
        text: &str,
        origin: &str,
        counts: impl Fn(&Mistake) -> bool,
        look: impl FnOnce(&Self, &mut Check),
    ) -> Result<Self, Error> {
        let mut mistakes = Vec::new();
        let config = written::File::parse(text, &mut mistakes).map(|file| {
            let (config, places) = meant::config(file, &mut mistakes);
            let mut check = Check::default();
            look(&config, &mut check);
            if let Err(violations) = check.finish() {
                mistakes.extend(violations.0.into_iter().filter_map(|violation| places.mistake(violation)));
            }
            config
        });
        mistakes.retain(counts);
        match config {
            Some(mut config) if mistakes.is_empty() => {
                config.source = Source { name: origin.to_owned(), text: text.into(), stale: None };
                Ok(config)
            }
            _ => Err(Mistakes::new(origin, text, mistakes).into()),
        }
    }

    /// The config of the binary without a file: Hello World at `/`, the status everywhere else. `origin` is where the
    /// log says that it is from.
    #[must_use]
    pub fn embedded(origin: &str) -> Self {
        Self::parse(include_str!("default.toml"), origin)
            .unwrap_or_else(|error| unreachable!("the embedded default is tested\n{error}"))
    }

    /// The tree that this config makes, for people to read.
    #[must_use]
    pub fn tree(&self) -> Tree<'_> {
        Tree(self)
    }
}
