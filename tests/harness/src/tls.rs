//! Certificates of the test's own, and the clients that trust them.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

use crate::client::Failure;

/// The time that a certificate is valid, from yesterday on.
const VALID: Duration = Duration::from_secs(90 * 86400);

/// An authority that issues certificates, for the length of a test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A server's certificate and its key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, in PEM.
    pub chain: String,
    /// The key, in PEM.
    pub key: String,
    /// The certificate, in DER.
    pub certificate: Vec<u8>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Authority")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.chain)
    }
}

/// A certificate that is valid now, for such a subject.
fn parameters(subject: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("names that a certificate can have");
    parameters.distinguished_name.push(DnType::CommonName, subject);
    let yesterday = SystemTime::now() - Duration::from_secs(86400);
    parameters.not_before = yesterday.into();
    parameters.not_after = (yesterday + VALID).into();
    parameters
}

impl Authority {
    /// A new one, whom nobody trusts but who is told to.
    ///
    /// # Panics
    ///
    /// If there is no randomness for its key.
    #[must_use]
    pub fn new() -> Self {
        let mut parameters = parameters("an authority of a test", &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters, key).expect("it signs"))
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these names, which may be addresses. Each has another key.
    ///
    /// # Panics
    ///
    /// If a name is none.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> Identity {
        let mut parameters = parameters(names[0], names);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.0).expect("it signs");
        Identity {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            certificate: certificate.der().to_vec(),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

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
    pub fn new(authority: &Authority, name: &str) -> Self {
        Self::offering(authority, name, rustls::ALL_VERSIONS)
    }

    /// Clients that offer TLS 1.2 alone.
    ///
    /// # Panics
    ///
    /// If it is no name.
    #[must_use]
    pub fn of_tls12(authority: &Authority, name: &str) -> Self {
        Self::offering(authority, name, &[&rustls::version::TLS12])
    }

    fn offering(authority: &Authority, name: &str, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).expect("an authority");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("its suites are of these versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        Self { config: Arc::new(config), name }
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
