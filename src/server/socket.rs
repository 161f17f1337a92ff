//! A client's, or an upstream's, socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::connection::is_placeholder;
use super::peer::Peer;

/// An accepted socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Of a TCP listener.
    Tcp(TcpStream),
    /// Of a unix listener.
    Unix(UnixStream),
}

impl Socket {
    /// A socket that was accepted. Must run inside the runtime that it is to live on.
    pub(super) fn accepted(descriptor: OwnedFd, peer: Peer) -> io::Result<Self> {
        match peer {
            Peer::Tcp(_) => TcpStream::from_std(descriptor.into()).map(Self::Tcp),
            Peer::Unix => UnixStream::from_std(descriptor.into()).map(Self::Unix),
        }
    }

    /// A socket from a predecessor. Must run inside the runtime that it is to live on.
    pub(super) fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = socket2::Socket::from(descriptor);
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_unix() {
            UnixStream::from_std(OwnedFd::from(socket).into()).map(Self::Unix)
        } else {
            TcpStream::from_std(socket.into()).map(Self::Tcp)
        }
    }

    /// The bare descriptor, released from this process's runtime.
    pub(super) fn into_descriptor(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.into_std().map(Into::into),
            Self::Unix(socket) => socket.into_std().map(Into::into),
        }
    }

    /// True if a byte waits in the kernel. It asks the kernel, for the runtime does not know that yet of a new socket.
    pub(super) fn has_waiting_byte(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = match self {
            Self::Tcp(s) => rustix::net::recv(s, &mut [0; 1], flags),
            Self::Unix(s) => rustix::net::recv(s, &mut [0; 1], flags),
        };
        peeked.is_ok_and(|(_, n)| n > 0)
    }

    /// Ready when there is something to read: bytes, the end, or an error.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_read_ready(cx),
            Self::Unix(s) => s.poll_read_ready(cx),
        }
    }

    /// Tries a system call that writes to the socket, until the socket has room for it.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let result = match self {
                Self::Tcp(s) => {
                    ready!(s.poll_write_ready(cx))?;
                    s.try_io(Interest::WRITABLE, || Ok(send(s.as_fd())?))
                }
                Self::Unix(s) => {
                    ready!(s.poll_write_ready(cx))?;
                    s.try_io(Interest::WRITABLE, || Ok(send(s.as_fd())?))
                }
            };
            match result {
                Err(error) if is_of_the_moment(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

/// The most bytes that are copied so that they are written in one piece.
const SMALL: usize = 1 << 10;

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        debug_assert!(
            !bufs.iter().any(|buf| is_placeholder(buf)),
            "no socket is written what stands for a file"
        );
        // The head of a small answer and its body: the kernel takes one buffer with less work than two.
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= SMALL {
            let mut whole = [0; SMALL];
            let mut end = 0;
            for buf in bufs {
                whole[end..][..buf.len()].copy_from_slice(buf);
                end += buf.len();
            }
            return self.poll_write(cx, &whole[..end]);
        }
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has no buffer of its own to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// True for an error that a second try need not have.
fn is_of_the_moment(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
