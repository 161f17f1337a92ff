//! A client's connection, as hyper and the registry see it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{Afterwards, Command, Connection, PREFACE, State, Waiter, is_placeholder};
use super::read_ahead::ReadAhead;
use super::socket::Socket;
use super::wire::Wire;
use crate::event;
use crate::handover::NotCarried;
use crate::handover::parcel::{Flow, Parcel};
use crate::tls::{Records, Session, TlsStream};

/// The number of no request.
const NONE: u64 = u64::MAX;

/// A client's socket with its place in the registry: it tells the connection of what passes through, and obeys a command
/// to close at once, also in the hands of whoever upgraded the connection, as far as these read or write. When it is
/// dropped the connection is closed.
///
/// It goes from hand to hand in a box: a future holds room for each hand that it passes through.
#[derive(Debug)]
pub(super) struct ClientStream {
    wire: Wire,
    read_ahead: ReadAhead,
    /// The status of an answer that hyper would have given by itself.
    refused: Option<StatusCode>,
    /// True if the client was seen to finish sending, or to be gone, while its request was being answered.
    ended: bool,
    /// The number of the request whose handler had another moment after the end of what the client sends; [`NONE`] at first.
    last_chance: u64,
    /// True if the file that an answer is made of could not be sent to its end.
    lost_file: bool,
    /// True if hyper has answered the only request that it was given.
    hyper_rests: bool,
    registration: Registration,
}

/// A connection's entry in the registry, and its permit; both are given up when this is dropped.
#[derive(Debug)]
struct Registration {
    connection: Arc<Connection>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connection.closed();
    }
}

impl ClientStream {
    pub(super) fn new(
        wire: Wire,
        read_ahead: Bytes,
        connection: Arc<Connection>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        if let Some(session) = wire.session() {
            connection.secured(session);
        }
        Self::of(wire, ReadAhead::new(read_ahead), Registration { connection, _permit: permit })
    }

    fn of(wire: Wire, read_ahead: ReadAhead, registration: Registration) -> Self {
        Self {
            wire,
            read_ahead,
            refused: None,
            ended: false,
            last_chance: NONE,
            lost_file: false,
            hyper_rests: false,
            registration,
        }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.registration.connection
    }

    /// True if nothing of the connection is left with hyper, which has done its work or had nothing to do.
    pub(super) fn leaves_nothing(&mut self) -> bool {
        let leaves_nothing = std::mem::take(&mut self.hyper_rests) || self.read_ahead.is_untouched();
        if leaves_nothing {
            self.read_ahead.take_back(Bytes::new());
        }
        leaves_nothing
    }

    /// Puts back what hyper has read and not used.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.read_ahead.take_back(bytes);
    }

    /// True if the first byte of a request is there and unread.
    pub(super) fn has_waiting_byte(&self) -> bool {
        self.has_read_ahead() || self.wire.has_waiting_byte()
    }

    /// True if a part of a record of TLS is there: it may be the beginning of a request.
    pub(super) fn has_part_of_record(&self) -> bool {
        self.wire.has_part_of_record()
    }

    pub(super) fn has_read_ahead(&self) -> bool {
        !self.read_ahead.left().is_empty()
    }

    /// Forgets what was read and belongs to no request that will be answered.
    pub(super) fn forget_read_ahead(&mut self) {
        self.read_ahead = ReadAhead::default();
    }

    /// The status of an answer that hyper would have given by itself.
    pub(super) fn refused(&self) -> Option<StatusCode> {
        self.refused
    }

    /// True if the file that an answer is made of could not be sent to its end.
    pub(super) fn has_lost_file(&self) -> bool {
        self.lost_file
    }

    /// The rest of the answer will not come.
    pub(super) fn broken_off(&self) {
        self.connection().broken_off(self.ended);
    }

    /// Ready with true once the client has said that it speaks HTTP/2 (RFC 9113, section 3.3), and with false once it cannot
    /// say so any more. What it has said is put back.
    pub(super) fn poll_speaks_http2(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let said = self.read_ahead.left();
            let length = said.len().min(PREFACE.len());
            if said[..length] != PREFACE[..length] {
                return Poll::Ready(false);
            }
            if length == PREFACE.len() {
                return Poll::Ready(true);
            }
            let mut more = [0; PREFACE.len()];
            let mut more = ReadBuf::new(&mut more[length..]);
            let read = ready!(Pin::new(&mut self.wire).poll_read(cx, &mut more));
            if read.is_err() || more.filled().is_empty() {
                // Whoever reads next finds the same.
                return Poll::Ready(false);
            }
            let both = [said, more.filled()].concat();
            self.connection().progress().add_received(more.filled().len());
            self.read_ahead = ReadAhead::new(both.into());
        }
    }

    /// Ready when there is something to read from the client. Until then it holds no memory that can be made again.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.wire.poll_readable(cx);
        if polled.is_pending() {
            self.wire.rest();
        }
        polled
    }

    // ---- TLS ----

    /// What the handshake has agreed on; none without TLS.
    pub(super) fn session(&self) -> Option<&Arc<Session>> {
        self.wire.session()
    }

    /// The bare socket, for the handshake; none after it.
    pub(super) fn socket(&mut self) -> Option<&mut Socket> {
        match &mut self.wire {
            Wire::Plain(socket) => Some(socket),
            Wire::Tls(_) => None,
        }
    }

    /// The same, after its handshake.
    pub(super) fn secured(self, records: Records) -> Self {
        let Self { wire, registration, .. } = self;
        let wire = match wire {
            Wire::Plain(socket) => Wire::Tls(TlsStream::new(socket, records)),
            Wire::Tls(_) => unreachable!("a connection has one handshake"),
        };
        if let Some(session) = wire.session() {
            registration.connection.secured(session);
        }
        Self::of(wire, ReadAhead::default(), registration)
    }

    // ---- to the successor ----

    /// True if it may leave, as what it is now. If a tunnel may not, that is counted once.
    pub(super) fn may_leave(&self) -> bool {
        let (connection, is_tunnel) = (self.connection(), self.is_tunnel());
        if !connection.may_leave() {
            return false;
        }
        let may_travel = self.wire.may_travel(is_tunnel);
        // Between two requests it is about to be closed.
        if !may_travel && is_tunnel {
            connection.stays(NotCarried::TlsEnded);
        }
        may_travel
    }

    /// Leaves for the next process: an HTTP connection between two requests.
    pub(super) fn leave(self) {
        let Self { wire, read_ahead, registration, .. } = self;
        let connection = &registration.connection;
        match wire.into_parts() {
            Ok((socket, tls)) => {
                let note = connection.note(read_ahead.into_bytes(), tls);
                connection.leave(Parcel::Connection(socket, note));
            }
            Err(error) => {
                tracing::warn!(
                    message_id = event::NOT_CARRIED,
                    peer = %connection.peer(),
                    %error,
                    "cannot take a connection apart"
                );
            }
        }
    }

    /// Leaves for the next process: one end of a tunnel.
    pub(super) fn leave_as_tunnel(self, upstream: OwnedFd, mut up: Flow, down: Flow) {
        let Self { mut wire, read_ahead, registration, .. } = self;
        let connection = &registration.connection;
        if !read_ahead.left().is_empty() {
            up.unsent = [&up.unsent, read_ahead.left()].concat().into();
        }
        if let Some(last) = wire.take_end() {
            up = Flow { unsent: [&*up.unsent, &last].concat().into(), ended: true };
        }
        let parts = wire.into_parts().and_then(|(client, tls)| {
            let note = connection.tunnel_note(up, down, tls);
            Ok((client, note.ok_or_else(|| io::Error::other("it has no request"))?))
        });
        match parts {
            Ok((client, note)) => connection.leave(Parcel::Tunnel { client, upstream, note }),
            Err(error) => {
                tracing::warn!(
                    message_id = event::NOT_CARRIED,
                    peer = %connection.peer(),
                    %error,
                    "cannot take a tunnel apart"
                );
            }
        }
    }

    // ---- in and out ----

    /// An error if the connection is to be closed at once.
    pub(super) fn obey(command: Command) -> io::Result<()> {
        if command >= Command::Drop { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn is_tunnel(&self) -> bool {
        self.connection().state() == State::Tunnel
    }

    /// True if hyper is not to see yet that the client has finished sending: it would drop the request. As far as TCP
    /// tells, the client may have gone away. But it may as well read on, so it gets what waits for nobody else, and what
    /// its handler can answer at once. If it is gone, writing fails.
    fn conceals_the_end(&mut self, cx: &Context<'_>) -> bool {
        if self.connection().waits_for_nobody() {
            return true;
        }
        let request = self.connection().answered();
        let has_chance = self.last_chance != request;
        if has_chance {
            self.last_chance = request;
            cx.waker().wake_by_ref();
        }
        has_chance
    }

    /// True if hyper answers by itself what is no request. That answer is swallowed, as it has neither `Connection:
    /// close` nor a `Date`; its status is noted for one that does.
    fn swallows(&mut self, bytes: &[u8]) -> bool {
        let answers_nobody = matches!(
            self.connection().state(),
            State::Parked | State::Reading | State::Discarding | State::Closing
        );
        if answers_nobody && self.refused.is_none() {
            // "HTTP/1.1 400 Bad Request"
            let status = bytes.get(9..12).and_then(|status| StatusCode::from_bytes(status).ok());
            self.refused = Some(status.unwrap_or(StatusCode::BAD_REQUEST));
        }
        answers_nobody
    }

    /// Writes interim answers, which come before whatever hyper writes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.connection().take_interim();
        while !interim.is_empty() {
            let result = Pin::new(&mut self.wire).poll_write(cx, &interim);
            match self.wrote(cx, result)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(n) => drop(interim.drain(..n)),
                Poll::Pending => {
                    self.connection().return_interim(interim);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes these, of which the one at `place` is the first that stands for a part of a file: those before it, or if
    /// there are none, what it stands for.
    fn poll_write_file(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
        place: usize,
    ) -> Poll<io::Result<usize>> {
        let Wire::Plain(socket) = &self.wire else {
            return Poll::Ready(Err(io::Error::other("no file goes from the page cache into TLS")));
        };
        if place > 0 {
            // More follows at once: the kernel sends the head and the beginning of the file together.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            return socket.poll_send(cx, |socket| {
                sendmsg(socket, &bufs[..place], &mut SendAncillaryBuffer::default(), flags)
            });
        }
        let Some(file) = self.connection().file() else {
            return Poll::Ready(Err(io::Error::other("the file that an answer is made of is not there")));
        };
        let sent = ready!(file.poll_send(cx, socket, bufs[0].len()));
        self.lost_file |= sent.as_ref().is_err_and(is_of_file);
        Poll::Ready(sent)
    }

    /// All that was written is in the socket. With TLS the last of it may have been none of the client's bytes.
    fn all_sent(&self) {
        if self.wire.session().is_some() {
            self.connection().progress().set_blocked(false);
        }
    }

    /// Accounts for a write that was tried. The writer of a tunnel is woken by commands, too.
    fn wrote(&mut self, cx: &Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let accepted = if let Poll::Ready(Ok(n)) = result { n } else { 0 };
        let sent = self.wire.sent(accepted);
        let connection = self.connection();
        if sent > 0 {
            connection.progress().add_sent(sent);
        }
        if result.is_pending() {
            connection.progress().write_blocked();
            if self.is_tunnel() {
                Self::obey(connection.commands().poll(Waiter::Writer, cx))?;
            }
        }
        result
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper's work is done; it is about to be taken off the connection.
        if this.connection().state() == State::Parked {
            return Poll::Pending;
        }
        if this.has_read_ahead() {
            this.read_ahead.give(buf);
            return Poll::Ready(Ok(()));
        }
        Self::obey(this.connection().commands().strongest())?;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.wire).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            this.read_ahead.pass(&buf.filled()[before..]);
            this.connection().progress().add_received(n);
        } else if result.is_pending() && this.is_tunnel() {
            Self::obey(this.connection().commands().poll(Waiter::Reader, cx))?;
        } else if result.is_ready() && buf.remaining() > 0 && this.is_tunnel() {
            this.connection().progress().finish();
        } else if result.is_ready() && matches!(this.connection().state(), State::Answering | State::Flushing)
        {
            this.ended = true;
            if matches!(result, Poll::Ready(Ok(()))) && this.conceals_the_end(cx) {
                return Poll::Pending;
            }
        }
        result
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.swallows(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Self::obey(this.connection().commands().strongest())?;
        ready!(this.poll_interim(cx))?;
        let result = if is_placeholder(buf) {
            this.poll_write_file(cx, &[io::IoSlice::new(buf)], 0)
        } else {
            Pin::new(&mut this.wire).poll_write(cx, buf)
        };
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.swallows(bufs.first().map_or(&[], |buf| buf)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Self::obey(this.connection().commands().strongest())?;
        ready!(this.poll_interim(cx))?;
        let result = match bufs.iter().position(|buf| is_placeholder(buf)) {
            Some(place) => this.poll_write_file(cx, bufs, place),
            None => Pin::new(&mut this.wire).poll_write_vectored(cx, bufs),
        };
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// After the flush of an answer hyper is told to wait, so that it does not read the next request, unless it cannot:
    /// its work is done, and the task that polls it takes it off the connection.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_interim(cx))?;
        // TLS may have sealed more than the socket has taken.
        let flushed = Pin::new(&mut this.wire).poll_flush(cx);
        ready!(this.wrote(cx, flushed.map_ok(|()| 0)))?;
        this.all_sent();
        if this.ended && this.connection().state() == State::Flushing {
            // The end was concealed until here, and what comes now may wait for the client again.
            cx.waker().wake_by_ref();
        }
        match this.connection().flushed() {
            None | Some(Afterwards::Decides) => {}
            Some(Afterwards::Rests) if this.read_ahead.one_head => this.hyper_rests = true,
            Some(Afterwards::Rests | Afterwards::Apart) => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the sending half of a tunnel. An HTTP connection is closed by its task, not by hyper.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_tunnel() {
            return Poll::Ready(Ok(()));
        }
        // TLS may have sealed more than the socket has taken: the client is waited for, here too.
        let ended = Pin::new(&mut this.wire).poll_shutdown(cx);
        ready!(this.wrote(cx, ended.map_ok(|()| 0)))?;
        this.all_sent();
        Poll::Ready(Ok(()))
    }
}

/// True if it was not the socket that `sendfile` failed for: the file has become too short, or cannot be read.
fn is_of_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || Errno::from_io_error(error) == Some(Errno::IO)
}

/// The way of its bytes, for the task that closes the connection.
impl ClientStream {
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }
}
