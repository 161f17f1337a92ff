//! The reload: a successor is started with the config and the program that are on disk now, and takes over.
//!
//! The signals child and the control socket ask for it; the root carries it out, one at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use super::status::Observer;
use crate::handover::successor::{Successor, SuccessorError, Transfer};
use crate::handover::{Handover, named};
use crate::server::Server;
use crate::systemd::manager::{Manager, one_line};

/// The reason why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// There is no service manager that could supervise a successor.
    #[error("a reload needs systemd: outside of it, stop the process and start it again")]
    Alone,
    /// The program's path is not known.
    #[error("cannot find this program's file: {0}")]
    Program(io::ErrorKind),
    /// A descriptor cannot be passed on.
    #[error("cannot pass the sockets on: {0}")]
    Descriptors(#[source] io::Error),
    /// There is no successor.
    #[error(transparent)]
    Successor(#[from] SuccessorError),
}

impl ReloadError {
    /// The reason on one line, for STATUS. The log and the asking command have all of it.
    fn in_short(&self) -> String {
        match self {
            Self::Successor(error) => error.in_short(),
            other => other.to_string(),
        }
    }
}

/// The sending end of the requests for a reload.
#[derive(Clone, Debug)]
pub(super) struct Reloads(mpsc::Sender<Request>);

/// A request: where to send the successor's process number, or the reason why there is none.
pub(super) type Request = oneshot::Sender<Result<u32, String>>;

impl Reloads {
    /// Both ends: one to ask at, one for the root to receive from.
    pub(super) fn open() -> (Self, mpsc::Receiver<Request>) {
        let (sender, requests) = mpsc::channel(1);
        (Self(sender), requests)
    }

    /// Asks for a reload and waits for its end; for the end of another one first, if one is under way.
    pub(super) async fn ask(&self) -> Result<u32, String> {
        let refused = || Err("the daemon is stopping, or another process has taken over already".to_owned());
        let (reply, answer) = oneshot::channel();
        if self.0.send(reply).await.is_err() {
            return refused();
        }
        answer.await.unwrap_or_else(|_| refused())
    }

    /// Asks for a reload without waiting for it: its outcome is in the log.
    pub(super) fn ask_for_the_log(&self) {
        let (reply, _) = oneshot::channel();
        if self.0.try_send(reply).is_err() {
            tracing::warn!("no reload: another one is under way, or the daemon is stopping");
        }
    }
}

/// All that a reload needs of the daemon.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) observer: Observer,
    pub(super) manager: Manager,
    pub(super) handover: Arc<Handover>,
    pub(super) ready_timeout: Duration,
    /// The program's file as it was named at the start: what is there now may be another version.
    pub(super) program: Result<PathBuf, io::ErrorKind>,
    /// The servers whose listeners the successor inherits.
    pub(super) servers: Vec<Server>,
}

impl Reload {
    /// Starts a successor and makes it the unit's main process. From its return on this process has to drain.
    ///
    /// Dropped before that, it ends the successor and changes nothing, like an error, which the log and STATUS tell.
    pub(super) async fn run(&self) -> Result<Transfer, ReloadError> {
        tracing::info!("reloading");
        let mut states = vec![NotifyState::Reloading, NotifyState::Status("reloading")];
        states.extend(NotifyState::monotonic_usec_now());
        self.manager.tell(&states);
        let outcome = self.succeed().await;
        match &outcome {
            Ok(transfer) => {
                tracing::info!(successor = transfer.pid(), "process {} takes over", transfer.pid());
            }
            Err(error) => {
                tracing::error!("the reload failed, nothing has changed: {error}");
                self.observer.reload_failed(error.in_short());
                self.manager
                    .tell(&[NotifyState::Ready, NotifyState::Status(&one_line(&self.observer.line()))]);
            }
        }
        outcome
    }

    async fn succeed(&self) -> Result<Transfer, ReloadError> {
        if !self.manager.listens() {
            return Err(ReloadError::Alone);
        }
        let program = self.program.as_ref().map_err(|kind| ReloadError::Program(*kind))?;
        let descriptors = self.descriptors().map_err(ReloadError::Descriptors)?;
        let successor = Successor::start(program, descriptors, self.ready_timeout).await?;
        // From here on the listeners' paths are the successor's, and the manager ignores this process.
        self.handover.succeeded();
        self.manager.resign_to(successor.pid());
        Ok(successor.go().await)
    }

    /// All that the successor inherits, by name.
    fn descriptors(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let listeners = self.servers.iter().flat_map(Server::listeners);
        let listeners = listeners.map(|l| named(l.configured().passed_as(), &*l));
        listeners.chain(self.handover.ends().map(|(name, end)| named(name, end))).collect()
    }
}
