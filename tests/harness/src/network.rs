//! A network of the test's own, to which boxes are joined.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::machine::Machine;

/// The bits of an address that all on a network share.
const PREFIX: u8 = 24;

/// Makes the switch, with the network's own address, and keeps its namespace until standard input ends.
const SCRIPT: &str = r#"
set -e
ip link set lo up
ip link add switch type bridge
ip address add "$1" dev switch
ip link set switch up
echo up
exec cat
"#;

/// A switch, and an address on it, in a namespace of their own. The test's clients live there.
///
/// It is gone with this value or with the test process, and with it every [`Cable`].
#[derive(Debug)]
pub struct Network {
    /// The process that keeps the namespace.
    keeper: Child,
    /// The keeper ends with this pipe.
    lifeline: Option<ChildStdin>,
    namespace: File,
    /// The number of cables so far, which names the next one's port.
    cables: AtomicU32,
}

/// The cable between a box and the network's switch. It is gone with either of them.
#[derive(Debug)]
pub struct Cable {
    /// The switch's end. The box's is `eth0`.
    port: String,
}

impl Network {
    /// A network of 254 addresses, in which the test itself has this one.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn new(address: Ipv4Addr) -> Self {
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", SCRIPT, "network", &format!("{address}/{PREFIX}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // a Ctrl-C ends the test, and the test's end the network
            .spawn()
            .expect("unshare starts");
        let lifeline = keeper.stdin.take();
        let mut said = String::new();
        let stdout = keeper.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut said).expect("the keeper's output is text");
        assert_eq!(said, "up\n", "no network {address}");
        let namespace = File::open(format!("/proc/{}/ns/net", keeper.id())).expect("it has a namespace");
        Self { keeper, lifeline, namespace, cables: AtomicU32::new(0) }
    }

    /// Joins a box, which has this address on its `eth0` from now on.
    ///
    /// # Panics
    ///
    /// If it cannot be joined.
    #[must_use]
    pub fn join(&self, machine: &Machine, address: Ipv4Addr) -> Cable {
        let port = format!("port{}", self.cables.fetch_add(1, Ordering::Relaxed));
        let init = machine.init().to_string();
        // A box in the place of another has the same card: to learn of a new one takes its neighbours half a minute.
        let [a, b, c, d] = address.octets();
        let card = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        let peer = ["type", "veth", "peer", "name", "eth0", "address", &card, "netns", &init];
        self.ip(&[&["link", "add", &port], &peer[..]].concat());
        self.ip(&["link", "set", &port, "master", "switch", "up"]);
        machine.ok(["ip", "address", "add", &format!("{address}/{PREFIX}"), "dev", "eth0"]);
        machine.ok(["ip", "link", "set", "eth0", "up"]);
        Cable { port }
    }

    /// Takes a cable out: what is sent over it is lost, and nobody is told.
    ///
    /// # Panics
    ///
    /// If its box is gone.
    pub fn unplug(&self, cable: &Cable) {
        self.ip(&["link", "set", &cable.port, "down"]);
    }

    /// Puts a cable in again.
    ///
    /// # Panics
    ///
    /// If its box is gone.
    pub fn plug(&self, cable: &Cable) {
        self.ip(&["link", "set", &cable.port, "up"]);
    }

    /// Runs `work` on a thread that is on this network, as [`Machine::enter_network`] does.
    ///
    /// # Panics
    ///
    /// If `work` panics, or the network cannot be entered.
    pub fn enter<T, F>(&self, work: F) -> T
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        enter(self.namespace.as_fd(), work)
    }

    fn ip(&self, arguments: &[&str]) {
        let output = Command::new("nsenter")
            .args(["--net", "--target", &self.keeper.id().to_string(), "ip"])
            .args(arguments)
            .output()
            .expect("nsenter starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // A panic here would hide the one that may be under way.
        let _ = self.keeper.wait();
    }
}

/// Runs `work` on a thread in a network namespace, and returns what it returned.
pub(crate) fn enter<T, F>(namespace: BorrowedFd<'_>, work: F) -> T
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    let result = thread::scope(|scope| {
        let inside = move || {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                .expect("root may enter a network namespace");
            work()
        };
        scope.spawn(inside).join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
