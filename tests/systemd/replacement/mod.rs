//! Replacements, of a worker or of the main process: nobody waits for one, and nobody loses anything by one.
//!
//! Here stands what the tests look at; each file below is one kind of replacement.

mod configs;
mod crashes;
mod deployments;
mod faults;
mod figures;
mod instances;
mod lasting;
mod seen;
mod singletons;
mod stops;
mod under_way;
mod user;

use steadfast::status::Status;
use steadfast_harness::{Account, Client, Exchange};

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

    /// Sends a process of the service a signal, such as "KILL".
    fn signal(&self, signal: &str, process: u32) {
        self.ok(["kill", "-s", signal, &process.to_string()]);
    }

    /// A predecessor answers the request that it has, hands the connection over and ends; a stop then leaves nothing.
    fn assert_finishes(&self, predecessor: u32, mut client: Client, exchange: Exchange) {
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().unwrap().text(), "worth the wait");
        assert_eq!(client.get("/").unwrap().status, 200);
        self.wait_for_the_end_of(predecessor);
        self.stop();
        self.assert_stopped_with(0);
        assert_eq!(self.processes(), [].into());
    }

    /// No client was refused, lost a request, or was told to connect anew.
    fn assert_nothing_lost(&self, account: &Account) {
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{account}\n{}", self.journal(UNIT, &[]));
    }
}
