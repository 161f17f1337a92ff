//! A daemon that cannot start says why, with the right exit code, and leaves nothing behind.

use std::fs::Permissions;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use steadfast_harness::Daemon;

use crate::process::{BINARY, not_shown};

fn run<const N: usize>(arguments: [&str; N]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_mute(daemon: &Daemon) {
    let said = daemon.notifications();
    assert!(!said.iter().any(|n| n.text.contains("READY=1")), "{said:?}");
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in [["walk"].as_slice(), &["run", "--colour"], &["--config"]] {
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("--help"), "{}", stderr(&output));
    }
}

#[test]
fn a_config_that_is_not_there_exits_78() {
    let output = run(["run", "--config", "/nowhere/config.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("cannot read /nowhere/config.toml"), "{}", stderr(&output));
}

/// What becomes of `run` with its standard input for a config.
fn run_by_stdin(stdin: Stdio) -> Output {
    // One that serves is ended, and 124 its code.
    let mut command = Command::new("timeout");
    command.args(["30", BINARY, "run", "--config", "/dev/stdin"]).stdin(stdin).output().unwrap()
}

#[test]
fn a_config_that_the_next_worker_cannot_read_exits_78_and_is_not_every_default() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"http.listen = [\"127.0.0.1:0\"]\nadmin.listen = []\n").unwrap();
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"http.listen = [\"127.0.0.1:0\"]\nadmin.listen = []\n").unwrap();
    drop(writer);
    for (stdin, why) in [
        (Stdio::from(file), "cannot read /dev/stdin: it is no file, and nothing is in it"),
        (
            pipe.into(),
            "cannot read /dev/stdin: a pipe can be read once, and the config is read again for each worker",
        ),
    ] {
        let output = run_by_stdin(stdin);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
        assert!(stderr(&output).contains("name a file with --config"), "{}", stderr(&output));
    }
}

#[test]
fn a_wrong_config_exits_78_and_shows_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[http]\nlisten = [\"127.0.0.1:0\"]\nheader_timeot = \"1s\"\n").unwrap();
    let path = path.to_str().unwrap();
    for command in ["run", "check"] {
        let output = run([command, "--config", path]);
        assert_eq!(output.status.code(), Some(78));
        let said = stderr(&output);
        for part in [&format!("{path}:3:1"), "header_timeot", "header_timeout"] {
            assert!(said.contains(part), "no {part} in:\n{said}");
        }
    }
}

#[test]
fn a_config_that_may_not_be_read_exits_78() {
    let Some(mut command) = as_nobody() else { return };
    let folder = tempfile::tempdir().unwrap();
    allow(folder.path(), 0o755);
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "").unwrap();
    allow(&path, 0o600);
    let output = command.args(["run", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("ermission denied"), "{}", stderr(&output));
}

#[test]
fn a_port_in_use_exits_1_and_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut daemon = Daemon::spawn(BINARY, &format!("http.listen = [\"{address}\"]\nadmin.listen = []\n"));
    assert_eq!(daemon.wait(), 1);
    let why = format!("cannot listen on {address}: the address is in use; stop what listens there");
    daemon.wait_for_line("why", |line| line.contains("ERROR") && line.contains(&why));
    assert_mute(&daemon);
}

#[test]
fn a_start_that_fails_leaves_no_socket_behind_and_no_port_taken() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("http.sock");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!(
        "http.listen = [\"unix:{}\", \"{free}\"]\nadmin.listen = [\"{}\"]\n",
        socket.display(),
        taken.local_addr().unwrap()
    );
    let mut daemon = Daemon::spawn(BINARY, &listen);
    assert_eq!(daemon.wait(), 1);
    assert!(!socket.exists());
    TcpListener::bind(free).expect("the port is free");
    assert_mute(&daemon);
    assert_eq!(daemon.addresses(), [], "it said that it listens");
}

#[test]
fn a_folder_that_may_not_be_written_exits_1_and_says_what_to_do() {
    let Some(mut command) = as_nobody() else { return };
    let folder = tempfile::tempdir().unwrap();
    allow(folder.path(), 0o755);
    let path = folder.path().join("config.toml");
    let socket = folder.path().join("http.sock");
    let text = format!("http.listen = [\"unix:{}\"]\nadmin.listen = []\n", socket.display());
    std::fs::write(&path, text).unwrap();
    let output = command.args(["run", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let why = "permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE (the drop-in privileged-ports.conf) \
               or steadfast.socket, a socket's folder must be writable";
    assert!(stderr(&output).contains(why), "{}", stderr(&output));
}

#[test]
fn check_binds_nothing_and_exits_0() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let text = format!("http.listen = [\"{}\"]\n", taken.local_addr().unwrap());
    std::fs::write(&path, text).unwrap();
    let output = run(["check", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    for child in ["signals", "http", "admin", "systemd"] {
        assert!(tree.contains(child), "no {child} in:\n{tree}");
    }
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The binary as a user that may do little: where we may do everything, a permission shows nothing.
fn as_nobody() -> Option<Command> {
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", BINARY]).current_dir("/");
        command
    };
    // The binary itself must not be out of its reach.
    let reached = as_nobody().arg("--version").output();
    if reached.is_ok_and(|output| output.status.success()) {
        return Some(as_nobody());
    }
    not_shown(file!(), "permissions need root, setpriv, and a target folder that others may enter");
    None
}
