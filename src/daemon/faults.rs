//! Faults on demand, in a build with the feature `faults`: `POST /faults/CHILD/KIND` on the control socket.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;

use super::child::BoxError;

/// The time that a blocked thread is blocked: longer than any watchdog waits.
const BLOCK: Duration = Duration::from_secs(600);

/// A fault that a child can be made to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fault {
    /// Panic.
    Panic,
    /// Return an error.
    Fail,
    /// Do nothing any more, without holding up anybody else.
    Hang,
    /// Hold its thread.
    Block,
}

/// The fault that a child is to have, if any.
#[derive(Debug, Default)]
pub(super) struct Faults {
    next: Mutex<Option<Fault>>,
    injected: Notify,
}

impl Faults {
    pub(super) fn inject(&self, fault: Fault) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.injected.notify_one();
    }

    /// Runs a child until it ends or a fault is injected, which it then has. A child that hangs or blocks keeps its
    /// place in the tree, but does nothing and has no heartbeat.
    pub(super) async fn strike(
        &self,
        child: impl Future<Output = Result<(), BoxError>>,
    ) -> Result<(), BoxError> {
        let fault = tokio::select! {
            result = child => return result,
            fault = self.next() => fault,
        };
        match fault {
            Fault::Panic => panic!("a fault on demand"),
            Fault::Fail => Err("a fault on demand".into()),
            Fault::Hang => std::future::pending().await,
            Fault::Block => {
                std::thread::sleep(BLOCK);
                Ok(())
            }
        }
    }

    async fn next(&self) -> Fault {
        loop {
            self.injected.notified().await;
            if let Some(fault) = self.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return fault;
            }
        }
    }
}
