//! The clients' side of TLS.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::certificates::Certificate;
use crate::client::Failure;

/// Clients that trust one authority, and what they offer.
#[derive(Clone, Debug)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Trust {
    /// Clients of a server of this name, which offer TLS 1.3 and 1.2, and no resumption: each is a handshake of its own.
    ///
    /// # Panics
    ///
    /// If it is no name.
    #[must_use]
    pub fn new(authority: &Certificate, name: &str) -> Self {
        Self::offering(authority, name, rustls::ALL_VERSIONS)
    }

    /// Clients that offer TLS 1.2 alone.
    ///
    /// # Panics
    ///
    /// If it is no name.
    #[must_use]
    pub fn of_tls12(authority: &Certificate, name: &str) -> Self {
        Self::offering(authority, name, &[&rustls::version::TLS12])
    }

    fn offering(authority: &Certificate, name: &str, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().into()).expect("an authority");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("its suites are of these versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        Self { config: Arc::new(config), name }
    }

    /// The handshake of a client that speaks HTTP/2 alone (RFC 9113, section 3.2).
    ///
    /// # Errors
    ///
    /// It has failed.
    pub async fn shake_hands_for_http2(
        &self,
        stream: tokio::net::TcpStream,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>> {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream).await
    }

    /// The first message of a handshake (RFC 8446, section 4.1.2), in one record.
    ///
    /// # Panics
    ///
    /// If there is no randomness for it.
    #[must_use]
    pub fn client_hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        connection.expect("it begins").write_tls(&mut hello).expect("there is room");
        hello
    }

    /// The handshake, to its end.
    pub(crate) fn shake_hands(&self, stream: TcpStream) -> Result<Secured, Failure> {
        let connection =
            ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other);
        let mut secured = StreamOwned::new(connection.map_err(Failure::Io)?, stream);
        while secured.conn.is_handshaking() {
            secured.conn.complete_io(&mut secured.sock).map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Failure::Closed,
                _ => Failure::Io(error),
            })?;
        }
        Ok(Secured(Box::new(secured)))
    }
}

/// A connection that is encrypted.
pub(crate) struct Secured(pub(crate) Box<StreamOwned<ClientConnection, TcpStream>>);

impl fmt::Debug for Secured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TLS over {:?}", self.0.sock)
    }
}

/// What a handshake has agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// "TLSv1.3" or "TLSv1.2".
    pub version: &'static str,
    /// True if there was a session before.
    pub resumed: bool,
    /// The server's certificate, in DER.
    pub certificate: Vec<u8>,
}

impl Secured {
    pub(crate) fn agreed(&self) -> Agreed {
        let connection = &self.0.conn;
        Agreed {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                other => panic!("{other:?} was not offered"),
            },
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            certificate: connection
                .peer_certificates()
                .and_then(<[CertificateDer]>::first)
                .expect("a server has one")
                .to_vec(),
        }
    }

    /// New keys in both directions (RFC 8446, section 4.6.3), with the next bytes that are sent.
    pub(crate) fn renew_keys(&mut self) -> io::Result<()> {
        self.0.conn.refresh_traffic_keys().map_err(io::Error::other)
    }
}
