//! A socket behind TLS.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::note::TlsNote;
use super::records::{Closed, MAX_READ, Records};
use super::session::Session;

thread_local! {
    /// Where records are read to and opened. No connection has a buffer of its own for that, so an idle one has none.
    static INCOMING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Where records are sealed. What the socket does not take at once waits in a buffer of the connection's own.
    static OUTGOING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `read` with the thread's buffer for what comes from sockets.
pub(super) fn with_incoming<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = INCOMING.take();
    buffer.resize(MAX_READ, 0);
    let result = read(&mut buffer);
    INCOMING.set(buffer);
    result
}

/// A client's socket behind TLS.
pub(crate) struct TlsStream<S> {
    io: S,
    records: Box<Records>,
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("io", &self.io)
            .field("session", self.session())
            .finish_non_exhaustive()
    }
}

impl<S> TlsStream<S> {
    /// What a handshake over this socket has resulted in, or what another process has left off.
    pub(crate) fn new(io: S, records: Records) -> Self {
        Self { io, records: Box::new(records) }
    }

    /// The socket. What is read from it or written to it past the records breaks the connection.
    pub(crate) fn io(&self) -> &S {
        &self.io
    }

    /// What the handshake has agreed on.
    pub(crate) fn session(&self) -> &Arc<Session> {
        self.records.session()
    }

    /// Gives back all memory that can be made again: the keys, and the buffers' spare room.
    pub(crate) fn park(&mut self) {
        self.records.park();
    }

    /// True if something is here for whoever reads next: no event of the socket will tell.
    pub(crate) fn has_read_ahead(&self) -> bool {
        self.records.has_read_ahead()
    }

    /// True if a record has come in part.
    pub(crate) fn has_part_of_record(&self) -> bool {
        self.records.held() > 0 && !self.records.has_record()
    }

    /// True if the socket has not taken all that was sealed.
    #[cfg(test)]
    pub(crate) fn has_unsent(&self) -> bool {
        self.records.has_unsent()
    }

    /// The number of bytes of plaintext that the socket has taken since this was last asked.
    pub(crate) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.records.sent_plain)
    }

    /// True if there is something to continue in another process: neither side has closed. A tunnel goes on although the
    /// client has said goodbye: without [its end](Self::take_end).
    pub(crate) fn may_travel(&self, is_tunnel: bool) -> bool {
        self.records.may_travel(is_tunnel)
    }

    /// Takes out the end of what the client says, if it has said goodbye. Nobody may read on, here or in another process.
    pub(crate) fn take_end(&mut self) -> Option<Vec<u8>> {
        self.records.take_end()
    }

    /// The bytes of heap that it holds.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.records.footprint()
    }

    /// The socket, and all that another process must know to continue. It consumes the connection: of two owners each would
    /// seal with the same numbers.
    ///
    /// # Errors
    ///
    /// The socket alone if a side has closed: there is nothing to continue.
    pub(crate) fn into_note(mut self) -> Result<(S, TlsNote), S> {
        match self.records.take_note() {
            Some(note) => Ok((self.io, note)),
            None => Err(self.io),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Reads records from the socket, until there is something for whoever reads next: plaintext, the end, or an error.
    /// KeyUpdates and halves of records are no reason to wake anybody.
    pub(crate) fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.records.has_plain() && self.records.closed().is_none() {
            ready!(self.poll_fill(cx, &mut ReadBuf::new(&mut [])));
        }
        Poll::Ready(())
    }

    /// The records that are here already, or those of one read from the socket.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<()> {
        self.send_as_reader(cx);
        let records = &mut *self.records;
        let is_writing = records.has_unsent();
        if records.has_record() {
            records.take_held(out);
        } else {
            ready!(with_incoming(|buffer| {
                let held = records.held();
                let mut fresh = ReadBuf::new(&mut buffer[held..]);
                match ready!(Pin::new(&mut self.io).poll_read(cx, &mut fresh)) {
                    Err(error) => records.close(Closed::Failed(error.kind())),
                    Ok(()) if fresh.filled().is_empty() => records.close(Closed::Truncated),
                    Ok(()) => {
                        let end = held + fresh.filled().len();
                        records.take(&mut buffer[..end], out);
                    }
                }
                Poll::Ready(())
            }));
        }
        if self.records.has_unsent() && !is_writing {
            self.records.reader_sends = true;
            self.send_as_reader(cx);
        }
        Poll::Ready(())
    }

    /// Sends what has been sealed, for whoever reads, if nobody is known to write: an alert that the records have called for, or
    /// what another process has left. To wait for the socket in the place of who writes would leave that one asleep. An error
    /// is for whoever writes next.
    fn send_as_reader(&mut self, cx: &mut Context<'_>) {
        if self.records.reader_sends && self.poll_send(cx).is_ready() {
            self.records.reader_sends = false;
        }
    }

    /// Sends what has been sealed, for whoever writes.
    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.reader_sends = false;
        self.poll_send(cx)
    }

    /// Sends what has been sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let records = &mut *self.records;
        while records.has_unsent() {
            let left = &records.unsent[records.unsent_sent..];
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, left))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            // As much of the plaintext as of the records, so that a slow client is seen to read.
            let plain = records.unsent_plain * n / left.len();
            records.unsent_plain -= plain;
            records.sent_plain += plain;
            records.unsent_sent += n;
        }
        records.unsent.clear();
        records.unsent_sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Seals in the thread's buffer, and sends what the socket takes.
    fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        seal: impl FnOnce(&mut Records) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_sealed(cx))?;
        self.records.unsent = OUTGOING.take();
        let sealed = seal(&mut self.records);
        self.records.unsent_plain += sealed.as_ref().copied().unwrap_or(0);
        let sent = self.poll_send(cx);
        let records = &mut *self.records;
        let left = records.unsent[records.unsent_sent..].to_vec();
        let mut buffer = std::mem::replace(&mut records.unsent, left);
        records.unsent_sent = 0;
        buffer.clear();
        OUTGOING.set(buffer);
        match sent {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(sealed),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if this.records.give_plain(buf) {
                return Poll::Ready(Ok(()));
            }
            match this.records.closed() {
                None => {}
                Some(Closed::Notified) => return Poll::Ready(Ok(())),
                Some(Closed::Truncated) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Some(Closed::Failed(kind)) => return Poll::Ready(Err(kind.into())),
                Some(closed @ (Closed::Alert(_) | Closed::Fault(_))) => {
                    // The alert, if the socket takes it: nobody waits for it.
                    this.send_as_reader(cx);
                    let error = io::Error::new(io::ErrorKind::InvalidData, closed.to_string());
                    return Poll::Ready(Err(error));
                }
            }
            ready!(this.poll_fill(cx, buf));
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seal(cx, |records| records.seal_data(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready when all that has been sealed is in the socket.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_sealed(cx))?;
        // What waited for the socket leaves no buffer behind.
        this.records.unsent = Vec::new();
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.say_goodbye();
        ready!(this.poll_write_sealed(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
