//! A client's connection: a socket, perhaps with TLS on it.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::tls::HOST;

/// Where clients connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The server's name, for whoever reads that it failed.
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// The clients' side of TLS, if they speak it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// An open connection.
pub(crate) struct Connection {
    socket: TcpStream,
    /// Of its own memory: a future would hold room for it wherever it is passed on.
    tls: Option<Box<ClientConnection>>,
}

impl Connection {
    /// Connects from this address. With TLS the handshake comes with the first request.
    pub(crate) async fn open(target: &Target, source: Ipv4Addr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let socket = socket.connect(target.address).await?;
        let tls = target.tls.as_ref().map(|config| {
            let host = HOST.try_into().expect("it is a name");
            Box::new(ClientConnection::new(Arc::clone(config), host).expect("the config is complete"))
        });
        Ok(Self { socket, tls })
    }

    /// The kind of its handshake; none before it has ended, or without TLS.
    pub(crate) fn handshake(&self) -> Option<HandshakeKind> {
        self.tls.as_ref()?.handshake_kind()
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.socket.write_all(bytes).await };
        // Before the handshake has ended it keeps them, and sends them with its own last message.
        tls.writer().write_all(bytes)?;
        flush(tls, &self.socket).await
    }

    /// Receives some bytes; none at the end.
    pub(crate) async fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(bytes).await };
        loop {
            match tls.reader().read(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            self.socket.readable().await?;
            match tls.read_tls(&mut Ready(&self.socket)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                result => result?,
            };
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &self.socket).await?;
        }
    }

    /// Says goodbye, where TLS has a word for it, and closes.
    pub(crate) async fn close(mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            flush(tls, &self.socket).await?;
        }
        Ok(())
    }
}

async fn flush(tls: &mut ClientConnection, socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut Ready(socket)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => socket.writable().await?,
            result => drop(result?),
        }
    }
    Ok(())
}

/// A socket that is read and written without waiting.
struct Ready<'a>(&'a TcpStream);

impl Read for Ready<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for Ready<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
