//! The binary under test, with what it serves.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;

use steadfast_harness::{Client, Daemon};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");

/// The files that are shipped with it.
pub(crate) const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");

/// Timeouts that let every connection of a test come to its end soon.
pub(crate) const IMPATIENT: &str = r#"
    header_timeout = "3s"
    keepalive_timeout = "1s"
    read_timeout = "3s"
    write_timeout = "1s"
"#;

/// A running daemon.
pub(crate) struct Site {
    daemon: Daemon,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Deref for Site {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Site {
    /// Starts it with these keys in `[http]`, and these further tables.
    pub(crate) fn start(limits: &str, tables: &str) -> Self {
        Self::start_with(limits, tables, |_| {})
    }

    /// The same, with a last change to the command.
    pub(crate) fn start_with(limits: &str, tables: &str, adjust: impl FnOnce(&mut Command)) -> Self {
        let config = format!(
            "[http]\nlisten = [\"127.0.0.1:0\"]\n{limits}\n[admin]\nlisten = [\"127.0.0.1:0\"]\n[log]\ntarget = \"stderr\"\n{tables}"
        );
        let daemon = Daemon::spawn_with(BINARY, &config, adjust);
        daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
        let (http, admin) = (daemon.address("http"), daemon.address("admin"));
        Self { daemon, http, admin }
    }

    /// A connection of a client that does nothing wrong.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.http).expect("the daemon accepts connections")
    }

    /// The daemon answers a new client.
    pub(crate) fn assert_available(&self, path: &str) {
        let answer = self.client().get(path).unwrap_or_else(|error| panic!("{error}\n{}", self.stderr()));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// A value of the admin listener's metrics.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        metric_in(&self.metrics(), series)
    }

    /// The number of requests that ended with a status of this class, its first digit.
    pub(crate) fn requests(&self, class: char) -> u64 {
        requests_in(&self.metrics(), class)
    }

    pub(crate) fn metrics(&self) -> String {
        let answer = Client::connect(self.admin).and_then(|mut client| client.get("/metrics"));
        answer.expect("the admin child answers").text()
    }

    /// The number of connections that are open at the http child, whatever they are doing.
    pub(crate) fn connections(&self) -> u64 {
        sum_in(&self.metrics(), "steadfast_http_connections")
    }

    /// The memory that its worker has in use, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.worker()));
        let status = status.expect("the daemon runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("the kernel knows its size") << 10
    }

    /// The number of lines of its log that satisfy `wanted`.
    pub(crate) fn lines(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.stderr().0.iter().filter(|line| wanted(line)).count()
    }
}

/// A value in the text that Prometheus scrapes.
pub(crate) fn metric_in(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in:\n{metrics}"))
}

/// The sum over all labels of a metric in that text.
///
/// # Panics
///
/// If there is none.
pub(crate) fn sum_in(metrics: &str, name: &str) -> u64 {
    let labelled =
        |line: &str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ')?.1.parse::<u64>().ok();
    let values: Vec<u64> = metrics.lines().filter_map(labelled).collect();
    assert!(!values.is_empty(), "no {name} in:\n{metrics}");
    values.iter().sum()
}

/// The number of requests in that text whose status begins with this digit.
pub(crate) fn requests_in(metrics: &str, class: char) -> u64 {
    let requests = metrics.lines().filter_map(|line| line.strip_prefix("steadfast_http_requests_total{"));
    let codes =
        requests.filter_map(|line| line.split_once("code=\"")).filter(|(_, code)| code.starts_with(class));
    codes.filter_map(|(_, code)| code.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// A route that answers with a text.
pub(crate) fn respond(path: &str, text: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nrespond = \"{text}\"\n")
}

/// A route to an upstream that is not waited for.
pub(crate) fn proxy(path: &str, upstream: SocketAddr, more: &str) -> String {
    format!(
        "[[route]]\npath = \"{path}\"\nproxy = {{ to = \"http://{upstream}\", retry_for = \"0s\"{more} }}\n"
    )
}

/// A route to the files below a folder.
pub(crate) fn files(path: &str, root: &Path) -> String {
    format!("[[route]]\npath = \"{path}\"\nfiles = \"{}\"\n", root.display())
}
