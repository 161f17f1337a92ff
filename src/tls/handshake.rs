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
use rustls::{ConnectionTrafficSecrets, HandshakeKind, KeyLog, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

use super::acceptor::Policy;
use super::client::subject;
use super::failure::{Failed, Reason};
use super::keys::{HEADER, Material, Suite, TAG};
use super::records::{ALERT, CHANGE_CIPHER_SPEC, DATA, HANDSHAKE, MAX_READ, Records};
use super::session::{Alpn, Session, Version};
use super::stream::with_incoming;

/// The most that is kept of what a client sends: the largest message that rustls takes, a chain of certificates of
/// 64 KiB, in records of a sensible size.
const MAX_INCOMING: usize = 80 << 10;
/// The most records that one message of a client may span: a chain of 64 KiB in records of the least size that a client can
/// ask for, 512 bytes (RFC 6066, section 4), and as many again.
const MAX_RECORDS: usize = 256;
/// The longest body of a record (RFC 5246, section 6.2.3).
const MAX_BODY: usize = (1 << 14) + 2048;

/// What rustls tells of one connection while it shakes hands, and not afterwards.
///
/// The secrets come by way of its key log, which is otherwise for debugging: of a TLS 1.3 connection it would give out the
/// keys alone, and after a KeyUpdate new ones are made of the secrets. They go nowhere but into the record layer.
/// `SSLKEYLOGFILE` is not looked at.
struct Heard {
    resolver: Arc<dyn ResolvesServerCert>,
    policy: Option<Policy>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    client: Option<Zeroizing<Vec<u8>>>,
    server: Option<Zeroizing<Vec<u8>>>,
    server_name: Option<Box<str>>,
    /// True if the chosen config is the connection's, false if the other one is; none before that is decided.
    is_chosen: Option<bool>,
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

    /// True if the connection has the config of the name that its client asks for. By another one, a client could be let in
    /// without the certificate that is asked for under that name.
    fn fits(&self, told: &Told) -> bool {
        let policy = self.policy.as_ref().filter(|policy| policy.config().is_some());
        policy.is_none_or(|policy| told.is_chosen == Some(policy.is_for(told.server_name.as_deref())))
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
    /// Without a certificate, rustls denies the client access.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut told = self.told();
        told.server_name = hello.server_name().map(|name| name.to_ascii_lowercase().into());
        let fits = self.fits(&told);
        drop(told);
        if fits { self.resolver.resolve(hello) } else { None }
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
    /// Reads the client's hello where that decides between two configs, until it has. The connection is shown nothing
    /// before.
    hello: Option<rustls::server::Acceptor>,
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
    /// One by this config, or by that of the policy for the clients that it is for.
    pub(super) fn new(config: &ServerConfig, policy: Option<Policy>) -> Self {
        let hello = policy.as_ref().and_then(Policy::config).map(|_| rustls::server::Acceptor::default());
        let resolver = Arc::clone(&config.cert_resolver);
        let heard = Arc::new(Heard { resolver, policy, told: Mutex::default() });
        let (connection, failed) = match heard.connection(config) {
            Ok(connection) => (Some(connection), None),
            Err(failed) => (None, Some(failed)),
        };
        Self(Box::new(Progress {
            connection,
            heard,
            hello,
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
        if self.hello.is_some() {
            return Ok(Next::More);
        }
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
                let record = self.shown..self.shown + length;
                self.shown = record.end;
                self.records += 1;
                if self.records > MAX_RECORDS {
                    return Poll::Ready(Err(Failed::too_long()));
                }
                if self.decide(record)? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if self.incoming.len() > MAX_INCOMING {
                return Poll::Ready(Err(Failed::too_long()));
            }
            let read = with_incoming(|buffer| {
                let mut fresh = ReadBuf::new(buffer);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut fresh))?;
                extend(&mut self.incoming, fresh.filled());
                Poll::Ready(io::Result::Ok(fresh.filled().len()))
            });
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(Failed::gone(io::ErrorKind::UnexpectedEof))),
                Ok(_) => self.began_as = self.began_as.or(self.incoming.first().copied()),
                Err(error) => return Poll::Ready(Err(Failed::gone(error))),
            }
        }
    }

    /// Chooses the config by the name in the client's hello, of which this is another record. False if more of it is needed.
    ///
    /// With what is no hello nothing is chosen. To that rustls's connection says what there is to say, and it ends there:
    /// [`Heard`] lets nobody in whose config has not been chosen.
    fn decide(&mut self, record: Range<usize>) -> Result<bool, Failed> {
        let mut rest = &self.incoming[record];
        while let Some(hello) = &mut self.hello {
            if rest.is_empty() {
                return Ok(false);
            }
            if !hello.read_tls(&mut rest).is_ok_and(|read| read > 0) {
                return Err(Failed::too_long());
            }
            let accepted = match hello.accept() {
                Ok(None) => continue,
                Ok(Some(accepted)) if rest.is_empty() => Some(accepted),
                Ok(Some(_)) | Err(_) => None,
            };
            self.hello = None;
            if let (Some(accepted), Some(policy)) = (accepted, &self.heard.policy) {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                let is_chosen = policy.is_for(name.as_deref());
                self.heard.told().is_chosen = Some(is_chosen);
                if let Some(config) = policy.config().filter(|_| is_chosen) {
                    self.connection = Some(self.heard.connection(config)?);
                }
            }
        }
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
        let told = std::mem::take(&mut *self.heard.told());
        if !self.heard.fits(&told) {
            return Err(broken("the name that the client asks for is not the one by which it was judged"));
        }
        let Told { client, server, server_name, is_chosen: _ } = told;
        let session = Session {
            suite: suite.id,
            alpn: connection.alpn_protocol().and_then(Alpn::by_name),
            policy: Policy::digest_for(self.heard.policy.as_ref(), server_name.as_deref()),
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
        // It had room for a whole chain of certificates, and stays for as long as the connection.
        let mut raw = std::mem::take(&mut self.incoming);
        raw.shrink_to_fit();
        Ok(Records::new(session, suite, (read, secrets.rx.0), (write, secrets.tx.0), raw))
    }
}

/// Appends what has come. The room grows by doubling, as any vector's, but to no more than can ever be needed.
fn extend(incoming: &mut Vec<u8>, fresh: &[u8]) {
    let length = incoming.len() + fresh.len();
    if length > incoming.capacity() {
        let room = (2 * incoming.capacity()).min(MAX_INCOMING + MAX_READ).max(length);
        incoming.reserve_exact(room - incoming.len());
    }
    incoming.extend_from_slice(fresh);
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

/// The length of the first record, if it is all there; of all there is, if that does not begin with a record as a client of
/// TLS 1.0 and later writes it, so that rustls looks at it at once.
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
