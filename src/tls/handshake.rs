//! Handshakes: rustls does them, and what it leaves behind becomes a record layer.
//!
//! rustls is shown one record at a time, and none behind the client's Finished: it has no way to give back what it has
//! read, and it keeps halves of records to itself. So its unbuffered connection is used, whose input is the caller's.

use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use rustls::server::{ClientHello, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ConnectionTrafficSecrets, HandshakeKind, KeyLog, PeerIncompatible, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

use super::client::subject;
use super::keys::{HEADER, Material, Suite, TAG};
use super::records::{ALERT, CHANGE_CIPHER_SPEC, DATA, HANDSHAKE, Records};
use super::session::{Alpn, Session, Version};
use super::stream::with_incoming;

/// The most that is kept of what a client sends: the largest message that rustls takes, a chain of certificates of
/// 64 KiB, in records of a sensible size.
const MAX_INCOMING: usize = 80 << 10;
/// The most records that one message of a client may span: a chain of 64 KiB in records of the least size that a client can
/// ask for, 512 bytes (RFC 6066, section 4), and as many again. Each of them costs a look at all.
const MAX_RECORDS: usize = 256;
/// The longest body of a record (RFC 5246, section 6.2.3).
const MAX_BODY: usize = (1 << 14) + 2048;

/// Why a handshake has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client has closed the connection, or it was reset.
    ClientGone,
    /// The client's first bytes are no TLS.
    NotTls,
    /// They may be an HTTP request.
    PlainHttp,
    /// It offers no version of TLS that is allowed here.
    UnsupportedVersion,
    /// It offers no cipher suite, group or signature that is known here.
    NoSharedCipher,
    /// It offers no application protocol (ALPN) that is spoken here.
    NoApplicationProtocol,
    /// Its certificate is missing, invalid or revoked.
    ClientCertificate,
    /// It has refused ours, or something else, with an alert.
    ClientAlert,
    /// It has taken too long.
    TimedOut,
    /// It has broken the protocol.
    Protocol,
}

impl Reason {
    /// Every one of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::ClientGone,
        Self::NotTls,
        Self::PlainHttp,
        Self::UnsupportedVersion,
        Self::NoSharedCipher,
        Self::NoApplicationProtocol,
        Self::ClientCertificate,
        Self::ClientAlert,
        Self::TimedOut,
        Self::Protocol,
    ];

    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::NotTls => "not_tls",
            Self::PlainHttp => "plain_http",
            Self::UnsupportedVersion => "unsupported_version",
            Self::NoSharedCipher => "no_shared_cipher",
            Self::NoApplicationProtocol => "no_application_protocol",
            Self::ClientCertificate => "client_certificate",
            Self::ClientAlert => "client_alert",
            Self::TimedOut => "timed_out",
            Self::Protocol => "protocol",
        }
    }

    fn of(error: &rustls::Error) -> Self {
        use rustls::Error;
        match error {
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::UnsupportedVersion,
            Error::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::NoEcPointFormatsInCommon,
            ) => Self::NoSharedCipher,
            Error::NoApplicationProtocol => Self::NoApplicationProtocol,
            Error::NoCertificatesPresented
            | Error::InvalidCertificate(_)
            | Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::ClientCertificate
            }
            Error::AlertReceived(_) => Self::ClientAlert,
            _ => Self::Protocol,
        }
    }
}

/// A handshake that has failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The reason, as it is counted.
    pub(crate) reason: Reason,
    /// The whole of it, for the log.
    pub(crate) error: String,
}

impl Failed {
    fn new(reason: Reason, error: impl fmt::Display) -> Self {
        Self { reason, error: error.to_string() }
    }

    fn gone(error: impl Into<io::Error>) -> Self {
        Self::new(Reason::ClientGone, error.into())
    }
}

/// All that the handshakes of a listener have in common.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    choice: Option<Choice>,
    policy: Option<Policy>,
}

/// True for the names that clients ask for, or for none, which something is for.
type IsFor = Arc<dyn Fn(Option<&str>) -> bool + Send + Sync>;

/// The policy by which the clients of some names are judged.
#[derive(Clone)]
struct Policy {
    digest: u64,
    is_for: IsFor,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Another config, for some of the names that clients ask for.
#[derive(Clone)]
struct Choice {
    config: Arc<ServerConfig>,
    is_for: IsFor,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// A config with certificates, versions and protocols. What the record layer relies on is set here.
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self { config: Arc::new(for_records(config)), choice: None, policy: None }
    }

    /// The same, but with another config for the names that are chosen: it may ask other certificates of clients. It has
    /// the same certificates itself.
    pub(crate) fn with_choice(
        mut self,
        config: ServerConfig,
        is_for: impl Fn(Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.choice = Some(Choice { config: Arc::new(for_records(config)), is_for: Arc::new(is_for) });
        self
    }

    /// The same, where clients of some names are asked for certificates; the digest is that of all by which these are judged,
    /// and not 0.
    pub(crate) fn with_policy(
        mut self,
        digest: u64,
        is_for: impl Fn(Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.policy = Some(Policy { digest, is_for: Arc::new(is_for) });
        self
    }

    /// True if the client of a connection that another process has accepted was judged as this one would judge it.
    pub(crate) fn agrees_with(&self, session: &Session) -> bool {
        policy_for(self.policy.as_ref(), session.server_name()) == session.policy
    }

    /// A handshake with one client.
    pub(crate) fn begin(&self) -> Handshake {
        let heard = Arc::new(Heard {
            resolver: Arc::clone(&self.config.cert_resolver),
            told: Mutex::new(Told::default()),
        });
        let (connection, failed) = match heard.connection(&self.config) {
            Ok(connection) => (Some(connection), None),
            Err(failed) => (None, Some(failed)),
        };
        Handshake(Box::new(Progress {
            connection,
            heard,
            choice: self.choice.clone(),
            policy: self.policy.clone(),
            failed,
            began_as: None,
            incoming: Vec::new(),
            shown: 0,
            records: 0,
            outgoing: Vec::new(),
            sent: 0,
            is_sending: false,
        }))
    }
}

/// The digest of the policy for a name; 0 where nothing is asked of its clients.
fn policy_for(policy: Option<&Policy>, name: Option<&str>) -> u64 {
    policy.filter(|policy| (policy.is_for)(name)).map_or(0, |policy| policy.digest)
}

/// A config with what the record layer relies on.
fn for_records(mut config: ServerConfig) -> ServerConfig {
    config.enable_secret_extraction = true;
    // Nothing is sent or taken before the handshake has ended: a request that comes earlier could be a replayed one.
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config
}

/// What rustls tells of one connection while it shakes hands, and not afterwards.
///
/// The secrets come by way of its key log, which is otherwise for debugging: of a TLS 1.3 connection it would give out the
/// keys alone, and after a KeyUpdate new ones are made of the secrets. They go nowhere but into the record layer.
/// `SSLKEYLOGFILE` is not looked at.
struct Heard {
    resolver: Arc<dyn ResolvesServerCert>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    client: Option<Zeroizing<Vec<u8>>>,
    server: Option<Zeroizing<Vec<u8>>>,
    server_name: Option<Box<str>>,
}

impl Heard {
    /// A connection that tells what is to be heard.
    fn connection(self: &Arc<Self>, config: &ServerConfig) -> Result<UnbufferedServerConnection, Failed> {
        // A config of the connection's own. All in it is shared, but for the short list of protocols.
        let mut config = config.clone();
        config.key_log = Arc::clone(self) as _;
        config.cert_resolver = Arc::clone(self) as _;
        UnbufferedServerConnection::new(Arc::new(config))
            .map_err(|error| Failed::new(Reason::Protocol, error))
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").finish_non_exhaustive()
    }
}

impl KeyLog for Heard {
    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let secret = Some(Zeroizing::new(secret.to_vec()));
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => self.told().client = secret,
            "SERVER_TRAFFIC_SECRET_0" => self.told().server = secret,
            _ => {}
        }
    }
}

impl ResolvesServerCert for Heard {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.told().server_name = hello.server_name().map(|name| name.to_ascii_lowercase().into());
        self.resolver.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.resolver.only_raw_public_keys()
    }
}

/// A handshake with one client. To cancel it, drop it.
pub(crate) struct Handshake(Box<Progress>);

struct Progress {
    /// None when it has ended.
    connection: Option<UnbufferedServerConnection>,
    heard: Arc<Heard>,
    /// The other config, until the client's hello has decided between the two.
    choice: Option<Choice>,
    policy: Option<Policy>,
    /// The first byte that the client has sent.
    began_as: Option<u8>,
    /// What the client has sent and rustls has not used.
    incoming: Vec<u8>,
    /// The part of it that rustls has been shown: whole records, and more than one only while a message spans them.
    shown: usize,
    /// The number of records in that part.
    records: usize,
    /// What rustls has to say, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    is_sending: bool,
    /// The reason to end, once the alert that tells it is sent.
    failed: Option<Failed>,
}

/// What comes next.
enum Next {
    /// Ask rustls again.
    Go,
    /// Send what it has said.
    Send,
    /// Show it another record.
    More,
    /// It has done its work.
    Done,
}

impl Handshake {
    /// Goes on with it, until it has ended. After a failure it first sends the alert.
    pub(crate) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<Result<Records, Failed>> {
        let progress = &mut *self.0;
        loop {
            match progress.next() {
                Ok(Next::Go) => {}
                Ok(Next::Send) => {
                    if let Err(error) = ready!(progress.poll_send(cx, io)) {
                        return Poll::Ready(Err(progress
                            .failed
                            .take()
                            .unwrap_or_else(|| Failed::gone(error))));
                    }
                }
                Ok(Next::More) => {
                    if let Err(failed) = ready!(progress.poll_receive(cx, io)) {
                        return Poll::Ready(Err(failed));
                    }
                }
                Ok(Next::Done) => return Poll::Ready(progress.finish()),
                Err(failed) => return Poll::Ready(Err(failed)),
            }
        }
    }
}

#[cfg(test)]
impl Handshake {
    /// The bytes that it holds of what the client has sent.
    pub(super) fn held(&self) -> usize {
        self.0.incoming.capacity()
    }
}

impl Progress {
    fn next(&mut self) -> Result<Next, Failed> {
        if self.is_sending {
            return Ok(Next::Send);
        }
        let Some(connection) = &mut self.connection else {
            return Err(self.failed.take().unwrap_or_else(|| Failed::new(Reason::Protocol, "it has ended")));
        };
        let UnbufferedStatus { discard, state } =
            connection.process_tls_records(&mut self.incoming[..self.shown]);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(encode)) => {
                encode_to(&mut self.outgoing, encode);
                Next::Go
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // Nothing else happens before it is sent.
                transmit.done();
                self.is_sending = true;
                Next::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Next::More,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                return Err(Failed::new(Reason::ClientGone, "the client closed the connection"));
            }
            Ok(_) => return Err(Failed::new(Reason::Protocol, "data before the end of the handshake")),
            Err(error) => {
                let reason = match self.began_as {
                    Some(HANDSHAKE) => Reason::of(&error),
                    // Methods are written in capitals (RFC 9110, section 9.1). To such a client an alert is rubbish.
                    Some(b'A'..=b'Z') => return Err(Failed::new(Reason::PlainHttp, error)),
                    _ => Reason::NotTls,
                };
                self.failed = Some(Failed::new(reason, error));
                // The alert comes out of the next rounds, perhaps behind the beginning of our answer. These need what is left
                // of the input, for messages that rustls has seen and not used are places in it; but asked again after the
                // alert it would go on reading, and fail once more.
                self.incoming.drain(..discard);
                let left = &mut self.incoming[..self.shown - discard];
                let mut record = 0..0;
                while !is_alert(&self.outgoing[record])
                    && let Ok(ConnectionState::EncodeTlsData(encode)) =
                        connection.process_tls_records(left).state
                {
                    record = encode_to(&mut self.outgoing, encode);
                }
                self.connection = None;
                self.is_sending = true;
                return Ok(Next::Send);
            }
        };
        self.incoming.drain(..discard);
        self.shown -= discard;
        if self.shown == 0 {
            self.records = 0;
        }
        Ok(next)
    }

    fn poll_send<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut S) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, &self.outgoing[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        self.outgoing.clear();
        (self.sent, self.is_sending) = (0, false);
        Poll::Ready(Ok(()))
    }

    /// One more whole record to show to rustls.
    fn poll_receive<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<Result<(), Failed>> {
        loop {
            if let Some(length) = first_record(&self.incoming[self.shown..]) {
                self.shown += length;
                self.records += 1;
                if self.decide()? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if self.incoming.len() > MAX_INCOMING || self.records > MAX_RECORDS {
                return Poll::Ready(Err(Failed::new(Reason::Protocol, "a message that is too long")));
            }
            let read = with_incoming(|buffer| {
                let mut fresh = ReadBuf::new(buffer);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut fresh))?;
                self.incoming.extend_from_slice(fresh.filled());
                Poll::Ready(io::Result::Ok(fresh.filled().len()))
            });
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(Failed::gone(io::ErrorKind::UnexpectedEof))),
                Ok(_) => self.began_as = self.began_as.or(self.incoming.first().copied()),
                Err(error) => return Poll::Ready(Err(Failed::gone(error))),
            }
        }
    }

    /// Chooses the config by the name in the client's hello. False if more of that is needed; rustls's connection, which
    /// may become another one, has been shown nothing of it by then.
    fn decide(&mut self) -> Result<bool, Failed> {
        let Some(choice) = &self.choice else { return Ok(true) };
        let Poll::Ready(server_name) = server_name(&self.incoming[..self.shown]) else { return Ok(false) };
        if (choice.is_for)(server_name.as_deref()) {
            self.connection = Some(self.heard.connection(&choice.config)?);
        }
        self.choice = None;
        Ok(true)
    }

    /// From rustls's hands into ours.
    fn finish(&mut self) -> Result<Records, Failed> {
        let broken = |why: &str| Failed::new(Reason::Protocol, why);
        let connection = self.connection.take().ok_or_else(|| broken("it has ended"))?;
        if self.shown > 0 {
            return Err(broken("a message goes on behind the client's Finished"));
        }
        let suite = connection.negotiated_cipher_suite().map_or(0, |suite| suite.suite().into());
        let suite = Suite::by_id(suite).ok_or_else(|| broken("an unknown cipher suite"))?;
        let Told { client, server, server_name } = std::mem::take(&mut *self.heard.told());
        let session = Session {
            suite: suite.id,
            alpn: connection.alpn_protocol().and_then(Alpn::by_name),
            policy: policy_for(self.policy.as_ref(), server_name.as_deref()),
            server_name,
            client: connection.peer_certificates().and_then(|chain| subject(chain.first()?)),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        };
        let (secrets, _) = connection
            .dangerous_into_kernel_connection()
            .map_err(|error| Failed::new(Reason::Protocol, error))?;
        let read = material(suite, &secrets.rx.1, client)
            .ok_or_else(|| broken("the client's secret does not fit"))?;
        let write =
            material(suite, &secrets.tx.1, server).ok_or_else(|| broken("our secret does not fit"))?;
        let raw = std::mem::take(&mut self.incoming);
        Ok(Records::new(session, suite, (read, secrets.rx.0), (write, secrets.tx.0), raw))
    }
}

/// Appends a record that rustls has to send, and returns where.
fn encode_to(outgoing: &mut Vec<u8>, mut encode: EncodeTlsData<'_, ServerConnectionData>) -> Range<usize> {
    let start = outgoing.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        encode.encode(&mut [])
    {
        outgoing.resize(start + required_size, 0);
        encode.encode(&mut outgoing[start..]).expect("there is as much room as it requires");
    }
    start..outgoing.len()
}

/// True for an alert, also for a sealed one: no other record of a handshake is as short.
fn is_alert(record: &[u8]) -> bool {
    const SEALED: usize = HEADER + 2 + 1 + TAG;
    match record.first() {
        Some(&ALERT) => true,
        Some(&DATA) => record.len() == SEALED,
        _ => false,
    }
}

/// The name that a client asks for, in lower case, and none if it asks for none, or with what is no hello; pending while
/// more of its hello is to come.
fn server_name(records: &[u8]) -> Poll<Option<String>> {
    let (mut hello, mut rest) = (rustls::server::Acceptor::default(), records);
    while !rest.is_empty() && hello.read_tls(&mut rest).is_ok_and(|read| read > 0) {}
    match hello.accept() {
        Ok(None) if rest.is_empty() => Poll::Pending,
        Ok(Some(accepted)) => Poll::Ready(accepted.client_hello().server_name().map(str::to_ascii_lowercase)),
        // That it is none, rustls's connection will say to the client.
        Ok(None) | Err(_) => Poll::Ready(None),
    }
}

/// The length of the first record, if it is all there; of all there is, if that does not begin with a record, so that
/// rustls refuses it at once.
fn first_record(bytes: &[u8]) -> Option<usize> {
    let &[kind, major, _, high, low] = bytes.first_chunk::<HEADER>()?;
    let body = usize::from(u16::from_be_bytes([high, low]));
    if !(CHANGE_CIPHER_SPEC..=DATA).contains(&kind) || major != 3 || body > MAX_BODY {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + body).then_some(HEADER + body)
}

/// One direction: TLS 1.2's key as it is, TLS 1.3's secret if it is the one that yields this key.
fn material(
    suite: &Suite,
    secrets: &ConnectionTrafficSecrets,
    heard: Option<Zeroizing<Vec<u8>>>,
) -> Option<Material> {
    let (key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key.as_ref(), iv.as_ref()),
        _ => return None,
    };
    match suite.version {
        Version::Tls12 => Material::new(suite, &Zeroizing::new([key, iv].concat())),
        Version::Tls13 => Material::new(suite, &heard?).filter(|material| material.yields(suite, key, iv)),
    }
}
