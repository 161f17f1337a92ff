//! The mailbox: a socket pair whose queue holds connections while no process does.
//!
//! Both ends are kept in the service manager's descriptor store, so the queue outlives the process that filled it.
//! A message carries many parcels: their descriptors as `SCM_RIGHTS`, the bytes that go with them in a sealed memfd
//! that is the first of those descriptors, so that the queue's own limit in bytes is never what counts. They are
//! encrypted (`envelope`), and the key is in the message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use zeroize::Zeroizing;

use super::envelope::{Envelope, OVERHEAD};
use super::parcel::{self, MAX_MESSAGE, Parcel, Refusal};
use crate::systemd::memfd::{sealed, unsealed};

/// `SCM_MAX_FD` of Linux: the most descriptors that a message may carry, the memfd among them.
const DESCRIPTORS: usize = 253;
/// The beginning of a message; the number of its connections and the key of its memfd follow.
const MARK: &[u8] = b"parcels";

/// Both ends of the mailbox.
///
/// tokio knows no `SOCK_SEQPACKET`; as a datagram socket it watches one just as well.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// The end that this process puts parcels into.
    entrance: UnixDatagram,
    /// The end that it takes them out of.
    exit: UnixDatagram,
}

impl Mailbox {
    /// A new pair.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (entrance, exit) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // As much as `net.core.wmem_max` allows: each message counts with its bookkeeping.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&entrance, 8 << 20);
        Self::adopt(entrance, exit)
    }

    /// The pair that a predecessor made.
    pub(crate) fn adopt(entrance: OwnedFd, exit: OwnedFd) -> io::Result<Self> {
        for end in [&entrance, &exit] {
            if rustix::net::sockopt::socket_type(end)? != SocketType::SEQPACKET {
                return Err(io::Error::other("the mailbox is not a SOCK_SEQPACKET socket"));
            }
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Self {
            entrance: UnixDatagram::from_std(entrance.into())?,
            exit: UnixDatagram::from_std(exit.into())?,
        })
    }

    /// The end that parcels are put into.
    pub(crate) fn entrance(&self) -> BorrowedFd<'_> {
        self.entrance.as_fd()
    }

    /// The end that parcels are taken out of.
    pub(crate) fn exit(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }

    /// Puts parcels in, as many as fit, and leaves the rest. One that is too large to travel keeps back no other: of those that
    /// are left with [`io::ErrorKind::FileTooLarge`], each is.
    pub(crate) fn put(&self, parcels: &mut Vec<Parcel>) -> io::Result<()> {
        let (mut records, mut too_large) = (Vec::with_capacity(parcels.len()), Vec::new());
        for parcel in parcels.drain(..) {
            let mut record = Zeroizing::new(Vec::new());
            if parcel.write_to(&mut record) {
                records.push((parcel, record));
            } else {
                too_large.push(parcel);
            }
        }
        parcels.extend(too_large);
        while !records.is_empty() {
            let rest = records.split_off(fitting(&records));
            if let Err(error) = self.put_one(&records) {
                parcels.extend(records.into_iter().chain(rest).map(|(parcel, _)| parcel));
                return Err(error);
            }
            // The drop closes this process's descriptors; the queue holds its own.
            records = rest;
        }
        if parcels.is_empty() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large to travel"))
        }
    }

    /// Returns when there may be room again.
    pub(crate) async fn room(&self) -> io::Result<()> {
        self.entrance.writable().await
    }

    fn put_one(&self, records: &[Record]) -> io::Result<()> {
        let envelope = Envelope::new()?;
        let length: usize = records.iter().map(|(_, record)| record.len()).sum();
        // An error would leave secrets in it.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + OVERHEAD));
        for (_, record) in records {
            bytes.extend_from_slice(record);
        }
        envelope.close(&mut bytes)?;
        let memfd = sealed("steadfast-parcels", &bytes)?;
        let sockets = records.iter().flat_map(|(parcel, _)| parcel.descriptors());
        let descriptors: Vec<_> = std::iter::once(memfd.as_fd()).chain(sockets).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many descriptors in a message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let connections = records.iter().filter(|(parcel, _)| parcel.descriptors().next().is_some());
        let mark = mark(connections.count(), &envelope);
        call_when_ready(&self.entrance, Interest::WRITABLE, || {
            Ok(sendmsg(self.entrance(), &[IoSlice::new(&mark)], &mut control, flags)?)
        })?;
        Ok(())
    }

    /// Takes one message out; `None` if there is none.
    pub(crate) fn take(&self) -> io::Result<Option<Vec<Result<Parcel, Refusal>>>> {
        let mut mark = Zeroizing::new([0; 64]);
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = call_when_ready(&self.exit, Interest::READABLE, || {
            Ok(recvmsg(self.exit(), &mut [IoSliceMut::new(&mut mark[..])], &mut control, flags)?)
        });
        let received = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let mut descriptors = descriptors.by_ref().flatten();
        let memfd = descriptors.next();
        let descriptors: Vec<_> = descriptors.collect();
        let (connections, envelope) = mark.get(..received.bytes).map_or((None, None), marked);
        let bytes = memfd.and_then(|memfd| unsealed(memfd, MAX_MESSAGE + OVERHEAD).ok());
        let message = bytes.map(Zeroizing::new).ok_or(Refusal::Lost).and_then(|mut bytes| {
            let opened = envelope.and_then(|envelope| Some(envelope.open(&mut bytes).ok()?.len()));
            bytes.truncate(opened.ok_or(Refusal::Encrypted)?);
            Ok(bytes)
        });
        // A message that makes no sense is taken out all the same, or it would block the queue for ever. It costs each
        // of its connections, also those whose descriptors this process had no room for.
        let lost = connections.unwrap_or(descriptors.len().max(1));
        Ok(Some(match message {
            Ok(bytes) => parcel::read(&bytes, descriptors),
            Err(refusal) if lost == 0 => vec![Err(Refusal::NoConnection(Box::new(refusal)))],
            Err(refusal) => std::iter::repeat_with(|| Err(refusal.clone())).take(lost).collect(),
        }))
    }

    /// Returns when there may be something to take.
    pub(crate) async fn filled(&self) -> io::Result<()> {
        self.exit.readable().await
    }
}

/// A parcel, and its bytes in a message.
type Record = (Parcel, Zeroizing<Vec<u8>>);

/// A message's own bytes: the mark, the number of its connections, and the key.
fn mark(connections: usize, envelope: &Envelope) -> Zeroizing<Vec<u8>> {
    // At most as many as descriptors.
    let connections = u16::try_from(connections).unwrap_or(u16::MAX);
    Zeroizing::new([MARK, &connections.to_le_bytes(), envelope.key()].concat())
}

/// The number of connections that a message announces, and what its bytes can be read with; neither if it does not begin
/// with the mark. An earlier version's message has no key.
fn marked(mark: &[u8]) -> (Option<usize>, Option<Envelope>) {
    let Some((count, key)) = mark.strip_prefix(MARK).and_then(|rest| rest.split_first_chunk()) else {
        return (None, None);
    };
    let connections = usize::from(u16::from_le_bytes(*count)).min(DESCRIPTORS);
    (Some(connections), key.try_into().ok().map(Envelope::from_key))
}

/// Makes a system call that may find the socket not ready. A `WouldBlock` is returned from within `try_io`, so that
/// tokio clears the readiness that it had before the call: cleared afterwards, a change between the two would be lost,
/// and a waiter never woken. Only the first call is outside, because `try_io` makes none before tokio has seen the
/// socket ready once.
fn call_when_ready<T>(
    socket: &UnixDatagram,
    interest: Interest,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    match call() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.try_io(interest, call),
        outcome => outcome,
    }
}

/// The number of records from the first on that fit into one message. Any single record fits.
fn fitting(records: &[Record]) -> usize {
    let (mut descriptors, mut bytes) = (1, 0);
    let fits = |(parcel, record): &&Record| {
        descriptors += parcel.descriptors().count();
        bytes += record.len();
        descriptors <= DESCRIPTORS && bytes <= MAX_MESSAGE
    };
    records.iter().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    //! Parcels survive the queue, in order, in any number, and a stranger's message hurts nobody.

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::parcel::ConnectionNote;
    use super::*;
    use crate::alone::is_alone;

    fn parcel(n: u64) -> (Parcel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let note =
            ConnectionNote { peer: None, answered: n, idle_ms: 0, read_ahead: Bytes::new(), tls: None };
        (Parcel::Connection(ours.into(), note), theirs)
    }

    #[tokio::test]
    async fn parcels_come_out_in_order_with_their_own_sockets() {
        let mailbox = Mailbox::new().expect("a mailbox");
        let (mut parcels, mut peers): (Vec<_>, Vec<_>) = (0..600).map(parcel).unzip();
        mailbox.put(&mut parcels).expect("there is room");
        let mut taken = Vec::new();
        while let Some(parcels) = mailbox.take().expect("the mailbox works") {
            taken.extend(parcels);
        }
        assert_eq!(taken.len(), 600);
        for (n, (taken, peer)) in taken.into_iter().zip(&mut peers).enumerate() {
            let Ok(Parcel::Connection(socket, note)) = taken else { panic!("{taken:?}") };
            assert_eq!(note.answered, n as u64);
            let mut socket = UnixStream::from(socket);
            let mark = u8::try_from(n % 256).expect("a byte");
            socket.write_all(&[mark]).expect("its peer is there");
            let mut byte = [0];
            peer.read_exact(&mut byte).expect("its own peer hears it");
            assert_eq!(byte, [mark]);
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_comes_back() {
        let mailbox = Mailbox::new().expect("a mailbox");
        let mut put = 0_u64;
        let refused = loop {
            let (parcel, _) = parcel(put);
            let mut parcels = vec![parcel];
            match mailbox.put(&mut parcels) {
                Ok(()) => put += 1,
                Err(_) => break parcels,
            }
            assert!(put < 100_000, "the queue has an end");
        };
        assert_eq!(refused.len(), 1);
        let mut taken = 0;
        while let Some(parcels) = mailbox.take().expect("the mailbox works") {
            taken += parcels.len() as u64;
        }
        assert_eq!(taken, put);
    }

    #[tokio::test]
    async fn a_message_without_sense_is_taken_out_and_refused() {
        let mailbox = Mailbox::new().expect("a mailbox");
        rustix::net::send(mailbox.entrance(), b"nonsense", SendFlags::empty()).expect("sent");
        let (parcel, _peer) = parcel(7);
        mailbox.put(&mut vec![parcel]).expect("there is room");
        assert!(matches!(&mailbox.take().expect("works").expect("a message")[..], [Err(Refusal::Lost)]));
        assert!(matches!(&mailbox.take().expect("works").expect("a message")[..], [Ok(_)]));
        assert!(mailbox.take().expect("works").is_none());
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_decrypted_is_said_to_be_of_another_version_and_costs_its_connections() {
        let mailbox = Mailbox::new().expect("a mailbox");
        let other_key = Envelope::new().expect("random numbers");
        // An earlier version's has no key.
        for key in [&[][..], &other_key.key()[..]] {
            let memfd = sealed("parcels", b"in the clear").expect("memory");
            let descriptors = [memfd.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let mark = [MARK, &[3, 0], key].concat();
            sendmsg(mailbox.entrance(), &[IoSlice::new(&mark)], &mut control, SendFlags::empty())
                .expect("sent");
            let taken = mailbox.take().expect("works").expect("a message");
            assert!(matches!(&taken[..], [Err(Refusal::Encrypted), Err(_), Err(_)]), "{taken:?}");
        }
    }

    #[tokio::test]
    async fn a_parcel_that_is_too_large_stays_alone_and_the_others_travel() {
        let mailbox = Mailbox::new().expect("a mailbox");
        let (mut parcels, _peers): (Vec<_>, Vec<_>) = (0..5).map(parcel).unzip();
        if let Parcel::Connection(_, note) = &mut parcels[2] {
            note.read_ahead = vec![0; parcel::MAX_BODY + 1].into();
        }
        let error = mailbox.put(&mut parcels).expect_err("one is too large");
        let refused = parcels;
        let answered = |parcel: &Parcel| match parcel {
            Parcel::Connection(_, note) => note.answered,
            Parcel::Tunnel { .. } | Parcel::Counts(_) | Parcel::Tickets(_) => panic!("{parcel:?}"),
        };
        assert_eq!(refused.iter().map(answered).collect::<Vec<_>>(), [2]);
        assert!(error.to_string().contains("too large"), "{error}");
        let taken = mailbox.take().expect("works").expect("a message");
        let taken: Vec<_> = taken.iter().map(|p| answered(p.as_ref().expect("understood"))).collect();
        assert_eq!(taken, [0, 1, 3, 4]);
    }

    /// Takes a message out while the process may open no descriptor, so that the kernel drops all that it carries.
    #[test]
    fn a_message_whose_descriptors_were_dropped_counts_each_of_its_connections() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        // The limit is the process's own.
        if !is_alone(concat!(
            module_path!(),
            "::a_message_whose_descriptors_were_dropped_counts_each_of_its_connections"
        )) {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let mailbox = Mailbox::new().expect("a mailbox");
        let (mut parcels, _peers): (Vec<_>, Vec<_>) = (0..40).map(parcel).unzip();
        mailbox.put(&mut parcels).expect("there is room");
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).expect("less is allowed");
        let taken = mailbox.take();
        setrlimit(Resource::Nofile, limit).expect("as much as before");
        let taken = taken.expect("works").expect("a message");
        assert_eq!(taken.len(), 40);
        assert!(taken.iter().all(Result::is_err), "{taken:?}");
    }

    #[test]
    fn a_message_that_comes_while_the_mailbox_is_found_empty_wakes_its_reader() {
        const MESSAGES: u64 = 20_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mailbox = {
            let _inside = runtime.enter();
            Mailbox::new().expect("a mailbox")
        };
        std::thread::scope(|scope| {
            let (took, taken) = std::sync::mpsc::channel();
            let mailbox = &mailbox;
            scope.spawn(move || {
                for n in 0..MESSAGES {
                    let (parcel, _peer) = parcel(n);
                    mailbox.put(&mut vec![parcel]).expect("there is room");
                    // Each one is the only one, so none but its own wake-up can save it.
                    if taken.recv_timeout(Duration::from_secs(20)).is_err() {
                        return;
                    }
                }
            });
            let all = runtime.block_on(async {
                let take = async {
                    for n in 0..MESSAGES {
                        while mailbox.take().expect("works").is_none() {
                            if tokio::time::timeout(Duration::from_secs(10), mailbox.filled()).await.is_err()
                            {
                                return n;
                            }
                        }
                        let _ = took.send(());
                    }
                    MESSAGES
                };
                take.await
            });
            drop(took);
            assert_eq!(all, MESSAGES, "a wake-up was lost");
        });
    }
}
