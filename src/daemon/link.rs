//! The main process, as its worker sees it: what it commands, and that it is there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::main_process::{News, Settings};
use crate::systemd::activation::{CHANNEL, Inherited, Role, failed, role};
use crate::systemd::channel::{Channel, Message, key};
use crate::systemd::process::Process;

/// A command of the main process, or its end.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve.
    Go {
        /// True if another worker serves, or did until now, and is going to tell what it has counted.
        succeeds: bool,
    },
    /// Run the singletons: no other worker does.
    Alone,
    /// Hand over to the successor, which serves, and finish.
    HandOver,
    /// The main process leaves: serve on until the next one's worker serves.
    Leaves,
    /// Nobody follows: leave nothing for a next process.
    NobodyFollows {
        /// True if there is one that nothing would reach.
        lacks_store: bool,
    },
    /// Stop, for the reason that is given.
    Stop(&'static str),
    /// Cut what is in flight, for the reason that is given.
    Cut(&'static str),
    /// The outcome of a reload.
    Answer(Message),
    /// What the main process knows, for the status.
    News(News),
    /// The main process has ended.
    Gone,
    /// Nothing is kept for another main process either, so that there will be none.
    Orphaned,
}

/// The way to the main process.
#[derive(Clone, Debug)]
pub(super) struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    channel: Arc<Channel>,
    /// Its process; none if it has ended already.
    process: Option<Process>,
    pid: u32,
    gone: AtomicBool,
    orphaned: AtomicBool,
    beside: bool,
    /// True while this worker may run its singletons.
    holds_singletons: AtomicBool,
}

impl Link {
    /// Finds the main process; `None` for a daemon without one.
    pub(super) fn find(inherited: &mut Inherited) -> io::Result<Option<Self>> {
        let Role::Worker { beside } = role() else { return Ok(None) };
        let Some(channel) = inherited.take(CHANNEL).pop() else { return Ok(None) };
        let main = rustix::net::sockopt::socket_peercred(&channel)?.pid;
        let process = Process::open(main).ok();
        let channel = Arc::new(Channel::adopt(channel)?);
        Ok(Some(Self(Arc::new(Inner {
            channel,
            process,
            pid: main.as_raw_nonzero().get().unsigned_abs(),
            gone: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            beside,
            holds_singletons: AtomicBool::new(false),
        }))))
    }

    /// The channel to it.
    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.0.channel
    }

    /// Its process number; it may have ended.
    pub(super) fn pid(&self) -> u32 {
        self.0.pid
    }

    /// True if another worker serves, and goes on if this one cannot.
    pub(super) fn is_beside(&self) -> bool {
        self.0.beside
    }

    /// Says that everything is bound and ready.
    pub(super) fn bound(&self, settings: &Settings) -> io::Result<()> {
        let settings = serde_json::to_string(settings)?;
        self.channel().send(&format!("{}=1\n{}={settings}", key::BOUND, key::SETTINGS), &[])
    }

    /// Asks to be the one worker that runs singletons; [`Command::Alone`] is the answer.
    pub(super) fn want_singletons(&self) {
        self.tell_of_singletons(key::WANTED);
    }

    /// Notes that this worker may run its singletons.
    pub(super) fn hold_singletons(&self) {
        self.0.holds_singletons.store(true, Relaxed);
    }

    /// Says that this worker runs no singletons any more.
    pub(super) fn release_singletons(&self) {
        self.0.holds_singletons.store(false, Relaxed);
        self.tell_of_singletons(key::RELEASED);
    }

    /// Says it once more, if it runs none: another main process may not know.
    pub(super) fn confirm_singletons(&self) {
        if !self.0.holds_singletons.load(Relaxed) {
            self.tell_of_singletons(key::RELEASED);
        }
    }

    fn tell_of_singletons(&self, what: &str) {
        // Best effort: with the main process another worker's reason to wait has gone, too.
        let _ = self.channel().send(&format!("{}={what}", key::SINGLETONS), &[]);
    }

    /// Says that this worker accepts no client any more.
    pub(super) fn retired(&self) {
        // Best effort: it waits for that only so long.
        let _ = self.channel().send(&format!("{}=1", key::RETIRED), &[]);
    }

    /// Says why this worker cannot serve.
    pub(super) fn decline(&self, reason: &str) {
        // Best effort: the main process may have ended.
        let _ = self.channel().send(&failed(reason), &[]);
    }

    /// Returns the next command. After the end of the main process there is one more only if another has taken its
    /// place.
    pub(super) async fn command(&self) -> Command {
        loop {
            tokio::select! {
                biased;
                message = self.channel().receive() => {
                    let Ok(Some(message)) = message else {
                        self.orphaned().await;
                        return Command::Orphaned;
                    };
                    if let Some(command) = command(message) {
                        return command;
                    }
                }
                () = self.gone() => return Command::Gone,
            }
        }
    }

    /// Returns when the main process has ended, once.
    async fn gone(&self) {
        self.ended().await;
        once(&self.0.gone).await;
    }

    /// Returns when the other end of the channel is nowhere any more, once: systemd keeps it for the next main process.
    async fn orphaned(&self) {
        self.ended().await;
        once(&self.0.orphaned).await;
    }

    async fn ended(&self) {
        if let Some(process) = &self.0.process {
            process.gone().await;
        }
    }
}

/// Returns the first time.
async fn once(done: &AtomicBool) {
    if done.swap(true, Relaxed) {
        std::future::pending::<()>().await;
    }
}

fn command(message: Message) -> Option<Command> {
    if message.has(key::GO) {
        Some(Command::Go { succeeds: message.has(key::SUCCEEDS) })
    } else if message.has(key::ALONE) {
        Some(Command::Alone)
    } else if let Some(how) = message.value(key::HAND_OVER) {
        Some(if how == key::BESIDE { Command::HandOver } else { Command::Leaves })
    } else if let Some(why) = message.value(key::NOBODY_FOLLOWS) {
        Some(Command::NobodyFollows { lacks_store: why == key::NO_STORE })
    } else if let Some(cause) = message.value(key::STOP) {
        let known = ["SIGTERM", "SIGINT", "the caller"];
        Some(Command::Stop(known.into_iter().find(|known| *known == cause).unwrap_or("the main process")))
    } else if let Some(by) = message.value(key::CUT) {
        let known = [key::SECOND_SIGNAL, key::TOO_MANY];
        Some(Command::Cut(known.into_iter().find(|known| *known == by).unwrap_or("the main process")))
    } else if let Some(json) = message.value(key::PREDECESSORS) {
        let restarts = message.value(key::RESTARTED).and_then(|number| number.parse().ok());
        let news = |predecessors| News { predecessors, restarts: restarts.unwrap_or_default() };
        serde_json::from_str(json).ok().map(news).map(Command::News)
    } else if message.has(key::RELOADED) || message.has(key::REFUSED) {
        Some(Command::Answer(message))
    } else {
        None
    }
}
