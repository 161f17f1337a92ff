//! The machine with HAProxy, as its operator sees it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use steadfast_harness::{Machine, wait_with};

/// The file that an operator copies.
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/haproxy/haproxy.cfg");

/// A box with HAProxy.
pub(crate) struct Balancer {
    machine: Machine,
}

impl Deref for Balancer {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Balancer {
    /// Boots the box, or says that it cannot be.
    pub(crate) fn boot_or_skip(file: &str) -> Option<Self> {
        // A box has the programs and the units of this machine.
        if !Path::new("/usr/sbin/haproxy").exists() {
            Machine::skip(file, "there is no /usr/sbin/haproxy");
            return None;
        }
        Some(Self { machine: Machine::boot_or_skip(file)? })
    }

    /// Starts HAProxy with the shipped config.
    pub(crate) fn start(&self, environment: &str) {
        self.copy(Path::new(CONFIG), "/etc/haproxy/haproxy.cfg", "0644");
        self.write("/etc/default/haproxy", environment);
        self.ok(["systemctl", "start", "haproxy.service"]);
    }

    /// A command to the running HAProxy, and its answer.
    pub(crate) fn tell(&self, command: &str) -> String {
        let socket: PathBuf = self.path("/run/haproxy/admin.sock");
        let mut stream = UnixStream::connect(socket).expect("HAProxy has its socket");
        stream.write_all(format!("{command}\n").as_bytes()).expect("HAProxy reads commands");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("HAProxy answers in text");
        answer
    }

    /// All that HAProxy knows of a server, or of `BACKEND`: by the names of its manual (`management.txt`, section 9.1).
    pub(crate) fn statistics(&self, server: &str) -> HashMap<String, String> {
        let table = self.tell("show stat");
        let mut lines = table.lines().map(|line| line.split(','));
        let names = lines.next().expect("a table has a head");
        let row = lines.find(|row| row.clone().take(2).eq(["steadfast", server]));
        let row = row.unwrap_or_else(|| panic!("no {server} in:\n{table}"));
        names.map(str::to_owned).zip(row.map(str::to_owned)).collect()
    }

    /// A number of these.
    pub(crate) fn number(&self, server: &str, name: &str) -> u64 {
        let statistics = self.statistics(server);
        let value = statistics.get(name).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no number {name} in {statistics:?}"))
    }

    /// The state in which HAProxy sees a machine: `UP`, `DOWN`, `DRAIN`, and so on.
    pub(crate) fn state(&self, server: &str) -> String {
        self.statistics(server).remove("status").expect("every server has a state")
    }

    /// Returns when HAProxy sees the machine in this state.
    pub(crate) fn wait_for(&self, server: &str, state: &str) {
        wait_with(
            || (self.state(server) == state).then_some(()),
            || format!("{server} to be {state}; it is {:?}\n{}", self.statistics(server), self.log()),
        );
    }

    /// Returns when the machine has been given this many more requests.
    pub(crate) fn wait_for_requests(&self, server: &str, more: u64) {
        let goal = self.number(server, "stot") + more;
        wait_with(
            || (self.number(server, "stot") >= goal).then_some(()),
            || format!("{server} to get requests: {:?}\n{}", self.statistics(server), self.log()),
        );
    }

    /// What HAProxy has logged of the machines' states, and the requests that it has not had answered.
    pub(crate) fn log(&self) -> String {
        self.journal("haproxy.service", &["-g", "Health check|Server steadfast| (-1|[45]\\d\\d) \\d+ - - "])
    }
}
