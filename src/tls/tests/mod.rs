//! rustls as the client of our records.

mod carried;
mod differential;
mod halves;
mod handshakes;
pub(crate) mod notes;
mod parked;
mod refused;

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};

use rustls::client::WantsClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion,
    WantsVerifier,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::keys::{Keys, Material, Suite};
use super::session::Version;
use super::{Acceptor, Failed, Records, TlsNote, TlsStream};

/// All that rustls has.
const SUITES: [u16; 9] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8];

/// A certificate for `localhost` that is its own root, and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn new(key: &rcgen::KeyPair) -> Self {
        let params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(key).expect("it signs itself").der().clone();
        Self { certificate, key: key.serialize_der() }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

static ECDSA: LazyLock<Identity> =
    LazyLock::new(|| Identity::new(&rcgen::KeyPair::generate().expect("an ECDSA key")));
static RSA: LazyLock<Identity> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    Identity::new(&key.expect("an RSA key"))
});

/// The certificate that a suite asks for.
fn identity(suite: u16) -> &'static Identity {
    if matches!(suite, 0xc02f | 0xc030 | 0xcca8) { &RSA } else { &ECDSA }
}

fn suite(id: u16) -> &'static Suite {
    Suite::by_id(id).expect("a suite that is known")
}

/// The version that a suite belongs to.
fn versions(id: u16) -> &'static [&'static SupportedProtocolVersion] {
    static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    static TLS12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    match suite(id).version {
        Version::Tls13 => &TLS13,
        Version::Tls12 => &TLS12,
    }
}

fn provider(id: u16) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| u16::from(suite.suite()) == id);
    Arc::new(provider)
}

fn roots(identity: &Identity) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(identity.certificate.clone()).expect("a root");
    roots
}

/// A client that speaks this suite alone, and trusts this certificate alone.
fn client_that_trusts(id: u16, trusted: &Identity) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider(id))
        .with_protocol_versions(versions(id))
        .expect("its own version")
        .with_root_certificates(roots(trusted))
}

/// A server that speaks this suite alone, before it knows which clients it takes.
fn server(id: u16) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider(id))
        .with_protocol_versions(versions(id))
        .expect("its own version")
}

/// Of a server and a client that speak this suite alone.
fn configs(id: u16) -> (ServerConfig, ClientConfig) {
    let identity = identity(id);
    let server = server(id)
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], identity.key())
        .expect("key and certificate match");
    (server, client_that_trusts(id, identity).with_no_client_auth())
}

struct Client {
    tls: ClientConnection,
    io: DuplexStream,
}

impl Client {
    fn new(config: ClientConfig, io: DuplexStream) -> Self {
        let name = "localhost".try_into().expect("a name");
        Self { tls: ClientConnection::new(Arc::new(config), name).expect("a client"), io }
    }

    /// What rustls wants to send, without sending it.
    fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).expect("a Vec takes all");
        }
        out
    }

    fn seal(&mut self, data: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(data).expect("it is within its limit");
        self.take()
    }

    async fn send(&mut self, data: &[u8]) {
        let bytes = self.seal(data);
        self.io.write_all(&bytes).await.expect("the pipe takes it");
    }

    /// Reads to the end, and returns the plaintext.
    async fn receive_all(&mut self) -> Result<Vec<u8>, rustls::Error> {
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        self.io.read_to_end(&mut bytes).await.expect("the pipe gives it");
        self.give(&bytes, &mut out)?;
        Ok(out)
    }

    /// Its half of a KeyUpdate, with the request for ours.
    fn key_update(&mut self) -> Vec<u8> {
        self.tls.refresh_traffic_keys().expect("TLS 1.3");
        self.take()
    }

    fn give(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).expect("a slice gives all");
            self.tls.process_new_packets()?;
            let _ = self.tls.reader().read_to_end(out);
        }
        Ok(())
    }

    /// Reads what is there now, and returns the plaintext.
    async fn receive(&mut self) -> Result<Vec<u8>, rustls::Error> {
        let (mut bytes, mut out) = (vec![0; 1 << 16], Vec::new());
        loop {
            let n = tokio::select! {
                biased;
                n = self.io.read(&mut bytes) => n.expect("the pipe gives it"),
                () = tokio::task::yield_now() => return Ok(out),
            };
            self.give(&bytes[..n], &mut out)?;
            if n == 0 {
                return Ok(out);
            }
        }
    }

    async fn handshake(&mut self) -> Result<(), rustls::Error> {
        while self.tls.is_handshaking() || self.tls.wants_write() {
            let bytes = self.take();
            if self.io.write_all(&bytes).await.is_err() {
                return Ok(());
            }
            if self.tls.is_handshaking() {
                let mut bytes = [0; 4096];
                let n = self.io.read(&mut bytes).await.expect("the pipe gives it");
                self.give(&bytes[..n], &mut Vec::new())?;
                if n == 0 {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

type Server = TlsStream<DuplexStream>;

async fn accept(acceptor: &Acceptor, mut io: DuplexStream) -> Result<Server, Failed> {
    let mut handshake = acceptor.begin();
    let records = std::future::poll_fn(|cx| handshake.poll(cx, &mut io)).await?;
    Ok(TlsStream::new(io, records))
}

async fn pair_by(server: ServerConfig, client: ClientConfig) -> (Client, Server) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut client = Client::new(client, theirs);
    let acceptor = Acceptor::new(server);
    let (server, shaken) = tokio::join!(accept(&acceptor, ours), client.handshake());
    shaken.expect("the client is content");
    (client, server.expect("the server is content"))
}

async fn pair(suite: u16) -> (Client, Server) {
    let (server, client) = configs(suite);
    pair_by(server, client).await
}

/// To the next process and its record layer.
fn carry(server: Server) -> Server {
    let (io, note) = server.into_note().expect("it may travel");
    let bytes = postcard::to_allocvec(&note).expect("it is written");
    drop(note);
    let note: TlsNote = postcard::from_bytes(&bytes).expect("it is read");
    TlsStream::new(io, Records::from_note(note).expect("it is understood"))
}

/// What is there now; none if that is nothing.
async fn read_now(server: &mut Server) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; 1 << 16];
    tokio::select! {
        biased;
        // The pipe would now and then say that it is not ready, for the sake of other tasks.
        n = tokio::task::unconstrained(server.read(&mut bytes)) => {
            bytes.truncate(n?);
            Ok(Some(bytes))
        }
        () = std::future::ready(()) => Ok(None),
    }
}

/// True if the server would wake whoever reads.
fn is_filled(server: &mut Server) -> bool {
    let filled = tokio::task::unconstrained(std::future::poll_fn(|cx| server.poll_filled(cx)));
    std::pin::pin!(filled).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

async fn write(server: &mut Server, data: &[u8]) {
    server.write_all(data).await.expect("it is written");
    server.flush().await.expect("it is flushed");
}

/// The keys with which the client seals, the number of its next record, and the server as it was.
fn client_keys(server: Server) -> (Material, u64, Server) {
    let (io, note) = server.into_note().expect("it may travel");
    let material = Material::new(suite(note.session.suite), &note.read.material).expect("its own length");
    let seq = note.read.seq;
    (material, seq, TlsStream::new(io, Records::from_note(note).expect("it is understood")))
}

fn sealed(keys: &Keys, seq: u64, kind: u8, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    keys.seal(seq, kind, std::iter::once(plain), &mut out);
    out
}

#[tokio::test]
async fn each_suite_talks_before_and_after_two_carries() {
    for suite in SUITES {
        let (mut client, mut server) = pair(suite).await;
        for round in 0..3 {
            for size in [1, 100, 16384, 16385, 40000, 100_000] {
                let data: Vec<u8> = (0..=250).cycle().take(size).collect();
                for part in data.chunks(30000) {
                    client.send(part).await;
                }
                let mut got = vec![0; size];
                server.read_exact(&mut got).await.expect("all that was sent");
                assert!(got == data, "{suite:x} {round} {size}");
                write(&mut server, &data).await;
                assert!(client.receive().await == Ok(data), "{suite:x} {round} {size}");
            }
            server = carry(server);
        }
    }
}

#[tokio::test]
async fn goodbyes_of_both_sides() {
    for suite in SUITES {
        let (mut client, mut server) = pair(suite).await;
        server.shutdown().await.expect("it says goodbye");
        assert_eq!(client.receive().await, Ok(Vec::new()));
        assert_eq!(client.tls.reader().read(&mut [0; 1]).expect("no error"), 0, "a clean end");
        assert_eq!(server.write_all(b"more").await.expect_err("it is over").kind(), ErrorKind::BrokenPipe);
        assert!(!server.may_travel(false) && !server.may_travel(true));
        assert!(server.into_note().is_err(), "nothing to carry");

        let (mut client, mut server) = pair(suite).await;
        client.send(b"last words").await;
        client.tls.send_close_notify();
        let bytes = client.take();
        client.io.write_all(&bytes).await.expect("the pipe takes it");
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.expect("a clean end");
        assert_eq!(got, b"last words");
        write(&mut server, b"the other half is still open").await;
        assert!(!server.may_travel(false) && server.may_travel(true));
        assert!(server.into_note().is_err(), "nothing to carry");

        let (client, mut server) = pair(suite).await;
        drop(client);
        assert!(is_filled(&mut server));
        let error = server.read(&mut [0; 1]).await.expect_err("data may be missing");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}
