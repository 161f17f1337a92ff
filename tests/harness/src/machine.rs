//! A box in which this machine's systemd is PID 1.
//!
//! The box has its own processes, mounts, network, cgroups and journal; what
//! is written in it goes to memory and is gone with it. `machine.sh` boots it
//! and takes it down when its standard input, which [`Machine`] holds, ends:
//! on drop, and just as well when the test process is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::network;
use crate::wait::wait_until;

/// The script that boots the box and takes it down.
const SCRIPT: &str = include_str!("machine.sh");

/// The longest that one command in a box may take: longer than any drain a test asks for.
const COMMAND_BOUND: Duration = Duration::from_secs(180);

/// Tells the boxes of this process apart in the machine's cgroups.
static BOXES: AtomicU32 = AtomicU32::new(0);

/// A running systemd, with everything that a unit needs around it.
///
/// Dropping it ends every process in it and leaves nothing behind.
#[derive(Debug)]
pub struct Machine {
    /// The shell outside of the box that keeps it.
    keeper: Child,
    /// The box stands while this pipe is open.
    lifeline: Option<ChildStdin>,
    /// The box's PID 1, as numbered outside of it.
    init: u32,
    /// The box's network namespace.
    network: File,
}

/// The output of a command in the box, and its exit status.
#[derive(Debug)]
pub struct Output {
    /// The exit status of the command.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

// ---------------------------------------------------------------------------
// Booting
// ---------------------------------------------------------------------------

impl Machine {
    /// Checks that a box can be booted here; if not, says what is missing.
    ///
    /// # Errors
    ///
    /// The reason, as a clause that completes "because ...".
    pub fn available() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("this is not root".into());
        }
        if !Path::new("/lib/systemd/systemd").exists() {
            return Err("there is no /lib/systemd/systemd".into());
        }
        for tool in ["unshare", "nsenter", "setpriv", "ip", "systemctl"] {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(tool).exists()));
            if !found {
                return Err(format!("there is no `{tool}` in PATH"));
            }
        }
        Ok(())
    }

    /// Boots a box, or says in one visible line that the tests of `file` are
    /// skipped and why. With `STEADFAST_REQUIRE_SYSTEMD=1` in the environment
    /// that is a failure instead.
    ///
    /// # Panics
    ///
    /// If systemd is required and there is none, or if the box does not boot.
    #[must_use]
    pub fn boot_or_skip(file: &str) -> Option<Self> {
        match Self::available() {
            Ok(()) => Some(Self::boot()),
            Err(reason) => {
                Self::skip(file, &reason);
                None
            }
        }
    }

    /// Says in one visible line that the tests of `file` are skipped, and why. With
    /// `STEADFAST_REQUIRE_SYSTEMD=1` in the environment that is a failure instead.
    ///
    /// # Panics
    ///
    /// If systemd is required.
    pub fn skip(file: &str, reason: &str) {
        static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

        assert!(
            std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_none_or(|value| value != "1"),
            "STEADFAST_REQUIRE_SYSTEMD=1, but {file} cannot run because {reason}"
        );
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.iter().any(|at| at == file) {
            said.push(file.to_owned());
            print_visibly(&format!("skipped: {file} (systemd), because {reason}"));
        }
    }

    /// Boots a box and returns when its systemd has reached its target.
    ///
    /// # Panics
    ///
    /// If it does not boot, with whatever it printed.
    #[must_use]
    pub fn boot() -> Self {
        // The script travels as an argument: standard input is the lifeline,
        // and a file might lie where the box puts its own folders.
        let cgroup =
            format!("steadfast-box-{}-{}", std::process::id(), BOXES.fetch_add(1, Ordering::Relaxed));
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
            .args(["machine.sh", "outside", &cgroup, SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0) // a Ctrl-C ends the test, and the test's end the box
            .spawn()
            .expect("unshare starts");
        let lifeline = keeper.stdin.take();

        let mut announced = String::new();
        let stdout = keeper.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut announced).expect("the keeper's output is text");
        let Ok(unshare) = announced.trim().parse::<u32>() else {
            panic!("no box: {}", last_words(&mut keeper));
        };

        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let init = wait_until("the box's PID 1", || {
            assert!(
                keeper.try_wait().expect("the keeper is ours").is_none(),
                "no box: {}",
                last_words(&mut keeper)
            );
            let init = fs::read_to_string(&children).ok()?.trim().parse::<u32>().ok()?;
            let command = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (command.trim() == "systemd").then_some(init)
        });
        let network = File::open(format!("/proc/{init}/ns/net")).expect("the box has a network namespace");

        let machine = Self { keeper, lifeline, init, network };
        let state = wait_until("systemd in the box to answer", || {
            let output = machine.run(["systemctl", "is-system-running", "--wait"]);
            let state = output.stdout.trim().to_owned();
            matches!(state.as_str(), "running" | "degraded").then_some(state)
        });
        assert!(
            state == "running",
            "the box came up degraded: {}",
            machine.run(["systemctl", "--failed", "--no-legend"]).stdout
        );
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // A panic here would hide the one that may be under way.
        let _ = self.keeper.wait();
    }
}

/// The output of a keeper that failed.
fn last_words(keeper: &mut Child) -> String {
    drop(keeper.stdin.take());
    let mut said = String::new();
    if let Some(stderr) = &mut keeper.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    said
}

// ---------------------------------------------------------------------------
// Working in it
// ---------------------------------------------------------------------------

impl Machine {
    /// Runs a command in the box and returns what came of it.
    ///
    /// # Panics
    ///
    /// If it does not end within three minutes.
    pub fn run<I>(&self, command: I) -> Output
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.run_with_input(command, Stdio::null())
    }

    /// Runs a command in the box and returns what it printed.
    ///
    /// # Panics
    ///
    /// If it fails, with everything it printed.
    pub fn ok<I>(&self, command: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let command: Vec<OsString> = command.into_iter().map(|a| a.as_ref().into()).collect();
        let output = self.run(&command);
        assert!(
            output.status.success(),
            "{command:?} failed with {}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    fn run_with_input<I>(&self, command: I, input: Stdio) -> Output
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let command: Vec<OsString> = command.into_iter().map(|a| a.as_ref().into()).collect();
        let child = Command::new("nsenter")
            .args(["--all", "--target", &self.init.to_string(), "--"])
            .args(&command)
            .env_remove("INVOCATION_ID")
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .env("SYSTEMD_PAGER", "")
            .env("SYSTEMD_COLORS", "0")
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter starts");

        let pid = Pid::from_child(&child);
        let (ended, end) = mpsc::channel();
        thread::spawn(move || ended.send(child.wait_with_output()));
        let Ok(output) = end.recv_timeout(COMMAND_BOUND) else {
            let _ = kill_process(pid, Signal::KILL);
            panic!("waited {COMMAND_BOUND:?} for {command:?} to end, in vain");
        };
        let output = output.expect("the output of a command can be read");
        Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Writes a file in the box, with the folders above it.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let mut source = tempfile::tempfile().expect("a temporary file");
        source
            .write_all(contents.as_ref())
            .and_then(|()| io::Seek::rewind(&mut source))
            .expect("a temporary file can be written");
        self.place(source, path.as_ref(), "0644");
    }

    /// Copies a file of this machine into the box.
    ///
    /// # Panics
    ///
    /// If there is none, or it cannot be written.
    pub fn copy(&self, source: &Path, destination: impl AsRef<Path>, mode: &str) {
        let source =
            File::open(source).unwrap_or_else(|error| panic!("{} cannot be read: {error}", source.display()));
        self.place(source, destination.as_ref(), mode);
    }

    fn place(&self, source: File, destination: &Path, mode: &str) {
        let script = r#"mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1""#;
        let command: [&OsStr; 6] = [
            "sh".as_ref(),
            "-c".as_ref(),
            script.as_ref(),
            "place".as_ref(),
            destination.as_os_str(),
            mode.as_ref(),
        ];
        let output = self.run_with_input(command, source.into());
        assert!(
            output.status.success(),
            "{} cannot be written in the box: {}",
            destination.display(),
            output.stderr
        );
    }

    /// Installs steadfast as an operator would: the binary in /usr/bin, the
    /// files under `packaging` in /usr/lib, the user they ask for.
    ///
    /// # Panics
    ///
    /// If a step fails, or no unit was found.
    pub fn install(&self, binary: &Path, packaging: &Path) {
        self.copy(binary, "/usr/bin/steadfast", "0755");

        let mut units = 0;
        for file in files_below(packaging) {
            let relative = file.strip_prefix(packaging).expect("the file is below the folder");
            if relative.components().count() < 2 {
                continue; // what explains the folder is not installed
            }
            self.copy(&file, Path::new("/usr/lib").join(relative), "0644");
            units += usize::from(relative.starts_with("systemd/system"));
        }
        assert!(units > 0, "there are no units below {}", packaging.display());
        if packaging.join("sysusers.d").is_dir() {
            self.ok(["systemd-sysusers"]);
        }
        self.ok(["systemctl", "daemon-reload"]);
    }

    /// One property of a unit, as `systemctl show` gives it.
    ///
    /// # Panics
    ///
    /// If systemd does not answer.
    #[must_use]
    pub fn show(&self, unit: &str, property: &str) -> String {
        let property = format!("--property={property}");
        self.ok(["systemctl", "show", "--value", &property, unit]).trim_end().to_owned()
    }

    /// The journal of a unit, one message per line; `extra` goes to `journalctl`.
    ///
    /// # Panics
    ///
    /// If the journal cannot be read.
    #[must_use]
    pub fn journal(&self, unit: &str, extra: &[&str]) -> String {
        self.read_journal(unit, "cat", extra)
    }

    /// The journal of a unit with all its fields, one JSON object per line.
    ///
    /// # Panics
    ///
    /// If the journal cannot be read.
    #[must_use]
    pub fn journal_json(&self, unit: &str, extra: &[&str]) -> String {
        self.read_journal(unit, "json", extra)
    }

    fn read_journal(&self, unit: &str, format: &str, extra: &[&str]) -> String {
        // Everything that was sent before this question is in the answer.
        self.ok(["journalctl", "--sync"]);
        let fixed = ["journalctl", "--quiet", "--no-pager", "-o", format, "-u", unit];
        self.ok(fixed.iter().chain(extra))
    }

    /// Runs `work` on a thread whose network is the box's, and returns what it
    /// returned. Sockets that it opens stay in the box's network afterwards, and
    /// so do the threads that it starts.
    ///
    /// # Panics
    ///
    /// If `work` panics, or the box's network cannot be entered.
    pub fn enter_network<T, F>(&self, work: F) -> T
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        network::enter(self.network.as_fd(), work)
    }

    /// The box's PID 1, as numbered outside of it: for tools such as `nsenter`.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// The path outside of the box to a path inside of it, for a unix socket to
    /// connect to. A link on the way that starts at `/` leads out of the box.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }
}

/// Every file below a folder, in order.
///
/// # Panics
///
/// If it cannot be read.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{} cannot be read: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder can be read to its end").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Prints a measured figure where it is seen even when the test passes.
pub fn print_figure(what: &str, figure: impl std::fmt::Display) {
    print_visibly(&format!("figure: {what}: {figure}"));
}

/// Writes a line past the capture that the test runner puts around `eprintln!`.
fn print_visibly(line: &str) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{line}");
}

/// Allows this process to hold at least this many descriptors, and as many more as it may.
///
/// # Panics
///
/// If that is forbidden.
pub fn raise_descriptor_limit(descriptors: u64) {
    let allowed = getrlimit(Resource::Nofile).maximum;
    let maximum = allowed.map(|allowed| allowed.max(descriptors));
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .unwrap_or_else(|error| panic!("{descriptors} descriptors are too many for {allowed:?}: {error}"));
}
