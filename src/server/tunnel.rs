//! A connection that has become another protocol: bytes, both ways, until both ends have closed.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::http1::Seat;
use super::connection::{Command, Waiter};
use super::socket::Socket;
use super::stream::ClientStream;
use crate::event;
use crate::handover::parcel::Flow;

/// The most that is read at once, in bytes, and the most that a direction ever holds.
const CHUNK: usize = 16 << 10;

/// Two connected ends. The whole state of a tunnel is in here: between two polls it can leave for another process.
#[derive(Debug)]
pub(super) struct Tunnel<C, U> {
    client: C,
    upstream: U,
    up: Direction,
    down: Direction,
}

/// One of the two directions.
#[derive(Debug, Default)]
struct Direction {
    /// Read and not yet written. Empty, and without memory of its own, unless the reader is slow.
    unsent: BytesMut,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Stage {
    #[default]
    Open,
    /// The source has ended; the sink has yet to be told.
    Ending,
    /// The sink was told. The other direction may go on.
    Ended,
}

/// Carries the bytes of a tunnel both ways until it ends, or leaves for the successor. `said` is what was read ahead of
/// the upstream.
pub(crate) async fn begin(client: Upgraded, upstream: Socket, said: Bytes) {
    let client = client.downcast::<TokioIo<Seat>>().ok().and_then(|parts| {
        let mut client = parts.io.into_inner().into_stream()?;
        client.unread(parts.read_buf);
        Some(client)
    });
    let Some(client) = client else { unreachable!("an upgraded client is one that was accepted") };
    let down = Flow { unsent: said, ended: false };
    resume(client, upstream, Flow::default(), down).await;
}

/// Goes on with a tunnel that an earlier process has begun.
pub(super) async fn resume(client: Box<ClientStream>, upstream: Socket, up: Flow, down: Flow) {
    let connection = Arc::clone(client.connection());
    if up.ended {
        connection.progress().finish();
    }
    let mut tunnel = Tunnel { client, upstream, up: up.into(), down: down.into() };
    let ended = poll_fn(|cx| match connection.commands().poll(Waiter::Task, cx) {
        Command::Carry if tunnel.client.may_leave() => Poll::Ready(None),
        // The client's end obeys only if it is polled: not if it has ended and nothing is to be written to it.
        command => match ClientStream::obey(command) {
            Ok(()) => tunnel.poll(cx).map(Some),
            Err(told) => Poll::Ready(Some(Err(told))),
        },
    });
    match ended.await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a tunnel broke"),
        None => tunnel.leave(),
    }
}

impl Tunnel<Box<ClientStream>, Socket> {
    /// Leaves for the next process, with what either side has yet to take.
    fn leave(self) {
        let Self { client, upstream, up, down } = self;
        match upstream.into_descriptor() {
            Ok(upstream) => client.leave_as_tunnel(upstream, up.into(), down.into()),
            Err(error) => {
                tracing::warn!(message_id = event::NOT_CARRIED, %error, "cannot take a tunnel apart");
            }
        }
    }
}

impl From<Flow> for Direction {
    fn from(flow: Flow) -> Self {
        Self { unsent: flow.unsent.into(), stage: if flow.ended { Stage::Ending } else { Stage::Open } }
    }
}

impl From<Direction> for Flow {
    fn from(direction: Direction) -> Self {
        // A sink that was told of the end is told once more, which changes nothing (`shutdown(2)`).
        Self { unsent: direction.unsent.freeze(), ended: direction.stage != Stage::Open }
    }
}

impl<C, U> Tunnel<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// Carries bytes. Ready when both directions have ended; an end of one direction is passed on as such.
    ///
    /// # Errors
    /// Either end has failed: then nothing more can be passed on in either direction.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let up = self.up.poll(cx, &mut self.client, &mut self.upstream)?;
        let down = self.down.poll(cx, &mut self.upstream, &mut self.client)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Direction {
    /// Ready when it has ended.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut source = Pin::new(source);
        let mut sink = Pin::new(sink);
        loop {
            while !self.unsent.is_empty() {
                let n = written(ready!(sink.as_mut().poll_write(cx, &self.unsent))?)?;
                self.unsent.advance(n);
            }
            match self.stage {
                Stage::Open => {}
                Stage::Ending => {
                    ready!(sink.as_mut().poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                    return Poll::Ready(Ok(()));
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
            self.unsent = BytesMut::new();

            // On the stack, so that a waiting tunnel has no buffer on the heap.
            let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            if source.as_mut().poll_read(cx, &mut chunk)?.is_pending() {
                ready!(sink.as_mut().poll_flush(cx))?;
                return Poll::Pending;
            }
            let mut read = chunk.filled();
            if read.is_empty() {
                self.stage = Stage::Ending;
            }
            while !read.is_empty() {
                match sink.as_mut().poll_write(cx, read)? {
                    Poll::Ready(n) => read = &read[written(n)?..],
                    Poll::Pending => {
                        self.unsent.extend_from_slice(read);
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

/// An error where nothing was written: such a sink would be tried for ever.
fn written(n: usize) -> io::Result<usize> {
    if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}

#[cfg(test)]
mod tests {
    //! The promises of a tunnel, whatever its ends do.

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn between<C, U>(client: C, upstream: U) -> Tunnel<C, U> {
        Tunnel { client, upstream, up: Direction::default(), down: Direction::default() }
    }

    proptest! {
        /// A tunnel between two short pipes, which is stopped and resumed after every so many polls.
        #[test]
        fn nothing_is_lost_doubled_or_reordered_wherever_it_is_stopped(
            said in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 2),
            pipe in 1..20_000_usize,
            polls in 1..8_usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let heard = runtime.block_on(async {
                let (client, near) = tokio::io::duplex(pipe);
                let (far, upstream) = tokio::io::duplex(pipe);
                let mut tunnel = between(near, far);
                let carry = async {
                    loop {
                        let mut left = polls;
                        let ended = poll_fn(|cx| match tunnel.poll(cx) {
                            Poll::Ready(ended) => Poll::Ready(Some(ended)),
                            Poll::Pending if left == 0 => Poll::Ready(None),
                            Poll::Pending => {
                                left -= 1;
                                Poll::Pending
                            }
                        });
                        if let Some(ended) = ended.await {
                            return ended;
                        }
                    }
                };
                let converse = async |stream, said: &[u8]| {
                    let (mut read, mut write) = tokio::io::split(stream);
                    let say = async {
                        write.write_all(said).await?;
                        write.shutdown().await
                    };
                    let mut heard = Vec::new();
                    let (said, read) = tokio::join!(say, read.read_to_end(&mut heard));
                    said.and(read).map(|_| heard)
                };
                tokio::try_join!(carry, converse(client, &said[0]), converse(upstream, &said[1]))
            });
            let ((), by_client, by_upstream) = heard.expect("no end to fail");
            prop_assert_eq!(by_client, &said[1][..]);
            prop_assert_eq!(by_upstream, &said[0][..]);
        }
    }

    /// Can be written to, and fails to be read.
    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[tokio::test]
    async fn an_end_that_fails_ends_the_tunnel() {
        let (far, _upstream) = tokio::io::duplex(1);
        let mut tunnel = between(tokio::io::join(Broken, tokio::io::sink()), far);
        let error = poll_fn(|cx| tunnel.poll(cx)).await.expect_err("to fail");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_tunnel_that_waits_holds_no_memory() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, near) = tokio::io::duplex(64);
            let (far, mut upstream) = tokio::io::duplex(1);
            let mut tunnel = between(near, far);
            client.write_all(b"long").await.expect("room");
            let said = async { upstream.read_exact(&mut [0; 4]).await };
            tokio::select! {
                _ = poll_fn(|cx| tunnel.poll(cx)) => unreachable!("neither end has ended"),
                said = said => assert_eq!(said.expect("four bytes"), 4),
            }
            let waits = poll_fn(|cx| Poll::Ready(tunnel.poll(cx).is_pending())).await;
            assert!(waits);
            assert_eq!(tunnel.up.unsent.capacity() + tunnel.down.unsent.capacity(), 0);
        });
    }
}
