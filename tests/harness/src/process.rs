//! The daemon as a plain child process, with a stand-in for the service manager.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::wait::{PATIENCE, wait_until};

/// The time between two looks of the manager's stand-in for the daemon's end.
const GLANCE: Duration = Duration::from_millis(20);

/// The environment variable by which every process of a daemon is known: it has the path of the daemon's own folder.
const MARK: &str = "STEADFAST_HARNESS";

/// A running daemon: its main process, and the workers that this one starts. Dropping it kills them all.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: TempDir,
    log: Arc<Log>,
    done: Arc<AtomicBool>,
    listeners: Vec<JoinHandle<()>>,
}

/// One datagram that the daemon sent to the service manager.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The time of its arrival.
    pub at: Instant,
    /// Its assignments, one per line.
    pub text: String,
}

/// One address that the daemon said it listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// The child that serves it: `http`, `admin`.
    pub child: String,
    /// `HOST:PORT`, or `unix:` and a path.
    pub address: String,
}

/// The lines of the daemon's standard error.
#[derive(Debug, Clone, Default)]
pub struct Stderr(pub Vec<String>);

impl std::fmt::Display for Stderr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0.join("\n"))
    }
}

/// Everything that the daemon has written and notified so far.
#[derive(Debug, Default)]
struct Log {
    output: Mutex<Output>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Output {
    notifications: Vec<Notification>,
    stderr: Stderr,
    stderr_ended: bool,
}

impl Log {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, change: impl FnOnce(&mut Output)) {
        change(&mut self.output());
        self.news.notify_all();
    }

    /// Waits until `look` finds something; `None` when it has not within
    /// [`PATIENCE`], or the daemon has ended and nothing more can come.
    fn wait_for<T>(&self, look: impl Fn(&Output) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut output = self.output();
        loop {
            if let Some(found) = look(&output) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || output.stderr_ended {
                return None;
            }
            output = self.news.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

// ---------------------------------------------------------------------------
// Starting
// ---------------------------------------------------------------------------

impl Daemon {
    /// Runs `binary` with this config and returns when it is ready.
    ///
    /// # Panics
    ///
    /// If it does not get ready, with what it wrote to standard error.
    #[must_use]
    pub fn start(binary: impl AsRef<Path>, config: &str) -> Self {
        let daemon = Self::spawn(binary, config);
        daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
        daemon
    }

    /// Runs `binary` with this config and returns at once.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn spawn(binary: impl AsRef<Path>, config: &str) -> Self {
        Self::spawn_with(binary, config, |_| {})
    }

    /// Like [`Daemon::spawn`], with a last word on the command: an environment
    /// variable, a working folder.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn spawn_with(binary: impl AsRef<Path>, config: &str, adjust: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_program(binary, &["run", "--config"], config, adjust)
    }

    /// Like [`Daemon::spawn_with`], for a program of another command line: these
    /// arguments, and then the config's path.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    #[must_use]
    pub fn spawn_program(
        binary: impl AsRef<Path>,
        arguments: &[&str],
        config: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config_file = folder.path().join("config.toml");
        fs::write(&config_file, config).expect("the config can be written");
        let runtime = folder.path().join("run");
        fs::create_dir(&runtime).expect("the runtime folder can be made");
        let notify = folder.path().join("notify.sock");
        let manager = UnixDatagram::bind(&notify).expect("the manager's socket can be bound");
        manager.set_read_timeout(Some(GLANCE)).expect("a socket has a read timeout");

        let mut command = Command::new(binary.as_ref());
        command
            .args(arguments)
            .arg(&config_file)
            .env(MARK, folder.path())
            .env("NOTIFY_SOCKET", &notify)
            .env("RUNTIME_DIRECTORY", &runtime)
            .env_remove("JOURNAL_STREAM")
            .env_remove("INVOCATION_ID")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        adjust(&mut command);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", binary.as_ref().display()));

        let log = Arc::new(Log::default());
        let done = Arc::new(AtomicBool::new(false));
        let stderr = child.stderr.take().expect("stderr is piped");
        let listeners = vec![
            thread::spawn({
                let log = Arc::clone(&log);
                move || read_stderr(stderr, &log)
            }),
            thread::spawn({
                let log = Arc::clone(&log);
                let done = Arc::clone(&done);
                move || receive_notifications(&manager, &log, &done)
            }),
        ];
        Self { child, folder, log, done, listeners }
    }
}

fn read_stderr(stderr: std::process::ChildStderr, log: &Log) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = without_colours(&String::from_utf8_lossy(&line));
        log.add(|output| output.stderr.0.push(line));
    }
    log.add(|output| output.stderr_ended = true);
}

fn receive_notifications(manager: &UnixDatagram, log: &Log, done: &AtomicBool) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        // Looked up first, so that what came before the daemon's end is read.
        let last = done.load(Ordering::Acquire);
        match manager.recv(&mut bytes) {
            Ok(count) => {
                let at = Instant::now();
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                log.add(|output| output.notifications.push(Notification { at, text }));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if last => return,
            Err(_) => {}
        }
    }
}

/// The text without terminal escapes.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, escape)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = escape.find(|end: char| end.is_ascii_alphabetic()).map_or("", |end| &escape[end + 1..]);
    }
    plain.push_str(rest);
    plain
}

// ---------------------------------------------------------------------------
// Its notifications and its log
// ---------------------------------------------------------------------------

impl Daemon {
    /// The main process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The workers that the main process has started and that still run, in the order of their starts.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        let main = self.pid();
        let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        children.filter(|&pid| runs(pid)).collect()
    }

    /// The worker that was started last: the one that serves, once the log says so.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn worker(&self) -> u32 {
        wait_until("a worker", || self.workers().pop())
    }

    /// The folder of this daemon alone: its config, its runtime folder `run`,
    /// and whatever the test puts there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// Everything it has told the service manager so far.
    #[must_use]
    pub fn notifications(&self) -> Vec<Notification> {
        self.log.output().notifications.clone()
    }

    /// Waits for a datagram to the service manager that satisfies `wanted`,
    /// among those already received too.
    ///
    /// # Panics
    ///
    /// If none comes, naming `what` was waited for.
    pub fn wait_for_notification(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Notification {
        let found = self.log.wait_for(|output| {
            let mut all = output.notifications.iter();
            all.find(|notification| wanted(&notification.text)).cloned()
        });
        found.unwrap_or_else(|| {
            panic!(
                "no notification {what}; so far {:#?}\nstandard error:\n{}",
                self.notifications(),
                self.stderr()
            )
        })
    }

    /// Its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> Stderr {
        self.log.output().stderr.clone()
    }

    /// Waits for a line of standard error that satisfies `wanted`, among those
    /// already read too.
    ///
    /// # Panics
    ///
    /// If none comes, naming `what` was waited for.
    pub fn wait_for_line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.log.wait_for(|output| {
            let mut all = output.stderr.0.iter();
            all.find(|line| wanted(line)).cloned()
        });
        found.unwrap_or_else(|| panic!("no line {what} in:\n{}", self.stderr()))
    }

    /// Every address it said it listens on, in the order of its lines.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listening> {
        let output = self.log.output();
        output.stderr.0.iter().filter_map(|line| parse_listening(line)).collect()
    }

    /// The first TCP address of a child.
    ///
    /// # Panics
    ///
    /// If it did not say one.
    #[must_use]
    pub fn address(&self, child: &str) -> SocketAddr {
        let found = self.log.wait_for(|output| {
            let mut all = output.stderr.0.iter().filter_map(|line| parse_listening(line));
            all.find_map(|listening| {
                let ours = listening.child == child;
                ours.then(|| listening.address.parse().ok()).flatten()
            })
        });
        found.unwrap_or_else(|| panic!("no address of {child} in:\n{}", self.stderr()))
    }
}

/// `... listening child="http" address=127.0.0.1:41234`, in any order of fields.
fn parse_listening(line: &str) -> Option<Listening> {
    if !line.contains("listening") {
        return None;
    }
    Some(Listening { child: field(line, "child")?, address: field(line, "address")? })
}

/// The value of `name=value` or `name="value"` in a line of the log.
fn field(line: &str, name: &str) -> Option<String> {
    let start = line
        .match_indices(name)
        .map(|(at, _)| (at, at + name.len()))
        .find(|&(at, end)| {
            let begins = at == 0 || line[..at].ends_with(|c: char| c.is_whitespace() || c == '{');
            begins && line[end..].starts_with('=')
        })?
        .1;
    let value = &line[start + 1..];
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => value.split(|c: char| c.is_whitespace() || c == '}').next(),
    };
    value.map(str::to_owned)
}

// ---------------------------------------------------------------------------
// Its end
// ---------------------------------------------------------------------------

impl Daemon {
    /// Sends the main process a signal.
    ///
    /// # Panics
    ///
    /// If it is gone already.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Sends the worker that was started last a signal.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn signal_worker(&self, signal: Signal) {
        send(self.worker(), signal);
    }

    /// Sends the main process and all of its workers a signal.
    ///
    /// # Panics
    ///
    /// If one is gone already.
    pub fn signal_all(&self, signal: Signal) {
        for pid in self.workers().into_iter().chain([self.pid()]) {
            send(pid, signal);
        }
    }

    /// Waits for its end and returns its exit code, or minus the signal that
    /// killed it. What it said can still be read.
    ///
    /// # Panics
    ///
    /// If it runs on for [`PATIENCE`].
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;

        let child = &mut self.child;
        let status = wait_until("the daemon to exit", || child.try_wait().expect("the daemon is our child"));
        self.hear_the_rest();
        status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
    }

    /// All processes that run for this daemon, but for the main one.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.folder().display());
        let is_marked = |pid: u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.filter(|&pid| pid != self.pid() && is_marked(pid)).map(process).collect()
    }

    fn hear_the_rest(&mut self) {
        self.done.store(true, Ordering::Release);
        for listener in self.listeners.drain(..) {
            // Its panic would only hide the one that may be under way.
            let _ = listener.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A main process that stands still starts no other worker in the place of one that is killed.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::STOP);
        }
        // Also those whose main process is gone: they go on by themselves with what they have in flight.
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.done.store(true, Ordering::Release);
    }
}

/// True if a process has not ended; one that nobody has reaped yet has.
#[must_use]
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn process(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the number of a process")
}

fn send(pid: u32, signal: Signal) {
    kill_process(process(pid), signal).expect("the process still runs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_line_is_understood_in_any_order_quoted_or_not() {
        let expected = Some(Listening { child: "http".into(), address: "127.0.0.1:41234".into() });
        for line in [
            r#"2026-01-01T00:00:00Z  INFO steadfast::daemon: listening child="http" address=127.0.0.1:41234"#,
            "INFO listening address=127.0.0.1:41234 child=http",
            "\u{1b}[32mINFO\u{1b}[0m listening \u{1b}[3maddress\u{1b}[0m\u{1b}[2m=\u{1b}[0m127.0.0.1:41234 child=http",
        ] {
            assert_eq!(parse_listening(&without_colours(line)), expected, "{line}");
        }
        assert_eq!(parse_listening("INFO serving child=http address=x"), None);
    }
}
