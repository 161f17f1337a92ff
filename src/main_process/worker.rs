//! A worker, as the main process sees it: its process, the channel to it, and its part in the service.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};
use tokio::time::Instant;

use super::program::{self, Program};
use super::store::Store;
use super::{DrainProgress, GRACE, Settings, assign};
use crate::event;
use crate::printable::{ending_of, printable};
use crate::systemd::activation::{ALONE, BESIDE, CHANNEL, LAST_GOOD, STDERR, WORKER};
use crate::systemd::channel::{self, Channel, Message, key};
use crate::systemd::process::Process;

/// The beginning of the names under which the channels to workers are in systemd's store.
pub(super) const STORED: &str = "worker-";

/// What a worker's allocator is told, unless the environment tells it something already (glibc's manual, "Memory Allocation
/// Tunables"; another C library does not look). Chunks that are freed are merged with their neighbours at once: an idle
/// connection takes 1.09 KiB instead of 1.24. And a burst does not raise the size, 128 KiB, from which on what is free at
/// the end of the heap goes back to the kernel. For that each block of 128 KiB or more is mapped on its own.
const ALLOCATOR: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.mxfast=0:glibc.malloc.trim_threshold=131072");

/// The most that is told of a worker's output, in bytes. A message of the channel may have it twice, in JSON, which makes
/// it twice as long at worst.
const LAST_WORDS: usize = channel::LONGEST / 5;

/// The longest that a worker which hands over is waited for until it accepts no client any more. It takes milliseconds, but
/// for one that hangs.
const RETIREMENT: Duration = Duration::from_secs(2);

/// The process of the worker whose channel has this name.
pub(super) fn pid_of(name: &str) -> Option<u32> {
    name.strip_prefix(STORED)?.parse().ok()
}

/// A worker's part in the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Started, and not yet ready to serve.
    Candidate,
    /// The one that serves, and whose word systemd gets.
    Current,
    /// Finishing what it had in flight when another took over.
    Predecessor,
}

/// A process that serves, is about to, or did.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) part: Part,
    /// The time since which it has this part.
    pub(super) since: Instant,
    /// What it said last of its state, for people to read.
    pub(super) status: String,
    /// How far its drain is, as it said last, and when.
    pub(super) drain: Option<(DrainProgress, Instant)>,
    /// The part of its config that concerns the main process.
    pub(super) settings: Settings,
    /// The reason that it gave for not serving, or for which it was ended before it did.
    pub(super) failed: Option<String>,
    /// The last sign of life of one that serves; none before it has said that it is ready.
    pub(super) beat: Option<Instant>,
    /// The time at which it is killed, if it has not ended by then.
    pub(super) kill_at: Option<Instant>,
    /// The time until which it is waited for, while it may still accept clients although another serves.
    pub(super) retires_by: Option<Instant>,
    /// True if it may run singletons.
    pub(super) holds_singletons: bool,
    /// True if it wants to.
    pub(super) wants_singletons: bool,
    /// True once there is another that awaits what this one has counted.
    pub(super) has_heir: bool,
    /// How it ended, once it is reaped.
    pub(super) ended: Option<WaitStatus>,
    process: Arc<Process>,
    channel: Arc<Channel>,
    /// Its stderr until it is ready, of one that is started beside another.
    words: Option<UnixStream>,
}

impl Worker {
    /// Starts the program that is at its path now. Where no other serves, this process's own does as well.
    pub(super) fn start(program: &Program, store: &Store, beside: bool) -> io::Result<Self> {
        match Self::start_with(program, store, beside, Program::command) {
            Err(error) if !beside => {
                tracing::error!(
                    message_id = event::START_FAILED,
                    %error,
                    "cannot start {}: {error}; starting the program that the main process is",
                    program.path().display()
                );
                Self::start_with(program, store, beside, Program::command_of_this)
            }
            outcome => outcome,
        }
    }

    fn start_with(
        program: &Program,
        store: &Store,
        beside: bool,
        command: impl Fn(&Program, &str, Vec<(String, OwnedFd)>) -> io::Result<std::process::Command>,
    ) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let mut passed = vec![(CHANNEL.to_owned(), theirs)];
        // In a reload a config that is wrong is refused, whatever was good before.
        passed.extend(store.duplicates(|name| !beside || name != LAST_GOOD)?);
        let words = if beside {
            let (words, stderr) = UnixStream::pair()?;
            passed.push((STDERR.to_owned(), io::stderr().as_fd().try_clone_to_owned()?));
            Some((words, stderr))
        } else {
            None
        };
        let mut command = command(program, program::WORKER, passed)?;
        command
            .env(WORKER, if beside { BESIDE } else { ALONE })
            .env_remove("LISTEN_PID")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_PID")
            .env("WATCHDOG_USEC", super::patience().as_micros().to_string())
            // The signals of a terminal are for the main process alone.
            .process_group(0)
            .stdin(Stdio::null());
        let (variable, tunables) = ALLOCATOR;
        if std::env::var_os(variable).is_none() {
            command.env(variable, tunables);
        }
        let words = match words {
            Some((words, stderr)) => {
                command.stdout(OwnedFd::from(stderr.try_clone()?)).stderr(OwnedFd::from(stderr));
                Some(words)
            }
            None => None,
        };
        let child = command.spawn()?;
        // Closes this process's copies of the worker's ends, so that their end shows.
        drop(command);
        let mut worker = Self::adopt(child.id(), channel, Part::Candidate)?;
        worker.words = words;
        Ok(worker)
    }

    /// A running worker, with the channel to it.
    pub(super) fn adopt(pid: u32, channel: Channel, part: Part) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let process = Process::open(number)?;
        let now = Instant::now();
        Ok(Self {
            pid,
            part,
            since: now,
            status: String::new(),
            drain: None,
            settings: Settings::default(),
            failed: None,
            beat: None,
            kill_at: None,
            retires_by: None,
            // One of an earlier main process may: it says so if it does not.
            holds_singletons: part != Part::Candidate,
            wants_singletons: false,
            has_heir: false,
            ended: None,
            process: Arc::new(process),
            channel: Arc::new(channel),
            words: None,
        })
    }

    /// The channel to it.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Follows what it says; each call of what is returned waits for the next message, or for its end.
    pub(super) fn ears(&self) -> Ears {
        Ears { process: Arc::clone(&self.process), channel: Arc::clone(&self.channel) }
    }

    /// Tells it something. One that does not take it in is found out at its deadline.
    pub(super) fn tell(&self, text: &str) {
        if let Err(error) = self.channel.send(text, &[])
            // It is about to be heard that this one has ended.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(worker = self.pid, "cannot tell worker {} {text:?}: {error}", self.pid);
        }
    }

    /// Changes its part.
    pub(super) fn becomes(&mut self, part: Part) {
        self.part = part;
        self.since = Instant::now();
    }

    /// Sets the end of the time that a predecessor has, and some more to end by itself.
    pub(super) fn finishes_within(&mut self, deadline: Option<Duration>) {
        self.kill_at = deadline.and_then(|limit| self.since.checked_add(limit + GRACE));
    }

    /// Has it hand over to the one that serves.
    pub(super) fn hand_over(&mut self) {
        self.retires_by = Some(Instant::now() + RETIREMENT);
        self.tell(&assign(key::HAND_OVER, key::BESIDE));
    }

    /// How far a predecessor is, for people to read. What it said while it served is true no more.
    pub(super) fn drain_status(&self) -> &str {
        if self.drain.is_some() { &self.status } else { "asked to finish" }
    }

    /// The time until it cuts what is left, or is made to; none without a deadline.
    pub(super) fn left(&self) -> Option<Duration> {
        let now = Instant::now();
        let said = self.drain.and_then(|(drain, at)| {
            let left = Duration::try_from_secs_f64(drain.left?).ok()?;
            Some(left.saturating_sub(now.duration_since(at)))
        });
        // One that says nothing of it may be of an older version, or stuck.
        said.or_else(|| Some(self.kill_at?.saturating_duration_since(now).saturating_sub(GRACE)))
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How it ended; `None` if it is no child of this process, as one of an earlier main process.
    pub(super) fn reap(&self) -> Option<WaitStatus> {
        if self.ended.is_some() {
            return self.ended;
        }
        let number = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
        waitpid(Some(number), WaitOptions::NOHANG).ok().flatten().map(|(_, status)| status)
    }

    /// The output of one that was started beside another, if any; it has ended, or is about to. Of a long one this is the
    /// end, where the reason is.
    pub(super) fn last_words(&mut self) -> Option<String> {
        let words = self.words.as_mut()?;
        let mut text = Vec::new();
        // Reads only what is there now: a process that hangs may hold the other end open.
        let _ = words.set_nonblocking(true);
        let _ = words.take(1 << 20).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        // Escapes are longer than what they stand for.
        let words = printable(text.trim());
        Some(ending_of(LAST_WORDS, &words).into_owned()).filter(|words| !words.is_empty())
    }
}

/// What is heard of a worker.
pub(super) struct Ears {
    process: Arc<Process>,
    channel: Arc<Channel>,
}

impl Ears {
    /// The next message; `None` once the process has ended and all that it said was heard.
    pub(super) async fn hear(&self) -> Option<Message> {
        tokio::select! {
            biased;
            message = self.channel.receive() => {
                if let Ok(Some(message)) = message {
                    return Some(message);
                }
                // It has closed its end, and may be slow to follow.
            }
            () = self.process.gone() => return self.channel.receive_now(),
        }
        self.process.gone().await;
        None
    }
}

/// How a process ended, for people to read: "exited with code 1".
pub(super) fn describe(status: Option<WaitStatus>) -> String {
    match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
        None => "ended".to_owned(),
    }
}
