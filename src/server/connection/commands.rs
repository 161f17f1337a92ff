//! The commands to a connection's task, given through the connection's handle.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// A command to a connection. Commands only escalate: a stronger one replaces a weaker one, never the reverse. They
/// stand here from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    /// Go on.
    Serve,
    /// Leave for the successor as soon as no request is in flight.
    Carry,
    /// Close as soon as no request is in flight.
    Finish,
    /// Say that the head or the body of a request took too long (408), and close.
    TimeOut,
    /// Close now: the client takes too long, and it is too late to answer with 408.
    Drop,
    /// Close now, whatever is in flight: the daemon stops.
    Cut,
}

impl Command {
    const ALL: [Self; 6] = [Self::Serve, Self::Carry, Self::Finish, Self::TimeOut, Self::Drop, Self::Cut];
}

/// A task that waits for commands. Before an upgrade that is the connection's own, and the handler that reads the
/// body. After it the two halves of the socket may be polled by tasks of the code that asked for the upgrade.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// The connection's own task, or its tunnel's.
    Task,
    /// The task that reads the socket, or a request's body.
    Reader,
    /// The task that writes the socket.
    Writer,
}

/// The strongest command so far, and the wakers for the next one.
#[derive(Debug)]
pub(crate) struct Commands {
    strongest: AtomicU8,
    task: AtomicWaker,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Commands {
    pub(super) fn new() -> Self {
        Self {
            strongest: AtomicU8::new(Command::Serve as u8),
            task: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        }
    }

    /// Gives a command; one that is stronger than those before wakes the waiters.
    pub(crate) fn give(&self, command: Command) {
        // `Relaxed` is enough: `AtomicWaker` orders this store before the reads of those it wakes.
        if self.strongest.fetch_max(command as u8, Relaxed) < command as u8 {
            for waiter in [&self.task, &self.reader, &self.writer] {
                waiter.wake();
            }
        }
    }

    /// The strongest command so far. The waiter is woken for a stronger one.
    ///
    /// The waker is registered before the command is read, and this is the only place that does so: in the other order
    /// a command given between the two would wake nobody.
    pub(crate) fn poll(&self, waiter: Waiter, cx: &Context<'_>) -> Command {
        self.waker(waiter).register(cx.waker());
        self.strongest()
    }

    /// The strongest command so far.
    pub(crate) fn strongest(&self) -> Command {
        Command::ALL[usize::from(self.strongest.load(Relaxed))]
    }

    /// Has a waiter look again at what it waits for beside commands.
    pub(super) fn wake(&self, waiter: Waiter) {
        self.waker(waiter).wake();
    }

    fn waker(&self, waiter: Waiter) -> &AtomicWaker {
        match waiter {
            Waiter::Task => &self.task,
            Waiter::Reader => &self.reader,
            Waiter::Writer => &self.writer,
        }
    }
}
