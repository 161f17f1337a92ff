//! The way of a client's bytes: its socket, bare or with TLS on it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Socket;
use crate::tls::{Records, Session, TlsNote, TlsStream};

/// A client's socket, with what is on it.
#[derive(Debug)]
pub(super) enum Wire {
    /// Nothing.
    Plain(Socket),
    /// TLS, after its handshake.
    Tls(TlsStream<Socket>),
}

impl Wire {
    /// The socket of a connection that an earlier process had, with the state of its TLS.
    pub(super) fn adopt(descriptor: OwnedFd, tls: Option<TlsNote>) -> io::Result<Self> {
        let socket = Socket::adopt(descriptor)?;
        Ok(match tls {
            None => Self::Plain(socket),
            Some(note) => {
                let records = Records::from_note(note).map_err(io::Error::other)?;
                Self::Tls(TlsStream::new(socket, records))
            }
        })
    }

    /// The bare descriptor and the state of its TLS, which are used up: a second owner would use a nonce twice.
    pub(super) fn into_parts(self) -> io::Result<(OwnedFd, Option<TlsNote>)> {
        match self {
            Self::Plain(socket) => Ok((socket.into_descriptor()?, None)),
            Self::Tls(stream) => {
                let closed = |_| io::Error::other("its TLS has ended");
                let (socket, note) = stream.into_note().map_err(closed)?;
                Ok((socket.into_descriptor()?, Some(note)))
            }
        }
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.io(),
        }
    }

    /// What the handshake has agreed on; none without TLS.
    pub(super) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => Some(stream.session()),
        }
    }

    /// True if it can leave for another process: a side that has ended its TLS has nothing to go on with, but for the client
    /// of a tunnel, which may read on.
    pub(super) fn may_travel(&self, is_tunnel: bool) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => stream.may_travel(is_tunnel),
        }
    }

    /// Takes out the end of what the client says, if it has ended its TLS: nobody reads on.
    pub(super) fn take_end(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.take_end(),
        }
    }

    /// True if a byte waits to be read: of the client's, or of TLS.
    pub(super) fn has_waiting_byte(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_read_ahead()) || self.socket().has_waiting_byte()
    }

    /// True if a record of TLS has come in part.
    pub(super) fn has_part_of_record(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_part_of_record())
    }

    /// Ready when there is something to read: bytes, the end, or an error. What is TLS's own is read here.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(socket) => socket.poll_readable(cx).map(drop),
            Self::Tls(stream) => stream.poll_filled(cx),
        }
    }

    /// Lets go of all memory that can be made again.
    pub(super) fn rest(&mut self) {
        if let Self::Tls(stream) = self {
            stream.park();
        }
    }

    /// The number of a client's bytes that the socket has taken since this was last asked: of `accepted`, those that were
    /// written just now, and with TLS of earlier ones.
    pub(super) fn sent(&mut self, accepted: usize) -> usize {
        match self {
            Self::Plain(_) => accepted,
            Self::Tls(stream) => stream.take_sent(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
