//! The way of connections to the successor, and from a predecessor.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt::socket_cookie;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use super::connection::task::Serve;
use super::connection::{Command, Connection};
use super::socket::Socket;
use super::stream::ClientStream;
use super::totals::Carried;
use super::wire::Wire;
use super::{Server, tunnel};
use crate::event;
use crate::handover::mailbox::Mailbox;
use crate::handover::parcel::{ConnectionNote, CountsNote, Parcel, Refusal, TunnelNote};
use crate::handover::{Handover, NotCarried};
use crate::printable::counted;
use crate::tls::{Session, TicketKeys, TlsNote};

/// The most connections that leave together.
const BATCH: usize = 250;
/// The time that the first of them waits for others, where no successor is running yet.
const GATHER: Duration = Duration::from_millis(5);

/// Connections that leave, on their way to the mailbox.
#[derive(Debug)]
pub(crate) struct Departures {
    handover: Arc<Handover>,
    outbox: UnboundedSender<Parcel>,
    /// The other end of `outbox`. The task that holds the lock puts what comes out into the mailbox.
    leaving: tokio::sync::Mutex<UnboundedReceiver<Parcel>>,
    /// The clients' sockets whose TLS this process has taken over, or back, and that have not left again, also those that are
    /// closed by now: the number that the kernel gives to each, and to no other (its `SO_COOKIE`).
    owned: Mutex<HashSet<u64>>,
}

impl Departures {
    pub(crate) fn new(handover: Arc<Handover>) -> Arc<Self> {
        let (outbox, leaving) = unbounded_channel();
        Arc::new(Self {
            handover,
            outbox,
            leaving: tokio::sync::Mutex::new(leaving),
            owned: Mutex::default(),
        })
    }

    /// The reason why a connection is not carried; `None` if it is. Asked when it leaves, not when it is told to: a
    /// request may have become a tunnel in between.
    pub(super) fn refuses(&self, is_tunnel: bool) -> Option<NotCarried> {
        self.handover.refuses(is_tunnel)
    }

    /// Puts a connection on its way.
    pub(super) fn send(&self, parcel: Parcel) {
        if parcel.is_over_tls()
            && let Some(cookie) = parcel.descriptors().next().and_then(|client| socket_cookie(client).ok())
        {
            self.owned().remove(&cookie);
        }
        // The other end is in `self`.
        let _ = self.outbox.send(parcel);
    }

    /// Makes this process the owner of what a client says over TLS. An error if it has been that already: a note that comes
    /// again is out of date, and of two owners both would seal with the same numbers.
    fn own(&self, client: BorrowedFd<'_>) -> io::Result<()> {
        if self.owned().insert(socket_cookie(client)?) {
            Ok(())
        } else {
            Err(io::Error::other("its TLS has come a second time; what came first goes on"))
        }
    }

    fn owned(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what has left into the mailbox, once.
    #[cfg(test)]
    pub(super) async fn pass_on(&self) {
        let mut parcels = Vec::new();
        self.leaving.lock().await.recv_many(&mut parcels, BATCH).await;
        self.handover.put(&mut parcels).expect("there is room");
    }
}

// ---- to the successor -------------------------------------------------------------------------------------

impl Server {
    /// Hands over every connection that can be carried: an idle one and a tunnel now, a busy one after its answer.
    /// The others linger, as in [`Self::drain`]. Returns when none is left.
    pub(crate) async fn carry(&self, linger: Duration) {
        let Some(departures) = &self.departures else { return self.drain(linger).await };
        self.command_all(Command::Carry);
        let mut finish = None;
        if departures.refuses(false).is_some() {
            self.announce_close();
            finish = Some(Instant::now() + linger);
        }
        tokio::select! {
            () = self.move_to_mailbox(departures, linger, finish) => {}
            never = self.sweep() => match never {},
        }
    }

    async fn move_to_mailbox(&self, departures: &Departures, linger: Duration, mut finish: Option<Instant>) {
        let mut leaving = departures.leaving.lock().await;
        let mut is_last = departures.handover.last().is_cancelled();
        loop {
            let mut gathered = Gathered { parcels: Vec::new(), departures };
            tokio::select! {
                biased;
                _ = leaving.recv_many(&mut gathered.parcels, BATCH) => {}
                () = self.registry.emptied() => {
                    // The last one may have left since the outbox was looked at.
                    gathered.parcels.extend(std::iter::from_fn(|| leaving.try_recv().ok()));
                    if gathered.parcels.is_empty() {
                        return;
                    }
                }
                () = departures.handover.last().cancelled(), if finish.is_none() && !is_last => {
                    is_last = true;
                    self.announce_close();
                    finish = Some(Instant::now() + linger);
                    continue;
                }
                () = at(finish) => {
                    finish = None;
                    self.command_all(Command::Finish);
                    continue;
                }
            }
            if !departures.handover.is_taken_out() {
                // Each message takes room in a queue that nobody empties: a few full ones rather than many.
                tokio::time::sleep(GATHER).await;
                gathered.parcels.extend(std::iter::from_fn(|| leaving.try_recv().ok()));
            }
            if let Err(error) = self.hand_over(&mut gathered).await {
                let refused = std::mem::take(&mut gathered.parcels);
                let connections = refused.len();
                tracing::warn!(
                    message_id = event::NOT_CARRIED,
                    connections,
                    %error,
                    "{connections} connections cannot be handed over and linger: {error}"
                );
                self.registry.totals().not_carried.add(NotCarried::MailboxFull, refused.len());
                // One that is too large keeps back no other; in all other cases nothing leaves any more.
                let command = if error.kind() == io::ErrorKind::FileTooLarge {
                    Command::Finish
                } else {
                    self.announce_close();
                    finish.get_or_insert(Instant::now() + linger);
                    Command::Serve
                };
                for parcel in refused {
                    // A connection that cannot be taken back either is closed.
                    if let Ok(connection) = self.take_back(parcel) {
                        connection.commands().give(command);
                    }
                }
            }
        }
    }

    /// Puts parcels into the mailbox and counts them, waiting for room while somebody makes it. Leaves those that it does
    /// not take.
    async fn hand_over(&self, gathered: &mut Gathered<'_>) -> io::Result<()> {
        let handed_over = &self.registry.totals().handed_over;
        let handover = &gathered.departures.handover;
        loop {
            let before = Carried::kinds(&gathered.parcels);
            let outcome = handover.put(&mut gathered.parcels);
            handed_over.add(before, Carried::kinds(&gathered.parcels));
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && handover.has_room().await => {}
                outcome => return outcome,
            }
        }
    }
}

/// Parcels on their way from the outbox to the mailbox. If the child is cut meanwhile they go back into the
/// outbox, where the next call of `carry` finds them.
struct Gathered<'a> {
    parcels: Vec<Parcel>,
    departures: &'a Departures,
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        for parcel in self.parcels.drain(..) {
            self.departures.send(parcel);
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

// ---- from a predecessor ----------------------------------------------------------------------------------

/// What a predecessor has left beside connections.
#[derive(Debug)]
pub(crate) enum Note {
    /// What it has counted.
    Counts(CountsNote),
    /// The keys of its tickets.
    Tickets(TicketKeys),
    /// Something that only another version understands.
    NotUnderstood,
}

/// The reason why a connection of another process is closed and does not go on.
#[derive(Debug)]
enum NotAdopted {
    /// Its client was judged by another policy than `[https]` has now.
    JudgedOtherwise,
    /// It cannot be put together.
    Failed(io::Error),
}

impl From<io::Error> for NotAdopted {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Server {
    /// Takes over everything that waits in the mailbox, and gives `others` what is no connection.
    pub(crate) fn take_over(&self, mailbox: &Mailbox, mut others: impl FnMut(Note)) -> io::Result<()> {
        let totals = self.registry.totals();
        while let Some(parcels) = mailbox.take()? {
            // A message's parcels are often lost together, for one reason.
            let (mut lost, mut judged_otherwise) = (BTreeMap::<String, u64>::new(), 0);
            for parcel in parcels {
                let is_over_tls = parcel.as_ref().is_ok_and(Parcel::is_over_tls);
                let adopted = match parcel {
                    Ok(Parcel::Counts(note)) => {
                        others(Note::Counts(note));
                        continue;
                    }
                    Ok(Parcel::Tickets(note)) => {
                        others(Note::Tickets(note));
                        continue;
                    }
                    Ok(Parcel::Connection(socket, note)) => {
                        self.adopt_connection(socket, note).map(|_| &totals.taken_over.connections)
                    }
                    Ok(Parcel::Tunnel { client, upstream, note }) => {
                        self.adopt_tunnel(client, upstream, note).map(|_| &totals.taken_over.tunnels)
                    }
                    Err(Refusal::NoConnection(why)) => {
                        tracing::warn!("a note of the predecessor, not about a connection, is lost: {why}");
                        others(Note::NotUnderstood);
                        continue;
                    }
                    Err(refusal) => Err(io::Error::other(refusal).into()),
                };
                match adopted {
                    Ok(counter) => {
                        counter.fetch_add(1, Relaxed);
                        totals.taken_over.over_tls.fetch_add(is_over_tls.into(), Relaxed);
                    }
                    Err(NotAdopted::JudgedOtherwise) => judged_otherwise += 1,
                    Err(NotAdopted::Failed(error)) => *lost.entry(error.to_string()).or_default() += 1,
                }
            }
            if judged_otherwise > 0 {
                totals.judged_otherwise.fetch_add(judged_otherwise, Relaxed);
                tracing::info!(
                    message_id = event::POLICY_CHANGED,
                    connections = judged_otherwise,
                    "closed {} from the predecessor: [https] would judge their clients by another policy now",
                    counted(judged_otherwise, "connection")
                );
            }
            for (error, number) in lost {
                totals.not_understood.fetch_add(number, Relaxed);
                tracing::warn!(
                    message_id = event::NOT_CARRIED,
                    connections = number,
                    error,
                    "closed {} from the predecessor: {error}",
                    counted(number, "connection")
                );
            }
        }
        Ok(())
    }

    /// Takes back what the mailbox refused.
    fn take_back(&self, parcel: Parcel) -> Result<Arc<Connection>, NotAdopted> {
        match parcel {
            Parcel::Connection(socket, note) => self.adopt_connection(socket, note),
            Parcel::Tunnel { client, upstream, note } => self.adopt_tunnel(client, upstream, note),
            Parcel::Counts(_) | Parcel::Tickets(_) => unreachable!("a server sends connections"),
        }
    }

    fn adopt_connection(
        &self,
        socket: OwnedFd,
        mut note: ConnectionNote,
    ) -> Result<Arc<Connection>, NotAdopted> {
        let (thread, runtime, permit) = self.place();
        let _entered = runtime.enter();
        let wire = self.own(socket, note.tls.take())?;
        let judged = self.agrees_with(&wire);
        let trusted = self.trusted.contains(note.peer.into());
        let connection = self.registry.taken_over(thread, trusted, self.departures.clone(), &note);
        let stream = Box::new(ClientStream::new(wire, note.read_ahead, Arc::clone(&connection), permit));
        self.tasks.spawn(match judged {
            Ok(()) => Serve::new(stream, &self.http1s),
            Err(_) => Serve::to_close(stream, &self.http1s),
        });
        judged.map(|()| connection)
    }

    /// The wire of a connection that another process had. An error if this process has owned its TLS already: see
    /// [`Departures::own`].
    fn own(&self, client: OwnedFd, tls: Option<TlsNote>) -> io::Result<Wire> {
        if let (Some(departures), Some(_)) = (&self.departures, &tls) {
            departures.own(client.as_fd())?;
        }
        Wire::adopt(client, tls)
    }

    /// An error if the client of a connection of another process would be judged by another policy now.
    fn agrees_with(&self, wire: &Wire) -> Result<(), NotAdopted> {
        let agrees = |session: &Session| match &self.tls {
            Some(tls) => tls.agrees_with(session),
            None => !session.is_judged(),
        };
        match wire.session() {
            Some(session) if !agrees(session) => Err(NotAdopted::JudgedOtherwise),
            _ => Ok(()),
        }
    }

    fn adopt_tunnel(
        &self,
        client: OwnedFd,
        upstream: OwnedFd,
        mut note: TunnelNote,
    ) -> Result<Arc<Connection>, NotAdopted> {
        let (thread, runtime, permit) = self.place();
        let _entered = runtime.enter();
        let (client, upstream) = (self.own(client, note.tls.take())?, Socket::adopt(upstream)?);
        self.agrees_with(&client)?;
        let connection = self.registry.tunnel_taken_over(thread, self.departures.clone(), &note)?;
        let client = Box::new(ClientStream::new(client, Bytes::new(), Arc::clone(&connection), permit));
        self.tasks.spawn(tunnel::resume(client, upstream, note.up, note.down));
        Ok(connection)
    }

    /// The place of a connection that was open before: a thread, its runtime, and a permit if there is one. It comes even at
    /// the limit, for it was there before those that wait in the backlog.
    fn place(&self) -> (usize, Handle, Option<OwnedSemaphorePermit>) {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let thread = self.registry.totals().least_loaded();
        (thread, self.threads.runtime(thread), permit)
    }
}
