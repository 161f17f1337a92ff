//! One request over HTTP/2, on a connection of its own.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::pin::pin;
use std::sync::Arc;

use http::{Request, Response};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::wait::PATIENCE;

/// The answer over a connection that begins with HTTP/2 (RFC 9113, section 3.3).
///
/// # Errors
///
/// The connection or the stream was closed before the end of the answer.
pub fn ask_http2(socket: TcpStream, request: Request<()>) -> io::Result<Response<Vec<u8>>> {
    run(async { ask(nonblocking(socket)?, request).await })
}

/// The answer over TLS, to a client with this config that offers HTTP/2 alone (RFC 9113, section 3.2).
///
/// # Errors
///
/// The same, or the handshake has failed.
pub fn ask_http2_over_tls(
    socket: TcpStream,
    mut config: ClientConfig,
    name: ServerName<'static>,
    request: Request<()>,
) -> io::Result<Response<Vec<u8>>> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    run(async {
        let connector = TlsConnector::from(Arc::new(config));
        ask(connector.connect(name, nonblocking(socket)?).await?, request).await
    })
}

fn run<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await? })
}

fn nonblocking(socket: TcpStream) -> io::Result<tokio::net::TcpStream> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(socket)
}

async fn ask<S>(stream: S, request: Request<()>) -> io::Result<Response<Vec<u8>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut requests, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let (answer, _) = requests.send_request(request, true).map_err(io::Error::other)?;
    let mut answer = pin!(async {
        let (head, mut body) = answer.await?.into_parts();
        let mut whole = Vec::new();
        while let Some(piece) = body.data().await.transpose()? {
            body.flow_control().release_capacity(piece.len())?;
            whole.extend_from_slice(&piece);
        }
        Ok::<_, h2::Error>(Response::from_parts(head, whole))
    });
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What has come before its end is still to be had.
        _ = connection => answer.await,
    }
    .map_err(io::Error::other)
}
