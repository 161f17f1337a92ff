//! Clients in every language: each keeps its one connection, whatever becomes of the server's process.

use std::process::{Command, Stdio};

use steadfast_harness::print_figure;

use super::program::{Program, find, go, source};
use super::{Edge, PORT};

/// The programs that are there, started.
fn start_all(edge: &Edge) -> Vec<Program> {
    let start = |name, program: &str, file: &str, more: &[&str]| {
        let mut command = Command::new(find(file!(), program)?);
        command.arg(source(file));
        Some(Program::start(edge, name, command, more))
    };
    let piped = |name: &'static str| {
        find(file!(), name)?;
        start(name, "python3", "piped.py", &[name])
    };
    let chromium = || {
        find(file!(), "chromium")?;
        start("Chromium", "python3", "chromium.py", &[])
    };
    [
        start("Python", "python3", "client.py", &[]),
        start("a WebSocket", "python3", "websocket.py", &[]),
        start("Java", "java", "Client.java", &[]),
        start("Node", "node", "client.mjs", &[]),
        go(file!()).map(|program| Program::start(edge, "Go", Command::new(program), &[])),
        piped("openssl"),
        piped("gnutls-cli"),
        chromium(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// curl, which reads no lines: it asks ten times a second. The third word is the number of connections that it has opened for
/// that request: one for the first.
fn start_curl(edge: &Edge) -> Option<Program> {
    find(file!(), "curl")?;
    let mut curl = Command::new("sh");
    // What it says of a transfer goes to standard error, which is not buffered.
    curl.args(["-c", "exec curl \"$@\" 2>&1", "sh", "--no-progress-meter", "--output", "/dev/null"])
        .args(["--write-out", "%{stderr}%{http_code} %{local_port} %{num_connects}\n", "--fail-early"])
        .args(["--http1.1", "--rate", "10/s", "--max-time", "60", "--cacert", &edge.authority()])
        .arg(format!("https://localhost:{PORT}/[1-1000000]"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Some(Program::spawn(edge, "curl", curl))
}

/// All programs ask at once, and each is answered on its own connection.
fn ask(programs: &mut [Program], when: &str) {
    for program in &mut *programs {
        program.begin("/");
    }
    for program in programs {
        let expected = if program.name == "a WebSocket" { "101" } else { "200" };
        assert_eq!(program.end(when), expected, "{} {when}", program.name);
    }
}

/// Those that can renew their keys: "k" those of what they send, "K" also those of what the server sends.
fn renew_keys(programs: &mut [Program], which: &str, when: &str) {
    for program in programs {
        if ["openssl", "gnutls-cli"].contains(&program.name) {
            program.begin(which);
            assert_eq!(program.end(when), which);
        }
    }
}

#[test]
fn clients_in_every_language_keep_their_one_connection_over_ten_restarts_and_ten_reloads() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    edge.echo();
    let mut programs = start_all(&edge);
    let mut curl = start_curl(&edge);
    ask(&mut programs, "at first");
    renew_keys(&mut programs, "K", "at first");
    edge.replace_twenty_times(|when| {
        // What renews them again below comes to whoever has the connection by then.
        renew_keys(&mut programs, "k", when);
        ask(&mut programs, when);
        if let Some(curl) = &mut curl {
            let meanwhile = curl.ended(when);
            assert!(meanwhile.iter().all(|status| status == "200"), "curl until {when}: {meanwhile:?}");
            for _ in 0..2 {
                assert_eq!(curl.end(when), "200");
            }
        }
        renew_keys(&mut programs, "K", when);
    });
    let names: Vec<_> = programs.iter().chain(&curl).map(|program| program.name).collect();
    print_figure(
        "clients that kept their one TLS connection over ten restarts and ten reloads",
        names.join(", "),
    );
    for program in programs.iter().chain(&curl) {
        let expected: &[&str] = match program.name {
            "curl" => &["1", "0"],
            "Chromium" => &["unknown"],
            _ => &["TLSv1.3"],
        };
        assert_eq!(program.third, expected, "{}", program.name);
    }
    for program in programs {
        program.finish();
    }
}
