//! `[https]`: the listeners over TLS, their certificates, and what is asked of clients.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ServerConfig};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, SupportedCipherSuite};
use sha2::{Digest, Sha256};

use super::routes::check::check_host;
use super::routes::{host, proxy};
use crate::rules::Check;
use crate::server::address::{self, Address};
use crate::tls::certificates::{CHAIN, Certificate, CertificateFiles, Certificates, KEY};
use crate::tls::{Acceptor, TicketKeys, Tickets, client, gather_randomness};

/// The text of a mistake that says what is expected of `hsts`.
pub(crate) const HSTS: &str = "directives such as \"max-age=31536000\"";
/// The same of `client_subject_header`.
pub(crate) const SUBJECT_HEADER: &str =
    "the name of a header that nothing else sets, such as \"X-Client-Subject\"";

/// `[https]`: listeners over TLS, to which every limit of `[http]` applies as well, and the same routes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The addresses to listen on; `127.0.0.1:8443` by default.
    pub listen: Vec<Address>,
    /// The certificates; at least one. A client is shown one that has the name that it asks for, as it stands or by a `*`
    /// for its first label; of several with one name, one that it can verify. Who asks for no name, or for one that is in
    /// none, is shown the first.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that is spoken; TLS 1.2 by default.
    pub min_version: TlsVersion,
    /// Lets clients choose HTTP/2 (by ALPN); on by default.
    pub http2: bool,
    /// The CAs whose certificates clients are asked for, in PEM; nobody is asked by default. A host whose clients must have
    /// one answers requests that come without TLS with 403, but for those of a CA (`redirect_to_https`).
    pub client_ca: Option<PathBuf>,
    /// Says if clients may go without one; [`ClientAuth::Required`] if there is a `client_ca` and nothing else is given.
    pub client_auth: Option<ClientAuth>,
    /// Lists of certificates that are revoked, in PEM, one at least of each CA; none by default.
    pub client_crl: Option<PathBuf>,
    /// The hosts whose clients are asked for certificates, written as those of a [`Route`](super::routes::Route); all if
    /// none is given. A request to a host on a connection that was opened to one of the other kind is answered with 421.
    pub client_hosts: Vec<String>,
    /// The field in which handlers and upstreams get the subject of the client's certificate (RFC 4514); none by default.
    /// If it is given, no field of that name that comes in a request's head reaches them, on whatever listener. It has
    /// letters, digits and `-` alone.
    pub client_subject_header: Option<HeaderName>,
    /// The `Strict-Transport-Security` of the answer to every request over TLS; none by default.
    pub hsts: Option<HeaderValue>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    #[default]
    V1_2,
    /// TLS 1.3, RFC 8446.
    V1_3,
}

/// Says if a client may do without a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientAuth {
    /// Clients without a valid one are refused.
    #[default]
    Required,
    /// A client may show none. One that is not valid is refused all the same.
    Optional,
}

/// The address that clients which came without TLS are sent to: the first that others than this machine reach, or else the
/// first.
pub(in crate::daemon) fn redirect_to(addresses: &[Address]) -> Option<SocketAddr> {
    let tcp = |address: &Address| match address {
        Address::Tcp(address) => Some(*address),
        Address::Unix(_) | Address::Inherited(_) => None,
    };
    let mut all = addresses.iter().filter_map(tcp);
    all.clone().find(|address| !address.ip().is_loopback()).or_else(|| all.next())
}

impl Config {
    /// These certificates, all else as it is unless given.
    #[must_use]
    pub fn new(certificates: Vec<CertificateFiles>) -> Self {
        Self {
            listen: vec![Address::Tcp(([127, 0, 0, 1], 8443).into())],
            certificates,
            min_version: TlsVersion::default(),
            http2: true,
            client_ca: None,
            client_auth: None,
            client_crl: None,
            client_hosts: Vec::new(),
            client_subject_header: None,
            hsts: None,
        }
    }

    /// Checks the section, but for the files that it names.
    pub(in crate::daemon) fn check(&self, check: &mut Check) {
        if self.listen.is_empty() {
            check
                .note("listen", "`listen` is empty", "at least one address")
                .help("without the section `[https]` there is no TLS");
        }
        address::check_each(&self.listen, check);
        if self.certificates.is_empty() {
            check.note("certificates", "`[https]` has no certificate", "a list of `{ chain, key }` in it");
        }
        for (key, path, expected) in self.files() {
            let name = key.rsplit('.').next().unwrap_or(&key);
            if !path.is_absolute() {
                check
                    .note(&key, format!("`{name}` is not absolute"), expected)
                    .help("a service has no working directory of its own");
            }
        }
        if self.client_ca.is_none() {
            let without = [
                ("client_auth", self.client_auth.is_some()),
                ("client_crl", self.client_crl.is_some()),
                ("client_hosts", !self.client_hosts.is_empty()),
                ("client_subject_header", self.client_subject_header.is_some()),
            ];
            for (key, _) in without.iter().filter(|(_, is_given)| *is_given) {
                check
                    .note(key, format!("`{key}` is given without `client_ca`"), "both, or none")
                    .help("without `client_ca` no client is asked for a certificate");
            }
        }
        for (index, host) in self.client_hosts.iter().enumerate() {
            let key = format!("client_hosts[{index}]");
            check_host(host, &key, "client_hosts", "every client is asked then", check);
        }
        if let Some(name) = &self.client_subject_header {
            if !proxy::headers::is_free(name) {
                let what = format!("`{name}` has a meaning of its own");
                check.note("client_subject_header", what, SUBJECT_HEADER);
            }
            // Of such a name one with another mark is not the same here, but may be behind the upstream.
            let is_mark = |char: &char| !char.is_ascii_alphanumeric() && *char != '-';
            if let Some(mark) = name.as_str().chars().find(is_mark) {
                let what = format!("`client_subject_header` has {mark:?}");
                check.note("client_subject_header", what, SUBJECT_HEADER).help(
                    "with letters, digits and \"-\" alone: upstreams may take other marks for each other, and so a client's \
                     field for this one",
                );
            }
        }
        if let Some(hsts) = &self.hsts {
            check_hsts(&String::from_utf8_lossy(hsts.as_bytes()), check);
        }
    }

    /// The files that it names, by their keys within the section, and what is expected of each.
    pub(crate) fn files(&self) -> Vec<(String, &Path, &'static str)> {
        let pairs = self.certificates.iter().enumerate().flat_map(|(index, files)| {
            let key = |name| format!("certificates[{index}].{name}");
            [(key("chain"), &*files.chain, CHAIN), (key("key"), &*files.key, KEY)]
        });
        let client =
            [("client_ca", &self.client_ca, client::CA), ("client_crl", &self.client_crl, client::CRL)];
        let client = client
            .into_iter()
            .filter_map(|(key, path, expected)| Some((key.to_owned(), path.as_deref()?, expected)));
        pairs.chain(client).collect()
    }

    /// Reads the files, and notes what is wrong or doubtful. `None` if something is wrong.
    pub(crate) fn load(&self, check: &mut Check) -> Option<Tls> {
        let provider = Arc::new(provider());
        let certificates = Certificates::load(&self.certificates, check);
        let mut policy = Sha256::new();
        let clients = match &self.client_ca {
            None => None,
            Some(ca) => {
                let crl = self.client_crl.as_deref();
                Some(client::verifier(ca, crl, self.is_required(), &provider, &mut policy, check)?)
            }
        };
        for host in &self.client_hosts {
            client::add_part(&mut policy, host.as_bytes());
        }
        let certificates = Arc::new(certificates?);
        self.check_names(&certificates, check);
        let config = |verifier| self.server_config(&provider, &certificates, verifier);
        Some(Tls {
            asking: clients.map(config),
            others: config(Arc::new(NoClientAuth)),
            asked: self.asked(),
            policy: policy.finalize().into(),
            certificates,
        })
    }

    /// Notes each host whose clients are never asked for a certificate, as they do not get so far.
    fn check_names(&self, certificates: &Certificates, check: &mut Check) {
        let is_shown = |claim: &str| {
            let mut names = certificates.iter().flat_map(Certificate::names);
            certificates.name_of(claim).is_some()
                || claim.starts_with('.') && names.any(|name| name.ends_with(claim))
        };
        for (index, host) in self.client_hosts.iter().enumerate() {
            let key = format!("client_hosts[{index}]");
            let Ok(claim) = host::claim(host) else { continue };
            if claim.starts_with('[') || claim.parse::<Ipv4Addr>().is_ok() {
                check.warn(&key, format!("{host:?} is an address"), "the name of a host").help(
                    "a handshake names no address (RFC 6066, section 3), so no client is asked for a certificate, and \
                     requests to it are answered with 421",
                );
            } else if !is_shown(&claim) {
                check
                    .warn(&key, format!("no certificate has the name {host:?}"), "a name that one has")
                    .help("its clients are shown the first certificate, which is not good for it: correct the name, or have it in one");
            }
        }
    }

    /// True if clients that are asked for a certificate must have one.
    pub(crate) fn is_required(&self) -> bool {
        self.client_auth.unwrap_or_default() == ClientAuth::Required
    }

    /// The hosts whose clients are asked for certificates.
    pub(crate) fn asked(&self) -> Asked {
        match &self.client_ca {
            None => Asked::Nobody,
            Some(_) if self.client_hosts.is_empty() => Asked::Everybody,
            Some(_) => Asked::Of(Arc::new(
                self.client_hosts.iter().filter_map(|host| host::claim(host).ok()).collect(),
            )),
        }
    }

    fn server_config(
        &self,
        provider: &Arc<CryptoProvider>,
        certificates: &Arc<Certificates>,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> ServerConfig {
        let versions: &[_] = match self.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)
            .unwrap_or_else(|error| unreachable!("the provider has suites of both versions: {error}"))
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::clone(certificates) as _);
        // Ours is the order of what is fast here; all of it is as safe.
        config.ignore_client_order = true;
        // Sessions are resumed with tickets, or not at all: what is kept here would be gone after a restart.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let protocols: &[&[u8]] = if self.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// Notes what browsers do not understand: they heed nothing of it then (RFC 6797, section 8.1).
fn check_hsts(hsts: &str, check: &mut Check) {
    // Section 6.1: divided by `;`, and none of them twice.
    let mut names = BTreeSet::new();
    let mut directives = hsts.split(';').map(str::trim).filter(|directive| !directive.is_empty());
    let fault = directives.find_map(|directive| {
        let (name, value) = match directive.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
            None => (directive, None),
        };
        if directive.contains(',') {
            let right = hsts.replace(',', ";");
            Some((format!("{directive:?}"), format!("directives are divided by \";\": write {right:?}")))
        } else if let Some(help) = help_with(name, value) {
            Some((format!("{directive:?}"), help))
        } else if !names.insert(name.to_ascii_lowercase()) {
            Some((format!("{name:?} twice"), "leave only one of them".to_owned()))
        } else {
            None
        }
    });
    if let Some((what, help)) = fault {
        check.note("hsts", format!("`hsts` has {what}"), HSTS).help(help);
    } else if !names.contains("max-age") {
        check.note("hsts", "`hsts` has no `max-age`", HSTS);
    }
}

/// Advice on a directive that is wrong by itself.
fn help_with(name: &str, value: Option<&str>) -> Option<String> {
    let is_number = |text: &str| {
        let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if name.eq_ignore_ascii_case("max-age") && !value.is_some_and(is_number) {
        Some("`max-age` is a number of seconds: write \"max-age=31536000\" for a year".to_owned())
    } else if name.eq_ignore_ascii_case("includesubdomains") && value.is_some() {
        Some(format!("write {name:?}, without a value"))
    } else if HeaderName::from_bytes(name.as_bytes()).is_err() {
        Some("write the name of a directive, such as \"includeSubDomains\"".to_owned())
    } else {
        None
    }
}

/// What handshakes are made with: AWS-LC's suites, with AES-128 first, which takes the least time.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_first = |suite: &SupportedCipherSuite| {
        use CipherSuite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            TLS13_AES_128_GCM_SHA256,
        };
        matches!(
            suite.suite(),
            TLS13_AES_128_GCM_SHA256
                | TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    provider.cipher_suites.sort_by_key(|suite| !is_first(suite));
    provider
}

/// The hosts whose clients are asked for certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    #[default]
    Nobody,
    Everybody,
    /// Those of these hosts, as they are claimed.
    Of(Arc<BTreeSet<String>>),
}

impl Asked {
    /// True if the clients of a host are asked; of a name that a client asks for in its handshake, or of a request's host.
    pub(crate) fn has(&self, host: Option<&str>) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Of(hosts) => host.is_some_and(|host| host::claims(host).any(|claim| hosts.contains(claim))),
        }
    }
}

/// What `[https]` is served with: the files, read.
#[derive(Debug)]
pub(crate) struct Tls {
    /// For hosts whose clients are asked for a certificate; `None` if there are none.
    asking: Option<ServerConfig>,
    /// For all others.
    others: ServerConfig,
    asked: Asked,
    /// A digest of what is asked of clients, and of how they are judged.
    policy: [u8; 32],
    certificates: Arc<Certificates>,
}

/// What clients resume with, but for those who are asked for a certificate: a ticket would stand in for it also when it has
/// expired, and as clients who resume get new tickets, for ever.
#[derive(Clone, Debug)]
pub(super) struct Resumption(Arc<Tickets>);

impl Resumption {
    /// With no keys yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Tickets::new()))
    }

    /// The keys of the tickets, for the next process.
    pub(super) fn keys(&self) -> TicketKeys {
        self.0.keys()
    }

    /// Wipes, until it is dropped, the keys that are too old.
    pub(super) async fn keep_tidy(&self) -> Infallible {
        self.0.keep_tidy().await
    }

    /// Takes the keys of an earlier process.
    pub(super) fn inherit(&self, keys: TicketKeys) {
        self.0.inherit(keys);
    }
}

impl Tls {
    /// What accepts connections, also of clients that come again.
    pub(super) fn acceptor(self, resumption: &Resumption) -> Acceptor {
        let mut others = self.others;
        others.ticketer = Arc::clone(&resumption.0) as _;
        gather_randomness();
        // 0 is that of clients who are asked for nothing.
        let policy = self.policy.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)) | 1;
        match (self.asking, self.asked) {
            (None, _) => Acceptor::new(others),
            (Some(asking), Asked::Everybody) => Acceptor::new(asking).with_policy(policy, None, |_| true),
            (Some(asking), asked) => {
                Acceptor::new(others).with_policy(policy, Some(asking), move |name| asked.has(name))
            }
        }
    }

    /// The certificates, for those who show them.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }
}

#[cfg(test)]
mod tests {
    //! What browsers are told.

    use super::*;

    /// What is wrong with it.
    fn wrong(hsts: &str) -> Option<String> {
        let mut check = Check::default();
        check_hsts(hsts, &mut check);
        check.finish().err().map(|violations| violations.to_string())
    }

    #[test]
    fn browsers_are_told_what_they_understand() {
        for right in [
            "max-age=31536000",
            "max-age=0",
            "Max-Age = \"31536000\" ; includeSubDomains; preload",
            "includeSubDomains; ;max-age=1;",
            "max-age=1; a=b",
        ] {
            assert_eq!(wrong(right), None, "{right}");
        }
        for (hsts, what, help) in [
            ("", "has no `max-age`", ""),
            ("31536000", "has no `max-age`", ""),
            ("max-age", "has \"max-age\"", "a number of seconds: write \"max-age=31536000\""),
            ("max-age=", "has \"max-age=\"", "a number of seconds"),
            ("max-age=\"\"", "has \"max-age=", "a number of seconds"),
            ("max-age=\"1", "has \"max-age=", "a number of seconds"),
            ("max-age=1y", "has \"max-age=1y\"", "a number of seconds"),
            ("includeSubDomains; max-age=-1", "has \"max-age=-1\"", "a number of seconds"),
            (
                "max-age=1, includeSubDomains",
                "has \"max-age=1, includeSubDomains\"",
                "write \"max-age=1; includeSubDomains\"",
            ),
            (
                "max-age=1; includeSubDomains=true",
                "has \"includeSubDomains=true\"",
                "write \"includeSubDomains\"",
            ),
            ("max-age=1 includeSubDomains", "has \"max-age=1 includeSubDomains\"", "a number of seconds"),
            ("max-age=1; include sub", "has \"include sub\"", "the name of a directive"),
            ("max-age=1; MAX-AGE=2", "has \"MAX-AGE\" twice", "only one"),
        ] {
            let said = wrong(hsts).unwrap_or_else(|| panic!("{hsts:?} is taken"));
            assert!(said.contains(&format!("`hsts` {what}")) && said.contains(help), "{hsts:?}: {said}");
        }
    }
}
