//! How a connection's task is told what to do, by whoever holds the connection's handle.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// What a connection is told to do. Commands only escalate: a stronger one replaces a weaker one, never the reverse.
/// Their order here is their strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    /// Go on.
    Serve,
    /// Leave for the next process as soon as no request is in flight.
    Carry,
    /// Close as soon as no request is in flight.
    Finish,
    /// Say that the head or the body of a request took too long (408), and close.
    TimeOut,
    /// Close now: the client takes too long over something that it can no longer be told of.
    Drop,
    /// Close now, whatever is in flight: the daemon stops.
    Cut,
}

impl Command {
    const ALL: [Self; 6] = [Self::Serve, Self::Carry, Self::Finish, Self::TimeOut, Self::Drop, Self::Cut];
}

/// Who waits for commands. Until an upgrade that is the connection's task alone. Afterwards the two halves of its
/// socket may be polled by tasks that only the upgrader knows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// The connection's own task, or its tunnel's.
    Task,
    /// Whoever reads the socket, or a request's body.
    Reader,
    /// Whoever writes the socket.
    Writer,
}

/// The strongest command so far, and whom to wake for the next one.
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

    /// Gives a command, and wakes whoever waits for one if it is stronger than what stood.
    pub(crate) fn give(&self, command: Command) {
        // The wakers' own synchronisation orders this store before the reads of those who wake up.
        if self.strongest.fetch_max(command as u8, Relaxed) < command as u8 {
            for waiter in [&self.task, &self.reader, &self.writer] {
                waiter.wake();
            }
        }
    }

    /// The command that stands. The waiter is woken for a stronger one.
    ///
    /// The waker is registered before the command is read, and this is the only place that does so: in the other order
    /// a command given between the two would wake nobody.
    pub(crate) fn poll(&self, waiter: Waiter, cx: &Context<'_>) -> Command {
        let waker = match waiter {
            Waiter::Task => &self.task,
            Waiter::Reader => &self.reader,
            Waiter::Writer => &self.writer,
        };
        waker.register(cx.waker());
        self.strongest()
    }

    /// The command that stands.
    pub(crate) fn strongest(&self) -> Command {
        Command::ALL[usize::from(self.strongest.load(Relaxed))]
    }

    /// Has the connection's task look again at the state of its connection.
    pub(super) fn wake_task(&self) {
        self.task.wake();
    }
}
