//! `[https]`: which certificate is shown, who is let in, and where a request goes. Here stands the site that they all ask.

mod clients;
mod plain;
mod shown;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};

use axum::http::{Request, Response};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use steadfast_harness::certificates::{Certificate, is_ca};
use steadfast_harness::http2::{ask_http2, ask_http2_over_tls};
use steadfast_harness::{Daemon, PATIENCE, Signal, wait_until};
use tempfile::TempDir;

use crate::process::{BINARY, serving};

static CA: LazyLock<Certificate> = LazyLock::new(|| Certificate::of_itself("CA", &[], is_ca));

/// A daemon with `[https]`, and the folder of its certificates.
struct Site {
    daemon: Daemon,
    files: TempDir,
}

impl Site {
    /// With these certificates, these further lines in `[https]`, of which `~/` is the folder, these other files in it, and
    /// what stands behind the section.
    fn start(certificates: &[&Certificate], https: &str, files: &[(&str, &str)], rest: &str) -> Self {
        Self::start_with("", certificates, https, files, rest)
    }

    /// The same, with these lines before all sections.
    fn start_with(
        first: &str,
        certificates: &[&Certificate],
        https: &str,
        files: &[(&str, &str)],
        rest: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("it is written");
        };
        let mut list = Vec::new();
        for (index, certificate) in certificates.iter().enumerate() {
            write(&format!("{index}.pem"), &(certificate.pem() + &CA.pem()));
            write(&format!("{index}.key"), &certificate.key());
            list.push(format!("{{ chain = \"~/{index}.pem\", key = \"~/{index}.key\" }}"));
        }
        for (name, text) in files {
            write(name, text);
        }
        let config = format!(
            "http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.1:0\"]\n{first}\n[https]\nlisten = [\"127.0.0.1:0\"]\n\
             certificates = [{}]\n{https}\n{rest}",
            list.join(", ")
        );
        let daemon = Daemon::spawn(BINARY, &config.replace("~/", &format!("{}/", folder.path().display())));
        serving(&daemon);
        Self { daemon, files: folder }
    }

    /// Puts other files in the place of the first certificate's, and asks for a reload.
    fn renew(&self, chain: &Certificate, key: &Certificate) {
        self.write("0.pem", &(chain.pem() + &CA.pem()));
        self.write("0.key", &key.key());
        self.daemon.signal(Signal::HUP);
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.files.path().join(name), text).expect("it is written");
    }

    /// Puts another text in the place of one in the config.
    fn edit(&self, text: &str, other: &str) {
        let file = self.daemon.folder().join("config.toml");
        let config = std::fs::read_to_string(&file).expect("it is there");
        assert!(config.contains(text), "{text} is not in\n{config}");
        std::fs::write(&file, config.replace(text, other)).expect("it is written");
    }

    /// Reloads, and waits until the new worker has all connections.
    fn reload(&self) {
        self.daemon.signal(Signal::HUP);
        self.daemon.wait_for_line("that it reloads", |line| line.contains("takes over from worker"));
        wait_until("the old worker to end", || (self.daemon.workers().len() == 1).then_some(()));
    }

    /// The addresses without TLS, and with it.
    fn addresses(&self) -> [SocketAddr; 2] {
        let addresses = self.daemon.addresses();
        let of_http: Vec<_> = addresses
            .iter()
            .filter(|listening| listening.child == "http")
            .map(|listening| listening.address.parse().expect("a TCP address"))
            // A later worker says the same again.
            .take(2)
            .collect();
        of_http.try_into().expect("two of them")
    }

    fn plain(&self, request: &str) -> String {
        let mut client = TcpStream::connect(self.addresses()[0]).expect("it listens");
        client.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it is answered");
        answer
    }

    /// The answer to a request over HTTP/2, in which the handshake ends.
    fn over_http2(&self, asked: &Asked<'_>, request: Request<()>) -> io::Result<Response<Vec<u8>>> {
        let socket = TcpStream::connect(self.addresses()[1])?;
        ask_http2_over_tls(socket, asked.config(), asked.server_name(), request)
    }

    /// The same without TLS.
    fn over_plain_http2(&self, request: Request<()>) -> Response<Vec<u8>> {
        let socket = TcpStream::connect(self.addresses()[0]).expect("it listens");
        ask_http2(socket, request).expect("it is answered")
    }

    fn client(&self, asked: &Asked<'_>) -> io::Result<Secured> {
        asked.client(self.addresses()[1])
    }
}

type Secured = StreamOwned<ClientConnection, TcpStream>;

static BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// How a client asks.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    versions: &'a [&'static SupportedProtocolVersion],
    protocols: &'a [&'a str],
    certificate: Option<&'a Certificate>,
    /// It knows no other signatures than RSA's.
    is_of_rsa: bool,
}

impl<'a> Asked<'a> {
    fn of(name: &'a str) -> Self {
        Self { name, versions: BOTH, protocols: &[], certificate: None, is_of_rsa: false }
    }

    fn by(self, certificate: &'a Certificate) -> Self {
        Self { certificate: Some(certificate), ..self }
    }

    fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.name.to_owned()).expect("a name")
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(CA.der())).expect("a root");
        let mut provider = aws_lc_rs::default_provider();
        if self.is_of_rsa {
            provider
                .cipher_suites
                .retain(|suite| suite.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions)
            .expect("it has suites of both")
            .with_root_certificates(roots);
        let mut config = match self.certificate {
            None => config.with_no_client_auth(),
            Some(certificate) => {
                let key = PrivateKeyDer::from_pem_slice(certificate.key().as_bytes()).expect("a key");
                config.with_client_auth_cert(vec![certificate.der().into()], key).expect("they match")
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A connection whose handshake has ended. In TLS 1.3 a client does not know yet if its certificate was taken.
    fn client(&self, address: SocketAddr) -> io::Result<Secured> {
        self.client_by(self.config().into(), address)
    }

    /// The same, of a client that may have been here before.
    fn client_by(&self, config: Arc<ClientConfig>, address: SocketAddr) -> io::Result<Secured> {
        let connection = ClientConnection::new(config, self.server_name()).expect("a client");
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

/// The answer to a request after which the connection closes.
fn exchange(stream: &mut Secured, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // After the close_notify the socket may be reset.
    match stream.read_to_end(&mut answer) {
        Ok(_) => Ok(String::from_utf8(answer).expect("text")),
        Err(error) => Err(error),
    }
}

/// The answer to a request after which the connection goes on; its body is [`HELLO`]'s.
fn say_hello(stream: &mut Secured, host: &str) -> io::Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\nhello") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    Ok(())
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// The same over HTTP/2.
fn get_http2(uri: &str) -> Request<()> {
    Request::get(uri).body(()).expect("a request")
}

fn shown(stream: &Secured) -> Vec<u8> {
    stream.conn.peer_certificates().expect("it has shown one")[0].to_vec()
}

const HELLO: &str = "[[route]]\npath = \"/*\"\nrespond = \"hello\"\n";
