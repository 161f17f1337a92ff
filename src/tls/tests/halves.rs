//! Two tasks at once, of which one reads and the other writes: neither takes the other's place at the socket.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::tls::script::CLIENT_HELLO;

/// The bytes that the socket takes at once.
const PIPE: usize = 2000;

/// Remembers that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// A server whose socket takes little at once.
async fn narrow(suite: u16) -> (Client, Server) {
    let (server, client) = configs(suite);
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let mut client = Client::new(client, theirs);
    let acceptor = Acceptor::new(server);
    let (server, shaken) = tokio::join!(accept(&acceptor, ours), client.handshake());
    shaken.expect("the client is content");
    (client, server.expect("the server is content"))
}

/// Writes until the socket takes no more; then `waker` is to be woken.
fn fill(server: &mut Server, waker: &Waker) {
    let mut cx = Context::from_waker(waker);
    while Pin::new(&mut *server).poll_write(&mut cx, &[7; 100]).is_ready() {}
}

fn read(server: &mut Server, waker: &Waker) -> Poll<usize> {
    let mut bytes = [0; 100];
    let mut bytes = ReadBuf::new(&mut bytes);
    let polled = Pin::new(server).poll_read(&mut Context::from_waker(waker), &mut bytes);
    polled.map(|read| read.map(|()| bytes.filled().len()).expect("it is read"))
}

#[tokio::test]
async fn whoever_waits_to_write_is_woken_although_another_has_read_meanwhile() {
    for suite in [0x1301, 0xc02b] {
        let (mut client, mut server) = narrow(suite).await;
        let (writer, reader) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        fill(&mut server, &Arc::clone(&writer).into());
        client.send(b"ask").await;
        assert_eq!(read(&mut server, &Arc::clone(&reader).into()), Poll::Ready(3));
        assert!(read(&mut server, &Arc::clone(&reader).into()).is_pending());
        client.receive().await.expect("right records");
        assert!(writer.0.load(Relaxed), "{suite:x}");
    }
}

/// Nobody writes or flushes on an idle connection: whoever reads sees to it.
#[tokio::test]
async fn an_alert_for_which_the_socket_has_no_room_is_sent_as_soon_as_it_has_also_by_the_next_process() {
    for carries in [false, true] {
        waits_for_room(carries).await;
    }
}

async fn waits_for_room(carries: bool) {
    let (mut client, server) = narrow(0xc02b).await;
    let (material, seq, mut server) = client_keys(server);
    // A record that fills the pipe to the last byte.
    write(&mut server, &[7; PIPE - 5 - 8 - 16]).await;
    let hello = sealed(&material.keys(suite(0xc02b)), seq, 22, &CLIENT_HELLO);
    client.io.write_all(&hello).await.expect("the pipe takes it");
    let reader = Arc::<Woken>::default();
    assert!(read(&mut server, &Arc::clone(&reader).into()).is_pending());
    if carries {
        server = carry(server);
        assert!(read(&mut server, &Arc::clone(&reader).into()).is_pending());
    }
    client.receive().await.expect("right records");
    assert!(reader.0.load(Relaxed));
    assert!(read(&mut server, &reader.into()).is_pending());
    let mut header = [0; 5];
    let read = std::pin::pin!(client.io.read_exact(&mut header));
    let read = read.poll(&mut Context::from_waker(Waker::noop()));
    assert!(read.is_ready() && header[0] == 21, "an alert: {header:?}");
}
