//! Another program for the main process itself, which keeps its process number and all that it has.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, MemfdFlags, access, memfd_create};
use serde::{Deserialize, Serialize};

use super::program::{self, Program};
use super::worker::STORED;
use super::{MainProcess, Phase, Settings};
use crate::event;
use crate::logging;
use crate::systemd::activation::Inherited;

/// The name of this process's own state, on its way to the program that takes its place.
const STATE: &str = "state";

/// This process's state, for the program that takes its place.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) current: Option<u32>,
    pub(super) wants_singletons: bool,
    pub(super) settings: Settings,
    pub(super) last: bool,
    #[serde(default)]
    pub(super) restarted: u64,
}

impl MainProcess {
    /// Notes that the current worker may be of another program than this process, which is to become that as well.
    pub(super) fn note_upgrade(&mut self, is_upgraded: bool) {
        self.is_upgraded = is_upgraded;
        if is_upgraded {
            tracing::info!(
                message_id = event::UPGRADED,
                "going on as the program that is now at {}",
                self.program.path().display()
            );
        }
    }

    /// True if this process is to become another program, and nothing is under way that this would lose.
    pub(super) fn may_follow_upgrade(&self) -> bool {
        let is_settled = self.phase == Phase::Serving && !self.is_unannounced && self.candidate().is_none();
        self.is_upgraded && is_settled && self.events.is_empty()
    }

    /// Takes the code of the program that is at the path now, as the same process with all that it keeps; not yet if
    /// something is heard meanwhile that is to be handled first.
    pub(super) async fn follow_upgrade(&mut self) {
        // May take a while. Behind the last look at what was heard nothing may: a signal that comes there is lost.
        logging::flush();
        // In the first turn the runtime hears of what has come, in the second its task passes that on, for there is room.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        if !self.events.is_empty() {
            return;
        }
        self.is_upgraded = false;
        let error = self.exec(Program::command);
        tracing::error!(message_id = event::UPGRADE_FAILED, %error, "cannot: {error}; going on as before");
    }

    /// Replaces the program of this process. Returns only if that cannot be, and then nothing has changed.
    ///
    /// # Panics
    /// If the kernel refuses a program that it has just been asked for: what is passed on has taken the places of this process's
    /// own descriptors by then, and there is nothing left to go on with. Its workers serve on, for the next main process.
    pub(super) fn exec(
        &self,
        command: impl Fn(&Program, &str, Vec<(String, OwnedFd)>) -> io::Result<Command>,
    ) -> io::Error {
        let passed = || {
            let mut passed = self.store.duplicates(|_| true)?;
            for worker in &self.workers {
                passed.push((
                    format!("{STORED}{}", worker.pid),
                    worker.channel().as_fd().try_clone_to_owned()?,
                ));
            }
            passed.push((STATE.to_owned(), self.state()?));
            let mut command = command(&self.program, program::MAIN, passed)?;
            command.env("LISTEN_PID", std::process::id().to_string());
            access(Path::new(command.get_program()), Access::EXEC_OK)?;
            Ok(command)
        };
        match passed() {
            Ok(mut command) => {
                let error = command.exec();
                panic!("cannot become {}: {error}", command.get_program().display())
            }
            Err(error) => error,
        }
    }

    pub(super) fn state(&self) -> io::Result<OwnedFd> {
        let state = State {
            current: self.current().map(|worker| worker.pid),
            wants_singletons: self.current().is_some_and(|worker| worker.wants_singletons),
            settings: self.settings.clone(),
            last: self.last,
            restarted: self.restarted,
        };
        let mut file = File::from(memfd_create("steadfast-state", MemfdFlags::CLOEXEC)?);
        serde_json::to_writer(&mut file, &state)?;
        file.rewind()?;
        Ok(file.into())
    }
}

impl State {
    /// That of the process whose place this one has taken, if it was left.
    pub(super) fn take(inherited: &mut Inherited) -> Self {
        let state = inherited.take(STATE).pop();
        state.and_then(|state| serde_json::from_reader(File::from(state)).ok()).unwrap_or_default()
    }
}
