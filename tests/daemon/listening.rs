//! The addresses that it listens on: TCP, unix sockets, descriptors that were inherited.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use steadfast_harness::{Client, Daemon, Signal};

use crate::process::{BINARY, connect, not_shown, serving};

const STATUS: &str = "[[route]]\npath = \"/*\"\nstatus = true\n";

fn start_on(listen: &str) -> Daemon {
    let daemon = Daemon::spawn(BINARY, &config(listen));
    serving(&daemon);
    daemon
}

fn config(listen: &str) -> String {
    format!("http.listen = [{listen}]\nadmin.listen = []\n{STATUS}")
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket())
}

#[test]
fn without_a_config_it_serves_the_embedded_default_and_says_on_which_addresses() {
    // In a network of its own the ports of the default are free, whatever else runs here.
    let alone =
        Command::new("unshare").args(["--net", "--map-root-user", "true"]).stderr(Stdio::null()).status();
    if !alone.is_ok_and(|status| status.success()) || Path::new("/etc/steadfast/config.toml").exists() {
        not_shown(file!(), "the embedded default needs a network of its own");
        return;
    }
    let script = r#"ip link set lo up
        "$0" 2>&1 & daemon=$!
        exec 3<>/dev/null
        for _ in $(seq 600); do
            exec 3<>/dev/tcp/127.0.0.1/8080 && break
            sleep 0.1
        done 2>/dev/null
        printf 'GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n' >&3
        cat <&3
        kill $daemon; wait $daemon; echo "exit code $?""#;
    let output = Command::new("unshare")
        .args(["--net", "--map-root-user", "bash", "-c", script, BINARY])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "the embedded default (/etc/steadfast/config.toml is not there)",
        "127.0.0.1:8080",
        "127.0.0.1:9090",
        "<html><body><h1>Hello World</h1></body></html>",
        "exit code 0",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
}

#[test]
fn several_addresses_are_served_alike() {
    let daemon = start_on("\"127.0.0.1:0\", \"127.0.0.1:0\", \"[::1]:0\"");
    let mut addresses = daemon.addresses();
    addresses.retain(|listening| listening.child == "http");
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for listening in addresses {
        let mut client = Client::connect(listening.address.parse().unwrap()).unwrap();
        assert_eq!(client.get("/x").unwrap().text(), r#"{"status":"ok","uri":"/x"}"#);
    }
}

// ---------------------------------------------------------------------------
// Unix sockets
// ---------------------------------------------------------------------------

#[test]
fn a_unix_socket_is_served_open_to_all_and_gone_after_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let mut daemon = start_on(&format!("\"unix:{}\"", path.display()));
    assert_eq!(daemon.addresses()[0].address, format!("unix:{}", path.display()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o666);
    let mut client = Client::connect_unix(&path).unwrap();
    assert_eq!(client.get("/").unwrap().status, 200);
    drop(client);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    // Nobody listens there any more, and nobody has removed it.
    drop(UnixListener::bind(&path).unwrap());
    assert!(is_socket(&path));
    let _daemon = start_on(&format!("\"unix:{}\"", path.display()));
    assert_eq!(Client::connect_unix(&path).unwrap().get("/").unwrap().status, 200);
}

#[test]
fn a_socket_that_is_in_use_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon = Daemon::spawn(BINARY, &config(&format!("\"unix:{}\"", path.display())));
    assert_eq!(daemon.wait(), 1);
    daemon.wait_for_line("why", |line| line.contains("ERROR") && line.contains("the address is in use"));
    // The refused daemon's question arrives there, and then ours.
    let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    assert!(is_socket(&path));
}

#[test]
fn a_file_that_is_no_socket_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "content").unwrap();
    let mut daemon = Daemon::spawn(BINARY, &config(&format!("\"unix:{}\"", path.display())));
    assert_eq!(daemon.wait(), 1);
    daemon.wait_for_line("why", |line| line.contains("a file that is not a socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "content");
}

// ---------------------------------------------------------------------------
// Inherited descriptors
// ---------------------------------------------------------------------------

/// Starts the binary as systemd starts a service with this socket: as its descriptor 3, under these names.
fn spawn_with_descriptor(socket: OwnedFd, names: &str, listen: &str) -> Daemon {
    // The shell's process becomes the daemon, so that LISTEN_PID names it.
    let shell = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" run --config \"$1\" 3<&0 < /dev/null";
    Daemon::spawn_program("sh", &["-c", shell, BINARY], &config(listen), |command| {
        command.stdin(Stdio::from(socket)).env("LISTEN_FDNAMES", names);
    })
}

#[test]
fn an_inherited_tcp_socket_is_served_under_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It waits in the backlog since before the daemon is there.
    let mut early = Client::connect(address).unwrap();
    early.ask("/early").unwrap();
    let mut daemon = spawn_with_descriptor(listener.into(), "web", "\"fd:web\"");
    assert_eq!(early.receive().unwrap().status, 200);
    serving(&daemon);
    assert_eq!(daemon.address("http"), address);
    drop(early);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn an_inherited_unix_socket_is_served_and_its_file_left_to_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon = spawn_with_descriptor(listener.into(), "web", "\"fd:web\"");
    assert_eq!(Client::connect_unix(&path).unwrap().get("/").unwrap().status, 200);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert!(is_socket(&path));
}

#[test]
fn a_name_that_was_not_passed_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = spawn_with_descriptor(listener.into(), "other", "\"fd:web\"");
    assert_eq!(daemon.wait(), 1);
    daemon.wait_for_line("why", |line| line.contains("cannot listen on fd:web: systemd passed"));
}

#[test]
fn a_descriptor_that_does_not_listen_is_refused() {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut daemon = spawn_with_descriptor(socket.into(), "web", "\"fd:web\"");
    assert_eq!(daemon.wait(), 1);
    daemon.wait_for_line("why", |line| {
        line.contains("cannot listen on fd:web") && line.contains("not a listening")
    });
}

#[test]
fn the_port_is_free_again_as_soon_as_the_daemon_has_stopped() {
    let mut daemon = start_on("\"127.0.0.1:0\"");
    let address = daemon.address("http");
    // The daemon closes first, so the connection's address stays in TIME_WAIT.
    let mut client = connect(&daemon, "http");
    client.get("/").unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let _again = start_on(&format!("\"{address}\""));
    assert_eq!(Client::connect(address).unwrap().get("/").unwrap().status, 200);
}
