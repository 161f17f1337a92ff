//! Replacements, of a worker or of the main process: nobody waits for one, and nobody loses anything by one.
//!
//! Here stands what the tests look at; each file below is one kind of replacement.

mod configs;
mod crashes;
mod deployments;
mod faults;
mod figures;
mod lasting;
mod singletons;
mod stops;
mod under_way;

use std::collections::BTreeSet;

use steadfast::status::Status;
use steadfast_harness::{Account, wait_until};

use crate::service::{Service, UNIT};

/// The clients that keep the daemon busy.
const CLIENTS: usize = 50;

impl Service {
    /// The current worker's own account of itself.
    fn status(&self) -> Status {
        serde_json::from_str(&self.admin("/status").text()).expect("the status is JSON")
    }

    /// The current worker's process.
    fn worker(&self) -> u32 {
        self.status().pid
    }

    /// Every process of the service.
    fn processes(&self) -> BTreeSet<u32> {
        let group = self.show(UNIT, "ControlGroup");
        let file = self.path(format!("/sys/fs/cgroup{group}/cgroup.procs"));
        // Read in the box: elsewhere the processes have other numbers.
        if group.is_empty() || !file.exists() {
            return BTreeSet::new();
        }
        let listed = self.run(["cat", &format!("/sys/fs/cgroup{group}/cgroup.procs")]).stdout;
        listed.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Sends a process of the service a signal, such as "KILL".
    fn signal(&self, signal: &str, process: u32) {
        self.ok(["kill", "-s", signal, &process.to_string()]);
    }

    /// Returns when a process has ended.
    fn wait_for_the_end_of(&self, process: u32) {
        wait_until(&format!("process {process} to end"), || (!self.runs(process)).then_some(()));
    }

    /// True if there is such a process.
    fn runs(&self, process: u32) -> bool {
        self.path(format!("/proc/{process}")).exists()
    }

    /// Returns when another worker serves than this one, which has been told to end.
    fn wait_for_another_worker(&self, worker: u32) -> u32 {
        // Until then it may take a connection and not answer any more.
        self.wait_for_the_end_of(worker);
        wait_until("another worker to serve", || Some(self.worker()).filter(|next| *next != worker))
    }

    /// Returns when the log says something.
    fn wait_for_log(&self, what: &str) -> String {
        wait_until(&format!("{what:?} in the log"), || {
            Some(self.journal(UNIT, &[])).filter(|journal| journal.contains(what))
        })
    }

    /// No client was refused, lost a request, or was told to connect anew.
    fn assert_nothing_lost(&self, account: &Account) {
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{account}\n{}", self.journal(UNIT, &[]));
    }
}
