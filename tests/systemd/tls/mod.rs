//! TLS at the edge: what a client's one connection lives through, and what those who look at the edge find.
//!
//! Here stands the edge itself; `clients/` has programs in the languages that clients are written in.

mod busy;
mod http2;
mod idle;
mod program;
mod programs;
mod renewal;
mod scanners;
mod tickets;

use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::thread;

use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use steadfast_harness::certificates::{Certificate, is_ca};
use steadfast_harness::{Client, Failure, Load, Trust};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite;

use crate::service::{PROXY, Service, UNIT};

/// The port of the listener, in the box.
const PORT: u16 = 8443;

/// The folder of the certificates, in the box.
const CERTIFICATES: &str = "/etc/steadfast/tls";

/// A service that listens with TLS, and an authority whose certificate it has.
struct Edge {
    service: Service,
    authority: Certificate,
    trust: Trust,
    /// The authority's certificate, outside of the box, for programs.
    folder: TempDir,
}

impl Deref for Edge {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Edge {
    /// Installs and starts it, with these further lines in `[https]`, and with an upstream of `WebSockets` where [`PROXY`] leads.
    fn start(file: &str, lines: &str) -> Option<Self> {
        let edge = Self::install(file, lines)?;
        edge.ok(["systemctl", "start", UNIT]);
        Some(edge)
    }

    fn install(file: &str, lines: &str) -> Option<Self> {
        let service = Service::install(file, &https(lines))?;
        let authority = Certificate::of_itself("an authority", &[], |of| {
            is_ca(of);
            of.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        });
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("authority.pem"), authority.pem()).expect("it can be written");
        let trust = Trust::new(&authority, "localhost");
        let edge = Self { service, authority, trust, folder };
        edge.certify(&edge.issue());
        Some(edge)
    }

    /// Another certificate for the same names.
    fn issue(&self) -> Certificate {
        self.authority.issue("a server", &["localhost", "*.example.test", "127.0.0.1"], |of| {
            of.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            of.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    /// Writes a certificate and its key where the config has them, as a renewal does.
    fn certify(&self, certificate: &Certificate) {
        self.write(format!("{CERTIFICATES}/chain.pem"), certificate.pem());
        let key = format!("{CERTIFICATES}/key.pem");
        self.write(&key, certificate.key());
        self.ok(["chgrp", "steadfast", &key]);
        self.ok(["chmod", "0640", &key]);
    }

    /// The path of the authority's certificate, outside of the box.
    fn authority(&self) -> String {
        self.folder.path().join("authority.pem").display().to_string()
    }

    fn try_connect_tls(&self, trust: &Trust) -> Result<Client, Failure> {
        self.enter_network(|| Client::connect_tls(address(), trust))
    }

    /// A connection over TLS that has answered a request.
    fn secured(&self) -> Client {
        self.secured_as(&self.trust)
    }

    fn secured_as(&self, trust: &Trust) -> Client {
        let mut client = self.try_connect_tls(trust).expect("a handshake");
        assert_eq!(client.get("/").expect("it is answered").status, 200);
        client
    }

    /// Clients that keep the daemon busy over TLS.
    fn load_over_tls(&self, clients: usize, trust: &Trust) -> Load {
        self.enter_network(|| Load::over_tls(clients, address(), trust, "/"))
    }

    /// An upstream that answers what a WebSocket says with the same.
    fn echo(&self) {
        let listener = self.listen_upstream();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
    }
}

/// The tables of a config whose certificate [`Edge::certify`] writes.
fn https(lines: &str) -> String {
    format!(
        "[https]\nlisten = [\"127.0.0.1:{PORT}\"]\n\
         certificates = [{{ chain = \"{CERTIFICATES}/chain.pem\", key = \"{CERTIFICATES}/key.pem\" }}]\n{lines}\n{PROXY}"
    )
}

fn echo(stream: TcpStream) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    while let Ok(message) = socket.read() {
        if !message.is_close() && socket.send(message).is_err() {
            return;
        }
    }
}

fn address() -> SocketAddr {
    ([127, 0, 0, 1], PORT).into()
}
