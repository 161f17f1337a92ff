//! A rehearsal as a plain process, and how faults get into it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use steadfast_harness::{Client, Daemon, Upstream, build_examples, wait_until};

/// A child of the tree, by its name.
pub(crate) type Child = &'static str;

/// All of them; the last is the program's own.
pub(crate) const CHILDREN: [Child; 5] = ["signals", "http", "admin", "systemd", "worker"];

/// A fault that a child can be made to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Panic,
    Fail,
    Hang,
    Block,
}

impl Kind {
    /// True if the child ends, so that it can be restarted.
    pub(crate) fn ends_the_child(self) -> bool {
        matches!(self, Self::Panic | Self::Fail)
    }

    /// The log's text about the child, if it ended.
    pub(crate) fn verb(self) -> &'static str {
        if self == Self::Panic { "panicked" } else { "failed" }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Panic => "panic",
            Self::Fail => "fail",
            Self::Hang => "hang",
            Self::Block => "block",
        })
    }
}

/// The activity that a child reports while the daemon serves.
pub(crate) fn doing(child: Child) -> &'static str {
    match child {
        "signals" => "waiting for a signal",
        "systemd" => "reporting what is served",
        "worker" => "waiting for work",
        _ => "accepting connections",
    }
}

/// The longest that the manager's watchdog waits, where it has one: as short as a busy machine allows.
pub(crate) const WATCHDOG: &str = "2000000";

/// A running rehearsal, and an upstream behind its `/app/*`.
pub(crate) struct Rehearsal {
    pub(crate) daemon: Daemon,
    pub(crate) upstream: Upstream,
}

impl Rehearsal {
    /// Starts it with these lines in its config.
    pub(crate) fn start(lines: &str, adjust: impl FnOnce(&mut Command)) -> Self {
        let upstream = Upstream::start();
        let config = format!(
            "http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.2:0\"]\nlog.access = \"off\"\n\
             http.requests_per_connection = 1000000000\n{lines}\n\
             [[route]]\npath = \"/\"\nrespond = \"hello\"\n\
             [[route]]\npath = \"/app/*\"\nproxy = \"http://{}\"\n",
            upstream.address()
        );
        let daemon = Daemon::spawn_program(program(), &[], &config, adjust);
        daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
        Self { daemon, upstream }
    }

    /// A new connection to the http child.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.daemon.address("http")).expect("a listener that is bound refuses nobody")
    }

    /// A new connection to the control socket.
    pub(crate) fn control(&self) -> Client {
        Client::connect_unix(self.daemon.control_socket()).expect("the control socket is there")
    }

    /// Makes a child have a fault.
    pub(crate) fn inject(&self, child: Child, kind: Kind) {
        inject(&mut self.control(), child, kind);
    }

    /// Waits until a child runs again after this many restarts.
    pub(crate) fn wait_for_restarts(&self, child: Child, restarts: u64) {
        wait_until(&format!("restart {restarts} of {child}"), || {
            let status = self.control().get("/status").ok()?;
            let status: serde_json::Value = serde_json::from_slice(&status.body).ok()?;
            let children = status["children"].as_array()?;
            let child = children.iter().find(|c| c["name"] == child)?;
            (child["restarts"] == restarts && child["running"] == true).then_some(())
        });
    }
}

/// Looks for a moment whether a request goes on waiting: its connection stays open.
pub(crate) fn still_waits(client: &mut Client) {
    for _ in 0..30 {
        assert!(client.is_open(), "a request in flight was dropped");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a child have a fault, over an open connection to the control socket.
pub(crate) fn inject(control: &mut Client, child: Child, kind: Kind) {
    post(control, &format!("/faults/{child}/{kind}"));
    let answer = control.receive().expect("the control socket answers");
    assert_eq!(answer.status, 204, "{}", answer.text());
}

/// Sends a request that changes something.
pub(crate) fn post(control: &mut Client, path: &str) {
    let request = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    control.send(request).expect("the control socket takes a request");
}

/// The program of `rehearsal.rs`, after it was built.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| build_examples(&["--features", "faults", "--example", "rehearsal"]).join("rehearsal"))
}
