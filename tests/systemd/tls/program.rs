//! A client that is a program of its own, and keeps one TLS connection.
//!
//! Each program in `clients/` opens one connection, and never another. It reads lines: of each that is a path it makes a
//! request, of another what it understands by it. For each it prints a line when that is done: the status or the
//! line, the port of its end of the connection, and the version of TLS. When something fails it says so, and ends.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use steadfast_harness::{Machine, PATIENCE};

use super::{Edge, PORT};

/// The folder of the programs.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/tls/clients");

/// A program that runs. Dropping it ends it.
pub(super) struct Program {
    pub(super) name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The port of its connection, once it has answered.
    port: Option<String>,
    /// The third words of its lines, without those that repeat the one before.
    pub(super) third: Vec<String>,
}

/// The path of a program; says that it is not there.
pub(super) fn find(file: &str, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
    if found.is_none() {
        Machine::skip(file, &format!("there is no `{program}` in PATH"));
    }
    found
}

/// The Go program, built; none if there is no Go.
pub(super) fn go(file: &str) -> Option<PathBuf> {
    let go = find(file, "go")?;
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("client-go");
    let build = Command::new(go)
        .args(["build", "-o"])
        .args([&program, &Path::new(CLIENTS).join("client.go")])
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
        .output()
        .expect("go runs");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    Some(program)
}

/// A file of the folder of programs.
pub(super) fn source(file: &str) -> PathBuf {
    Path::new(CLIENTS).join(file)
}

impl Program {
    /// Starts it in the box's network, with the port and the authority between its own arguments.
    pub(super) fn start(edge: &Edge, name: &'static str, mut command: Command, more: &[&str]) -> Self {
        command
            .args([&PORT.to_string(), &edge.authority()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        Self::spawn(edge, name, command)
    }

    /// Starts a command in the box's network.
    pub(super) fn spawn(edge: &Edge, name: &'static str, mut command: Command) -> Self {
        let mut child = edge.enter_network(|| command.spawn()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let stdin = child.stdin.take();
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let (line, lines) = mpsc::channel();
        thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|said| line.send(said)));
        Self { name, child, stdin, lines, port: None, third: Vec::new() }
    }

    /// Writes a line, and does not wait for what comes of it.
    pub(super) fn begin(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// What came of the line, on the connection that it has had from the beginning.
    pub(super) fn end(&mut self, when: &str) -> String {
        let line = self.next(when);
        self.understand(&line, when)
    }

    /// What came of all lines by now.
    pub(super) fn ended(&mut self, when: &str) -> Vec<String> {
        let lines: Vec<_> = self.lines.try_iter().collect();
        lines.iter().map(|line| self.understand(line, when)).collect()
    }

    /// The first word, after a look at the others.
    fn understand(&mut self, line: &str, when: &str) -> String {
        let [outcome, port, third] = line
            .split(' ')
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or_else(|_| panic!("{}, {when}: {line:?} is not three words", self.name));
        let first = self.port.get_or_insert_with(|| port.to_owned());
        assert_eq!(port, first, "{}: another connection {when}", self.name);
        if self.third.last().is_none_or(|last| last != third) {
            self.third.push(third.to_owned());
        }
        outcome.to_owned()
    }

    /// The next line that it prints.
    pub(super) fn next(&mut self, when: &str) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{} has failed {when}: {:?}", self.name, self.child.try_wait()))
    }

    /// Ends its input, and returns what it still prints. It succeeds.
    pub(super) fn finish(mut self) -> Vec<String> {
        drop(self.stdin.take());
        let said = self.lines.iter().collect();
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{}: {status}", self.name);
        said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
