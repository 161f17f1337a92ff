//! A client's socket, as hyper and the registry see it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::handover::parcel::{Flow, Parcel};
use crate::server::{Command, Connection, State};

/// An accepted socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Of a TCP listener.
    Tcp(TcpStream),
    /// Of a unix listener.
    Unix(UnixStream),
}

impl Socket {
    /// A socket from an earlier process. Must run inside the runtime.
    pub(super) fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = socket2::Socket::from(descriptor);
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_unix() {
            UnixStream::from_std(OwnedFd::from(socket).into()).map(Self::Unix)
        } else {
            TcpStream::from_std(socket.into()).map(Self::Tcp)
        }
    }

    /// The bare descriptor, of which this process's runtime knows nothing any more.
    pub(super) fn into_descriptor(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.into_std().map(Into::into),
            Self::Unix(socket) => socket.into_std().map(Into::into),
        }
    }

    /// Returns when there is something to read: bytes, the end, or an error.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.readable().await,
            Self::Unix(s) => s.readable().await,
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
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets hold nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A client's socket with its place in the registry: it tells what passes through, obeys an order to close at once, also in
/// the hands of whoever upgraded the connection, and when it is dropped the connection is closed.
#[derive(Debug)]
pub(super) struct ClientStream {
    socket: Socket,
    /// Bytes already read, which come before the socket's.
    read_ahead: Bytes,
    connection: Place,
}

/// A connection's place in the registry and among `max_connections`; it is given up when this is dropped.
#[derive(Debug)]
struct Place {
    connection: Arc<Connection>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Place {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.closed();
    }
}

impl ClientStream {
    pub(super) fn new(
        socket: Socket,
        read_ahead: Bytes,
        connection: Arc<Connection>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { socket, read_ahead, connection: Place { connection, _permit: permit } }
    }

    /// Leaves for the next process: an HTTP connection between two requests.
    pub(super) fn leave(self) {
        let Self { socket, read_ahead, connection } = self;
        match socket.into_descriptor() {
            Ok(socket) => connection.leave(Parcel::Connection(socket, connection.note(read_ahead))),
            Err(error) => tracing::warn!(peer = %connection.peer(), %error, "cannot take a connection apart"),
        }
    }

    /// Leaves for the next process: one end of a tunnel.
    pub(super) fn leave_as_tunnel(self, upstream: OwnedFd, mut up: Flow, down: Flow) {
        let Self { socket, read_ahead, connection } = self;
        if !read_ahead.is_empty() {
            up.unsent = [up.unsent, read_ahead].concat().into();
        }
        match (socket.into_descriptor(), connection.tunnel_note(up, down)) {
            (Ok(client), Some(note)) => connection.leave(Parcel::Tunnel { client, upstream, note }),
            (Ok(_), None) => tracing::warn!(peer = %connection.peer(), "a tunnel has no request"),
            (Err(error), _) => {
                tracing::warn!(peer = %connection.peer(), %error, "cannot take a tunnel apart");
            }
        }
    }

    /// Puts back what was read and not used.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.read_ahead.is_empty(), "a connection taken apart has read all of its read-ahead");
        // Even none would keep hyper's whole buffer.
        if !bytes.is_empty() {
            self.read_ahead = bytes;
        }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(super) fn has_read_ahead(&self) -> bool {
        !self.read_ahead.is_empty()
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    fn alive(&self) -> io::Result<()> {
        match self.connection.order() {
            Command::Drop | Command::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(()),
        }
    }

    fn is_upgraded(&self) -> bool {
        self.connection.state() == State::Upgraded
    }

    /// After a write was tried: accounts for it, or enlists the writer of an upgraded connection.
    fn wrote(&self, cx: &Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(n)) => self.connection.sent(n),
            Poll::Pending if self.is_upgraded() => {
                self.connection.written_by(cx.waker());
                self.alive()?;
            }
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        result
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_read_ahead() {
            let n = buf.remaining().min(this.read_ahead.len());
            buf.put_slice(&this.read_ahead[..n]);
            this.read_ahead.advance(n);
            this.connection.heard(n);
            return Poll::Ready(Ok(()));
        }
        this.alive()?;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.socket).poll_read(cx, buf);
        if result.is_pending() {
            if this.is_upgraded() {
                this.connection.read_by(cx.waker());
                // An order given before the waker was there would wake nobody.
                this.alive()?;
            }
        } else if buf.filled().len() > before {
            this.connection.heard(buf.filled().len() - before);
        }
        result
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.alive()?;
        let result = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.alive()?;
        let result = Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.connection.flushed();
        Poll::Ready(Ok(()))
    }

    /// Closes the sending half. Where the client may still be sending what nobody will read, a plain close would
    /// reset the connection and take the answer with it, so what comes is read and thrown away until the client
    /// closes or the sweep finds that it took too long (RFC 9112, section 9.6).
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connection.state() != State::Closing {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            if !this.connection.has_unread() {
                return Poll::Ready(Ok(()));
            }
            this.connection.closing();
        }
        let mut waste = [0; 4096];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut waste))?;
            if waste.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
