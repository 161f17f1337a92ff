//! The channel between the main process and a worker: a socket pair on which both send datagrams as those of
//! `sd_notify(3)`, assignments one per line, with descriptors where a message has some.
//!
//! A worker says to the main process what it would say to systemd, and a little more; see [`key`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// The most descriptors of a message: systemd's own limit for one `FDSTORE=1` (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;
/// The longest message, in bytes: a diagnostic of a whole config fits. Of a longer one the rest is lost.
pub(crate) const LONGEST: usize = 64 << 10;

/// The assignments that `sd_notify(3)` does not have.
pub(crate) mod key {
    /// From a worker: everything is bound and ready, it can serve; from now on it waits for [`GO`].
    pub(crate) const BOUND: &str = "X_STEADFAST_BOUND";
    /// From a worker: the reason why it cannot serve, on one line.
    pub(crate) const FAILED: &str = "X_STEADFAST_FAILED";
    /// From a worker: it was asked for a reload; the value is the number by which the answer is known.
    pub(crate) const RELOAD: &str = "X_STEADFAST_RELOAD";
    /// In the place of that number: nobody waits for the answer. In an answer, [`REFUSED`]: it is told whoever asked.
    pub(crate) const NOBODY: &str = "0";
    /// From a worker: it was told that the coming stop is for good.
    pub(crate) const LAST: &str = "X_STEADFAST_LAST";
    /// From a worker: it stops by itself, for good, and the service with it.
    pub(crate) const STOPS: &str = "X_STEADFAST_STOPS";
    /// From a worker: the part of its config that concerns the main process.
    pub(crate) const SETTINGS: &str = "X_STEADFAST_SETTINGS";

    /// From a worker: it wants to run its singletons ([`WANTED`]), or runs none any more ([`RELEASED`]).
    pub(crate) const SINGLETONS: &str = "X_STEADFAST_SINGLETONS";
    pub(crate) const WANTED: &str = "wanted";
    pub(crate) const RELEASED: &str = "released";

    /// To a worker: no other runs singletons, so it may.
    pub(crate) const ALONE: &str = "X_STEADFAST_ALONE";
    /// To a worker: serve.
    pub(crate) const GO: &str = "X_STEADFAST_GO";
    /// To a worker, with [`GO`]: there is a predecessor that is going to tell it what was counted, or has just done so.
    pub(crate) const SUCCEEDS: &str = "X_STEADFAST_SUCCEEDS";
    /// To a worker: hand over what can be carried, finish the rest; the value says when, [`BESIDE`] or [`LEFT`].
    pub(crate) const HAND_OVER: &str = "X_STEADFAST_HAND_OVER";
    /// When to hand over: now, for its successor serves.
    pub(crate) const BESIDE: &str = "beside";
    /// When to hand over: once another main process says so, for this one leaves.
    pub(crate) const LEFT: &str = "left";
    /// From a worker that hands over: it accepts no client any more.
    pub(crate) const RETIRED: &str = "X_STEADFAST_RETIRED";
    /// To a worker: nothing is left for a next process; the value is [`LAST_PROCESS`] or [`NO_STORE`].
    pub(crate) const NOBODY_FOLLOWS: &str = "X_STEADFAST_NOBODY_FOLLOWS";
    /// The reason of [`NOBODY_FOLLOWS`]: there is no next process.
    pub(crate) const LAST_PROCESS: &str = "last";
    /// The reason of [`NOBODY_FOLLOWS`]: systemd has no store, so that nothing would reach a next process.
    pub(crate) const NO_STORE: &str = "no-store";
    /// To a worker: stop; the value is what asked for it.
    pub(crate) const STOP: &str = "X_STEADFAST_STOP";
    /// To a worker: cut what is in flight.
    pub(crate) const CUT: &str = "X_STEADFAST_CUT";
    /// Its values, as the log names the reason: a person's wish, or more predecessors than are allowed.
    pub(crate) const SECOND_SIGNAL: &str = "the second signal";
    pub(crate) const TOO_MANY: &str = "`handover.predecessors`";
    /// To a worker: the reload of this number has succeeded; [`TEXT`] is the new worker's process.
    pub(crate) const RELOADED: &str = "X_STEADFAST_RELOADED";
    /// To a worker: the reload of this number has changed nothing; [`TEXT`] says why.
    pub(crate) const REFUSED: &str = "X_STEADFAST_REFUSED";
    /// From a worker, beside its STATUS: how far its drain is, as JSON.
    pub(crate) const DRAIN: &str = "X_STEADFAST_DRAIN";
    /// To a worker: the predecessors that still finish, as JSON.
    pub(crate) const PREDECESSORS: &str = "X_STEADFAST_PREDECESSORS";
    /// To a worker, beside [`PREDECESSORS`]: the number of workers that were started in the place of others that failed.
    pub(crate) const RESTARTED: &str = "X_STEADFAST_RESTARTED";
    /// The text that goes with [`RELOADED`] and [`REFUSED`], as a JSON string: it may have line breaks.
    pub(crate) const TEXT: &str = "X_STEADFAST_TEXT";
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel(UnixDatagram);

/// A datagram that came.
#[derive(Debug, Default)]
pub(crate) struct Message {
    text: String,
    /// What came with it.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The value that a key is assigned, if it is.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// True if a key is assigned.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }
}

impl Channel {
    /// Both ends: one for this process, and one for another, as a descriptor.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::adopt(ours)?, theirs))
    }

    /// An end that was passed to this process. Needs a runtime.
    pub(crate) fn adopt(end: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_type(&end)? != SocketType::SEQPACKET {
            return Err(io::Error::other("the channel is not a SOCK_SEQPACKET socket"));
        }
        rustix::io::ioctl_fionbio(&end, true)?;
        // tokio knows no `SOCK_SEQPACKET`; as a datagram socket it watches one just as well.
        Ok(Self(UnixDatagram::from_std(end.into())?))
    }

    /// Sends a message. Never waits: an end that takes nothing out gets an error, not this process's time.
    pub(crate) fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.0.as_fd(), text, descriptors)
    }

    /// Returns the next message; `None` once the other end is closed. Can be dropped at any point.
    pub(crate) async fn receive(&self) -> io::Result<Option<Message>> {
        loop {
            match self.0.try_io(Interest::READABLE, || receive(self.0.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.readable().await?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                outcome => return outcome,
            }
        }
    }

    /// Returns a message that is there already.
    pub(crate) fn receive_now(&self) -> Option<Message> {
        receive(self.0.as_fd()).ok().flatten()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends one datagram on a channel's descriptor.
pub(crate) fn send(end: BorrowedFd<'_>, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors in a message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(end, &[IoSlice::new(text.as_bytes())], &mut control, flags)?;
    Ok(())
}

fn receive(end: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(end, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let descriptors: Vec<_> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    Ok(Some(Message { text, descriptors }))
}

#[cfg(test)]
mod tests {
    //! Messages arrive whole and in order, with their descriptors, and the end is seen.

    use super::*;

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = Channel::pair().expect("a pair");
        let theirs = Channel::adopt(theirs).expect("the same kind");
        ours.send("FDSTORE=1\nFDNAME=listen", &[ours.as_fd(), theirs.as_fd()]).expect("sent");
        let message = theirs.receive().await.expect("no error").expect("a message");
        assert_eq!(message.value("FDNAME"), Some("listen"));
        assert!(message.has("FDSTORE") && !message.has("FD"));
        assert_eq!(message.descriptors.len(), 2);
    }

    #[tokio::test]
    async fn the_end_of_the_other_process_is_seen_after_its_last_message() {
        let (ours, theirs) = Channel::pair().expect("a pair");
        send(theirs.as_fd(), "READY=1", &[]).expect("sent");
        drop(theirs);
        assert!(ours.receive().await.expect("no error").expect("a message").has("READY"));
        assert!(ours.receive().await.expect("no error").is_none());
    }
}
