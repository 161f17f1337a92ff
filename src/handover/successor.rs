//! A reload, seen from the predecessor: it starts its successor and waits until that is ready.
//!
//! The two speak over a socket pair, a line at a time. The successor says `ready`, or `failed` with the reason; the
//! predecessor answers `go`, the transfer, once it has made the successor the main process. From then on the socket
//! is open as long as the predecessor drains, and the successor may send `cut`.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::named;
use crate::systemd::activation::{CHANNEL, STDERR};

/// The first descriptor that is passed on (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// Starts `"$@"` as a child of the service manager rather than of this process, so that the manager may supervise it:
/// the shell that starts it ends at once, and its children become the manager's. The outer shell prints the inner one's
/// process number, which `exec` makes the successor's; the inner one sets `LISTEN_PID` and `WATCHDOG_PID` to it.
/// Standard output is used for that number alone.
const START: &str =
    r#"sh -c 'export LISTEN_PID=$$ ${WATCHDOG_PID:+WATCHDOG_PID=$$}; exec "$@"' sh "$@" >&2 & echo $!"#;

/// The reason why there is no successor. This process goes on as if nothing had happened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuccessorError {
    /// The program is not where it was.
    #[error("cannot start {}: {}", .0.display(), .1)]
    Start(PathBuf, #[source] io::Error),
    /// It ended, or said that it cannot serve.
    #[error("the new process failed: {said}")]
    Failed {
        /// The reason on one line.
        in_short: String,
        /// All that it said.
        said: String,
    },
    /// It was ended because it took too long.
    #[error("the new process was not ready within {0:?} and was ended")]
    TimedOut(Duration),
}

impl SuccessorError {
    /// The reason on one line.
    pub(crate) fn in_short(&self) -> String {
        match self {
            Self::Failed { in_short, .. } => in_short.clone(),
            other => other.to_string(),
        }
    }
}

/// A process that is to take over. Its drop before the transfer kills it: it must not serve what this process goes on
/// serving.
#[derive(Debug)]
pub(crate) struct Successor {
    pid: u32,
    /// None if it has ended already.
    process: Option<OwnedFd>,
    channel: Option<BufReader<UnixStream>>,
}

impl Successor {
    /// Starts the program that is at `program` now, with the arguments of this process, and waits until it is ready.
    pub(crate) async fn start(
        program: &Path,
        descriptors: Vec<(String, OwnedFd)>,
        timeout: Duration,
    ) -> Result<Self, SuccessorError> {
        let wrong = |e| SuccessorError::Start(program.into(), e);
        // Checked here, because the shell's message about a missing program is lost.
        std::fs::metadata(program).map_err(wrong)?;
        let (mut successor, mut words) = Self::spawn(program, descriptors).map_err(wrong)?;
        let mut line = String::new();
        match tokio::time::timeout(timeout, successor.hear(&mut line)).await {
            Ok(Ok(_)) if line == "ready\n" => Ok(successor),
            Ok(Ok(_)) => {
                Err(failure(line.strip_prefix("failed ").map(str::trim_end), last_words(&mut words)))
            }
            Ok(Err(error)) => Err(wrong(error)),
            Err(_) => Err(SuccessorError::TimedOut(timeout)),
        }
    }

    async fn hear(&mut self, line: &mut String) -> io::Result<usize> {
        match &mut self.channel {
            Some(channel) => channel.read_line(line).await,
            None => Ok(0),
        }
    }

    fn spawn(program: &Path, descriptors: Vec<(String, OwnedFd)>) -> io::Result<(Self, StdUnixStream)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        // Its stderr until it is ready: if it fails, the reason is there.
        let (words, stderr) = StdUnixStream::pair()?;
        let mut passed = descriptors;
        passed.push((CHANNEL.to_owned(), theirs.into()));
        passed.push(named(STDERR, io::stderr())?);
        let names: Vec<_> = passed.iter().map(|(name, _)| name.as_str()).collect();

        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", START, "sh"])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env("LISTEN_FDS", passed.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(OwnedFd::from(stderr));
        let mappings = (FIRST..)
            .zip(passed)
            .map(|(number, (_, fd))| FdMapping {
                parent_fd: fd,
                child_fd: i32::try_from(number).unwrap_or(i32::MAX),
            })
            .collect();
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        let output = command.spawn()?.wait_with_output()?;
        // Closes this process's copies of the successor's ends, so that its exit shows as the end of both sockets.
        drop(command);
        let pid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().map_err(io::Error::other)?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        // It is the manager's child, and may have ended already: then its stderr tells why.
        let process = match pidfd_open(raw, PidfdFlags::empty()) {
            Err(Errno::SRCH) => None,
            opened => Some(opened?),
        };
        ours.set_nonblocking(true)?;
        let channel = Some(BufReader::new(UnixStream::from_std(ours)?));
        Ok((Self { pid, process, channel }, words))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Gives the transfer. If the successor has ended meanwhile, the service manager starts another: it is the main
    /// process by now.
    pub(crate) async fn go(mut self) -> Transfer {
        let mut channel = self.channel.take();
        if let Some(channel) = &mut channel
            && let Err(error) = channel.write_all(b"go\n").await
        {
            tracing::error!(%error, "the new process ended before it could take over");
        }
        Transfer { pid: self.pid, channel }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let (Some(process), Some(_)) = (&self.process, &self.channel) {
            // It may have ended by itself.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// The transfer that was given. As long as it is kept the successor knows that this process still drains.
#[derive(Debug)]
pub(crate) struct Transfer {
    pid: u32,
    channel: Option<BufReader<UnixStream>>,
}

impl Transfer {
    /// The successor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when the successor asks for what is still in flight to be cut.
    pub(crate) async fn cut_asked(&mut self) {
        let mut line = String::new();
        if let Some(channel) = &mut self.channel
            && channel.read_line(&mut line).await.is_ok()
            && line == "cut\n"
        {
            return;
        }
        // A successor that has ended asks for nothing.
        std::future::pending::<()>().await;
    }
}

/// The error of a process that failed: the reason that it gave, if it could, and its output on stderr, if any.
fn failure(reason: Option<&str>, words: Option<String>) -> SuccessorError {
    match (reason, words) {
        (Some(reason), words) => SuccessorError::Failed {
            in_short: reason.to_owned(),
            said: words.unwrap_or_else(|| reason.to_owned()),
        },
        (None, Some(words)) => {
            let first = words.lines().next().unwrap_or_default();
            let more = if words.lines().count() > 1 { "..." } else { "" };
            let in_short = format!("the new process failed: {first}{more}");
            SuccessorError::Failed { in_short, said: words }
        }
        (None, None) => {
            let said = "it ended without a word".to_owned();
            SuccessorError::Failed { in_short: format!("the new process failed: {said}"), said }
        }
    }
}

/// The process's output on stderr, if any; it has ended, or is about to.
fn last_words(words: &mut StdUnixStream) -> Option<String> {
    let mut text = Vec::new();
    // Reads only what is there now: a process that hangs may hold the other end open.
    let _ = words.set_nonblocking(true);
    let _ = words.take(64 << 10).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    Some(text.trim()).filter(|words| !words.is_empty()).map(str::to_owned)
}
