//! The two servers as processes, and what the kernel says of them.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use steadfast_harness::{Client, Daemon, wait_until};

/// All as by default, but for the ports, the room for the idle, and the route that the bare server answers too.
const CONFIG: &str = r#"
[http]
max_connections = 20000
header_timeout = "10m"
keepalive_timeout = "10m"
listen = ["127.0.0.1:0"]
[[route]]
path = "/"
respond = "<html><body><h1>Hello World</h1></body></html>"
[admin]
listen = ["127.0.0.1:0"]
"#;

/// A server, running.
pub(crate) struct Server {
    daemon: Daemon,
    /// From exec to READY.
    pub(crate) start: Duration,
    /// The address that it answers on.
    pub(crate) address: SocketAddr,
}

/// CPU time of the process that serves, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    /// In its own code.
    pub(crate) user: f64,
    /// In the kernel, on its behalf.
    pub(crate) system: f64,
}

impl Cpu {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Memory of the process that serves, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All that is resident, the pages of the binary among it.
    pub(crate) resident: f64,
    /// The memory that is its alone: heap and stacks.
    pub(crate) anonymous: f64,
}

impl Server {
    /// Runs a server and returns when it is ready.
    pub(crate) fn start(binary: &Path) -> Self {
        let mut began = None;
        let daemon = Daemon::spawn_with(binary, CONFIG, |_| began = Some(Instant::now()));
        let ready =
            daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
        let began = began.expect("the server was run");
        Self { start: ready.at.duration_since(began), address: daemon.address("http"), daemon }
    }

    /// The CPU time that it has used so far, to the clock tick.
    pub(crate) fn cpu(&self) -> Cpu {
        let stat = self.proc("stat");
        // Its second field, the command, may hold anything; it ends at the last parenthesis.
        let (_, fields) = stat.rsplit_once(')').expect("stat has a command");
        let ticks = |n: usize| {
            let field = fields.split_whitespace().nth(n).and_then(|f| f.parse::<u32>().ok());
            f64::from(field.expect("stat has its fields"))
        };
        #[expect(clippy::cast_precision_loss, reason = "it is 100")]
        let tick = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        Cpu { user: ticks(11) * tick, system: ticks(12) * tick }
    }

    /// The memory that it holds now.
    pub(crate) fn memory(&self) -> Memory {
        let status = self.proc("status");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        Memory { resident: kib("VmRSS:"), anonymous: kib("RssAnon:") }
    }

    /// What the kernel says of the process that serves: steadfast's worker. The other server has none.
    fn proc(&self, file: &str) -> String {
        let pid = self.daemon.workers().pop().unwrap_or_else(|| self.daemon.pid());
        fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the server runs")
    }

    /// Waits until every one of so many connections is parked. Only steadfast knows of that.
    pub(crate) fn wait_until_parked(&self, connections: u32) {
        let admin = self.daemon.address("admin");
        let mut client = Client::connect(admin).expect("the admin listener accepts");
        wait_until("the connections to be parked", || {
            let status = client.get("/status").expect("/status answers").text();
            let status: serde_json::Value = serde_json::from_str(&status).expect("/status is JSON");
            (status["connections"]["parked"] == connections).then_some(())
        });
    }
}

/// Builds a binary of the workspace as it is released, and says where it is.
pub(crate) fn build(package: &str, binary: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Each by itself: together, one would get the features that the other asks its dependencies for.
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", package, "--bin", binary])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{binary} does not build");
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    };
    let mut executables = messages.lines().filter_map(executable);
    executables
        .find(|path| path.file_name() == Some(OsStr::new(binary)))
        .expect("cargo says where it put the binary")
}
