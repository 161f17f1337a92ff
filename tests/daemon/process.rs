//! Programs under test as processes of their own.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use steadfast_harness::{Client, Daemon, build_examples};

/// The binary.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");

/// A config with listeners on free ports, and these further lines.
pub(crate) fn config(lines: &str) -> String {
    format!("http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.1:0\"]\n{lines}")
}

/// Runs `troubled.rs` with these lines in its config, and returns when it serves.
pub(crate) fn troubled(lines: &str, adjust: impl FnOnce(&mut Command)) -> Daemon {
    let daemon = Daemon::spawn_program(example("troubled"), &[], &config(lines), adjust);
    serving(&daemon);
    daemon
}

/// Waits until it serves.
pub(crate) fn serving(daemon: &Daemon) {
    daemon.wait_for_line("that it serves", |line| line.contains("serving"));
}

/// A new connection to one of its children.
pub(crate) fn connect(daemon: &Daemon, child: &str) -> Client {
    Client::connect(daemon.address(child)).expect("it accepts")
}

/// A request to [`troubled`] whose answer has begun and whose body, of so many bytes, is still due.
pub(crate) fn begin_upload(daemon: &Daemon, length: usize) -> Client {
    let mut client = connect(daemon, "http");
    let head = format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    client.send(head).expect("the daemon takes a request");
    client.receive_head().expect("the answer begins");
    client
}

/// The children of a process, also those that have ended and are not reaped.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Sends a process of whatever user and namespace a signal.
pub(crate) fn kill(signal: &str, process: u32) {
    let status = Command::new("kill").args(["-s", signal, &process.to_string()]).status().expect("it runs");
    assert!(status.success());
}

/// Says, past the capture of the test runner, what this machine cannot show.
pub(crate) fn not_shown(file: &str, why: &str) {
    let _ = writeln!(io::stderr().lock(), "{file}: not shown here: {why}");
}

/// The path of an example, once it was built.
pub(crate) fn example(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build_examples(&["--examples"])).join(name)
}
