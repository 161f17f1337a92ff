//! The certificates of a server: read with their keys, judged, and chosen by the names in them.
//!
//! What cannot be served is wrong; what some clients will not take, or soon will not, is doubtful. An expired certificate is
//! doubtful: to serve it is better than to serve nobody, and a client that minds it says so.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CertificateError, OtherError};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, SubjectAltName, SubjectKeyIdentifier,
};
use zeroize::Zeroizing;

use super::client::name;
use crate::rules::Check;

/// The text of a mistake that says what is expected of a chain.
pub(crate) const CHAIN: &str = "the absolute path of a file of certificates in PEM, the server's own first";
/// The same of a key.
pub(crate) const KEY: &str = "the absolute path of a file with one private key in PEM";

/// The beginning of each section of a file in PEM (RFC 7468).
const BEGIN: &[u8] = b"-----BEGIN ";
/// The advice where a file in PEM cannot be read.
const NOT_WHOLE: &str = "is the file whole, and has it kept its line breaks?";

/// The largest file of a chain or a key.
const LARGEST: u64 = 1 << 20;

/// The word in each kind of encrypted key in PEM: PKCS #8's (RFC 7468, section 11), and the older one's (RFC 1421).
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// The time before its end from which on a certificate is soon to expire; of a short-lived one, a third of its lifetime
/// is less. By then it should have been renewed.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Signatures that clients take no more: MD5 and SHA-1 with RSA, SHA-1 with ECDSA (RFC 9155).
const BROKEN: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"),
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"),
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"),
];

/// The purposes for which a server may use its certificate, if that names any (RFC 5280, section 4.2.1.12): TLS servers,
/// and every one.
const SERVERS: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"), ObjectIdentifier::new_unwrap("2.5.29.37.0")];

/// A certificate and its key, by their files. They are read at the start of each process: a changed file takes effect with
/// a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateFiles {
    /// The certificate in PEM, and behind it those of its issuers up to the root, which may be left out.
    pub chain: PathBuf,
    /// Its private key in PEM, without a passphrase.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// A chain and its key.
    #[must_use]
    pub fn new(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { chain: chain.into(), key: key.into() }
    }
}

/// A certificate that is served.
#[derive(Debug)]
pub(crate) struct Certificate {
    names: Vec<Box<str>>,
    file: PathBuf,
    not_before: SystemTime,
    not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// The names in it, in lower case; `*.` is one label.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// The file of its chain.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The time from which on it is valid.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The time at which it expires.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// The certificates of a server.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// In the config's order. The first is for clients that name no server, or one that is in none.
    all: Vec<Certificate>,
    /// The indices of those that have a name, as it stands in them. They are of different algorithms.
    by_name: BTreeMap<Box<str>, Vec<usize>>,
}

impl Certificates {
    /// Reads certificates with their keys, which are the list `certificates` of a section, and notes what is wrong or
    /// doubtful. `None` if one cannot be served.
    pub(crate) fn load(files: &[CertificateFiles], check: &mut Check) -> Option<Self> {
        let now = SystemTime::now();
        let (mut loaded, mut are_all_there) = (Self { all: Vec::new(), by_name: BTreeMap::new() }, true);
        for (index, files) in files.iter().enumerate() {
            check.table(&element(index), |check| match load(files, now, check) {
                Some(certificate) if are_all_there => loaded.add(certificate, check),
                Some(_) => {}
                None => are_all_there = false,
            });
        }
        (are_all_there && !loaded.all.is_empty()).then_some(loaded)
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Certificate> {
        self.all.iter()
    }

    fn add(&mut self, certificate: Certificate, check: &mut Check) {
        let index = self.all.len();
        let (mut taken, mut is_chosen) = (None, index == 0);
        for name in &certificate.names {
            let others = self.by_name.entry(name.clone()).or_default();
            let algorithm = certificate.key.key.algorithm();
            let is_same = |other: &&usize| self.all[**other].key.key.algorithm() == algorithm;
            if let Some(other) = others.iter().find(is_same) {
                taken = taken.or(Some((name.clone(), *other)));
            } else {
                others.push(index);
                is_chosen = true;
            }
        }
        if let Some((name, other)) = taken {
            let what = format!("the name {name:?} is in an earlier certificate, which is served for it");
            check.warn("chain", what, "another name").also(element_of_https(other), "the earlier one");
        } else if !is_chosen {
            check
                .warn(
                    "chain",
                    "this certificate has no name of a host, so it is never chosen",
                    "one that has",
                )
                .help("only the first serves clients that ask for no name, or for one that is in none");
        }
        self.all.push(certificate);
    }

    /// The name in the certificates by which one is chosen for a server's: that itself, or a `*` above it. `None` if it is
    /// in none.
    pub(crate) fn name_of(&self, server: &str) -> Option<&str> {
        self.found(server).map(|(name, _)| name)
    }

    fn found(&self, server: &str) -> Option<(&str, &[usize])> {
        let of_name = |name: &str| self.by_name.get_key_value(name).map(|(name, all)| (&**name, &**all));
        of_name(server).or_else(|| of_name(&format!("*.{}", server.split_once('.')?.1)))
    }

    /// The certificates for a name: those that have it, or its place below a `*`, or the first.
    fn of(&self, server: Option<&str>) -> impl Iterator<Item = &Certificate> {
        let server = server.map(str::to_ascii_lowercase);
        let found = server.and_then(|server| self.found(&server)).map(|(_, all)| all);
        found.unwrap_or(&[0]).iter().map(|index| &self.all[*index])
    }
}

/// The key of an element of the list, within its section.
fn element(index: usize) -> String {
    format!("certificates[{index}]")
}

/// The key of another element's chain, in the whole config.
fn element_of_https(index: usize) -> String {
    format!("https.{}.chain", element(index))
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &dyn SigningKey| key.choose_scheme(hello.signature_schemes()).is_some();
        let mut certificates = self.of(hello.server_name()).map(|certificate| &certificate.key);
        let first = certificates.next()?;
        // Of several the one that the client can verify: an ECDSA one, and an RSA one for old clients.
        let other = certificates.find(|other| !fits(&*first.key) && fits(&*other.key));
        Some(Arc::clone(other.unwrap_or(first)))
    }
}

// ---- one of them -----------------------------------------------------------------------------------------------

pub(super) type X509 = CertificateInner<Raw>;

fn load(files: &CertificateFiles, now: SystemTime, check: &mut Check) -> Option<Certificate> {
    let chain = load_chain(&files.chain, check);
    let key = load_key(&files.key, check);
    let (chain, key) = (chain?, key?);
    let leaf = &chain[0].1;
    let names = names(leaf);
    let shown = shown(leaf, &names);
    match match_key(&chain, &key) {
        Ok(0) => {}
        Ok(_) => {
            check
                .note("chain", "the server's own certificate is not the first of `chain`", CHAIN)
                .help("put the certificate of the key first, and behind each the one that has issued it");
            return None;
        }
        Err(rustls::Error::InconsistentKeys(_)) => {
            let also = check.path("chain");
            check
                .note("key", format!("the key does not match the certificate of {shown}"), "its private key")
                .also(also, "the certificate is here")
                .help("both must be of one renewal: `openssl x509 -pubkey -noout -in CHAIN` and `openssl pkey -pubout -in KEY` print the same");
            return None;
        }
        Err(error) => {
            check
                .note("chain", format!("the certificate of {shown} cannot be used: {}", why(&error)), CHAIN)
                .help(
                    "a server's is of version 3, with a subjectAltName: `openssl x509 -req` makes it one with `-extfile`, and \
                     `openssl req -x509` with `-addext`",
                );
            return None;
        }
    }
    if is_ca(leaf) {
        check
            .note("chain", format!("the certificate of {shown} is that of a CA"), "a server's own certificate")
            .help("clients refuse it for a server; one that signs itself is made with `-addext basicConstraints=critical,CA:FALSE`");
        return None;
    }
    let parsed: Vec<_> = chain.iter().map(|(_, x509)| x509).collect();
    check_dates(leaf, &shown, now, check);
    check_purpose(leaf, &names, &shown, check);
    check_order(&parsed, check);
    let validity = leaf.tbs_certificate().validity();
    let (not_before, not_after) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    let chain = chain.into_iter().map(|(der, _)| der).collect();
    let key = Arc::new(CertifiedKey::new(chain, key));
    Some(Certificate { names, file: files.chain.clone(), not_before, not_after, key })
}

/// The certificates in a file, each as it was and as it was read; at least one.
fn load_chain(path: &Path, check: &mut Check) -> Option<Vec<(CertificateDer<'static>, X509)>> {
    let pem = read_pem("chain", path, CHAIN, LARGEST, check)?;
    let mut chain = Vec::new();
    for (index, der) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let read = match der {
            Ok(der) => {
                X509::from_der(&der).map(|x509| (der, x509)).map_err(|error| (error.to_string(), None))
            }
            Err(error) => Err((why_no_pem(&error).to_owned(), Some(NOT_WHOLE))),
        };
        match read {
            Ok(certificate) => chain.push(certificate),
            Err((why, help)) => {
                let what = format!("certificate {} of `chain` cannot be read: {why}", index + 1);
                let violation = check.note("chain", what, CHAIN);
                if let Some(help) = help {
                    violation.help(help);
                }
                return None;
            }
        }
    }
    if chain.is_empty() {
        check.note("chain", "`chain` has no certificate", CHAIN).help(if pem.first() == Some(&0x30) {
            "it seems to be DER: `openssl x509 -inform der -in FILE -out CHAIN` makes it PEM"
        } else {
            "a certificate in PEM begins with \"-----BEGIN CERTIFICATE-----\""
        });
        return None;
    }
    Some(chain)
}

fn load_key(path: &Path, check: &mut Check) -> Option<Arc<dyn SigningKey>> {
    let pem = read_pem("key", path, KEY, LARGEST, check)?;
    if path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        check
            .warn("key", "`key` can be read by every user of this machine", "a file of mode 0640 or less")
            .help(format!("`chmod o= {}`", path.display()));
    }
    if pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        check
            .note("key", "`key` is encrypted", "one without a passphrase, for nobody is there to type it")
            .help("`openssl pkey -in KEY -out NEW` decrypts it");
        return None;
    }
    let keys: Result<Vec<_>, _> =
        PrivateKeyDer::pem_slice_iter(&pem).map(|key| key.map(Zeroizing::new)).collect();
    let (what, help) = match keys.as_deref() {
        Ok([key]) => match any_supported_type(key) {
            Ok(key) => return Some(key),
            Err(error) => (
                format!("`key` cannot be used: {error}"),
                "there are ECDSA keys of the curves P-256, P-384 and P-521, Ed25519 ones, and RSA ones of 2048 bits or more",
            ),
        },
        Ok([]) => (
            "`key` has no private key".to_owned(),
            "one in PEM begins with \"-----BEGIN PRIVATE KEY-----\", perhaps with \"RSA\" or \"EC\" in it",
        ),
        Ok(several) => (
            format!("`key` has {} private keys", several.len()),
            "leave only that of the certificate in the file",
        ),
        Err(error) => (format!("`key` cannot be read: {}", why_no_pem(error)), NOT_WHOLE),
    };
    check.note("key", what, KEY).help(help);
    None
}

/// The bytes of a file that is the value at `key`, or a note of why they cannot be had. Whoever notes that a path is not
/// absolute has done so.
pub(super) fn read_pem(
    key: &str,
    path: &Path,
    expected: &str,
    largest: u64,
    check: &mut Check,
) -> Option<Zeroizing<Vec<u8>>> {
    if !path.is_absolute() {
        return None;
    }
    // With room for all of it, so that no part is left behind in memory where the vector has grown out of it.
    let read = open(path).and_then(|file| {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = metadata.len().min(largest);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
        file.take(largest + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > largest { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    });
    let error = match read {
        Ok(bytes) if has_hidden_section(&bytes) => {
            check
                .note(key, format!("`{key}` has a \"-----BEGIN\" that does not begin a line"), expected)
                .help("a line break is missing before it, or it is blanks or a byte order mark that must go");
            return None;
        }
        Ok(bytes) => return Some(bytes),
        Err(error) => error,
    };
    let (what, help) = match error.kind() {
        io::ErrorKind::NotFound => ("is not there".to_owned(), Some("make the file, or correct the path")),
        io::ErrorKind::PermissionDenied => (
            "may not be read".to_owned(),
            Some("let the user that runs steadfast read the file and enter its directories"),
        ),
        io::ErrorKind::FileTooLarge => ("is too large to be one".to_owned(), None),
        io::ErrorKind::InvalidInput => (
            "is no regular file".to_owned(),
            Some("name one that is: it is read anew at each start and reload"),
        ),
        _ => (format!("cannot be read: {error}"), None),
    };
    let violation = check.note(key, format!("`{key}` {what}"), expected);
    if let Some(help) = help {
        violation.help(help);
    }
    None
}

/// True if a section begins within a line, where the library that reads them passes over it in silence: behind another's
/// last line, blanks or a byte order mark. One behind other text is left out as somebody wants it.
fn has_hidden_section(pem: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    pem.split(|byte| matches!(byte, b'\r' | b'\n')).any(|line| {
        let begin = line.windows(BEGIN.len()).position(|window| window == BEGIN);
        let before = &line[..begin.unwrap_or_default()];
        let text = before.strip_prefix("\u{feff}".as_bytes()).unwrap_or(before).trim_ascii();
        !before.is_empty() && (text.ends_with(b"-") || text.iter().all(is_base64))
    })
}

/// What is wrong with a file in PEM, without anything that is in it: it may be a key.
pub(super) fn why_no_pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its last section has no end",
        pem::Error::IllegalSectionStart { .. } => "the beginning of a section does not end its line",
        pem::Error::Base64Decode(_) => "its base64 is damaged",
        _ => "it is not in PEM",
    }
}

/// Opens a file to read, whatever it is.
fn open(path: &Path) -> io::Result<File> {
    // To open a pipe that nobody writes would wait for its writer otherwise (fifo(7)).
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The index of the certificate that a key belongs to, or else why it is not the first.
fn match_key(
    chain: &[(CertificateDer<'static>, X509)],
    key: &Arc<dyn SigningKey>,
) -> Result<usize, rustls::Error> {
    let matches = |(der, _): &(CertificateDer<'static>, X509)| {
        CertifiedKey::new(vec![der.clone()], Arc::clone(key)).keys_match()
    };
    matches(&chain[0])
        .map(|()| 0)
        .or_else(|error| chain.iter().position(|other| matches(other).is_ok()).ok_or(error))
}

/// An error as it is called in a message. rustls speaks of its peer's certificate; this one is ours.
fn why(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => error.to_string(),
        rustls::Error::InvalidCertificate(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// The names of hosts in a certificate, each once. Its subject has no part in this (RFC 9525, section 2).
fn names(leaf: &X509) -> Vec<Box<str>> {
    let names = extension::<SubjectAltName>(leaf).map_or(Vec::new(), |names| names.0);
    let name = |name: &GeneralName| -> Option<Box<str>> {
        match name {
            GeneralName::DnsName(name) => {
                Some(name.as_str().trim_end_matches('.').to_ascii_lowercase().into())
            }
            _ => None,
        }
    };
    let mut seen = HashSet::new();
    names.iter().filter_map(name).filter(|name| seen.insert(name.clone())).collect()
}

/// A certificate as it is called in a message.
fn shown(leaf: &X509, names: &[Box<str>]) -> String {
    match names.first() {
        Some(first) => format!("{first:?}"),
        None => format!("{:?}", name(leaf.tbs_certificate().subject())),
    }
}

fn extension<'a, T: Decode<'a> + x509_cert::der::oid::AssociatedOid>(x509: &'a X509) -> Option<T> {
    x509.tbs_certificate().get_extension::<T>().ok().flatten().map(|(_, extension)| extension)
}

/// True if it may issue others (RFC 5280, section 4.2.1.9).
pub(super) fn is_ca(x509: &X509) -> bool {
    extension::<BasicConstraints>(x509).is_some_and(|constraints| constraints.ca)
}

fn check_dates(leaf: &X509, shown: &str, now: SystemTime, check: &mut Check) {
    const HELP: &str = "renew it, put the new files in the place of these, and reload";
    let validity = leaf.tbs_certificate().validity();
    let (begin, end) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    let lifetime = end.duration_since(begin).unwrap_or_default();
    if let Ok(until) = begin.duration_since(now) {
        let what = format!("the certificate of {shown} is not valid yet: it will be in {}", in_words(until));
        check.warn("chain", what, "one that is valid").help("is this machine's clock right?");
    } else if let Ok(since) = now.duration_since(end) {
        let what = format!("the certificate of {shown} expired {} ago", in_words(since));
        check.warn("chain", what, "one that is valid").help(HELP);
    } else if let Ok(left) = end.duration_since(now)
        && left < SOON.min(lifetime / 3)
    {
        let what = format!("the certificate of {shown} expires in {}", in_words(left));
        check.warn("chain", what, "one that has been renewed by now").help(HELP);
    }
}

/// A time in days, or in hours if it is short.
pub(super) fn in_words(time: Duration) -> String {
    let (number, unit) = match (time.as_secs() / DAY.as_secs(), time.as_secs() / HOUR.as_secs()) {
        (0 | 1, hours) => (hours, "hour"),
        (days, _) => (days, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn check_purpose(leaf: &X509, names: &[Box<str>], shown: &str, check: &mut Check) {
    let has_address = || {
        let names = extension::<SubjectAltName>(leaf).map_or(Vec::new(), |names| names.0);
        names.iter().any(|name| matches!(name, GeneralName::IpAddress(_)))
    };
    if names.is_empty() && !has_address() {
        let what = format!("the certificate of {shown} has no name of a host in its subjectAltName");
        check.warn("chain", what, "one that has").help("clients look nowhere else, and refuse it");
    }
    let purposes = extension::<ExtendedKeyUsage>(leaf);
    if purposes.is_some_and(|purposes| !purposes.0.iter().any(|purpose| SERVERS.contains(purpose))) {
        let what = format!("the certificate of {shown} is not for TLS servers (extendedKeyUsage)");
        check.warn("chain", what, "one that is").help("clients refuse it");
    }
}

/// Looks along the chain. A root at its end may be there, and need not.
fn check_order(chain: &[&X509], check: &mut Check) {
    let issuer = |x509: &X509| name(x509.tbs_certificate().issuer());
    for (index, x509) in chain.iter().enumerate() {
        if BROKEN.contains(&x509.signature_algorithm().oid) && !is_issuer(x509, x509) {
            let what = format!("certificate {} of `chain` is signed with SHA-1 or MD5", index + 1);
            check.warn("chain", what, "SHA-256 or better").help("clients refuse it");
        }
    }
    if let [leaf] = chain
        && !is_issuer(leaf, leaf)
    {
        let what = format!("`chain` has no certificate of the issuer, {:?}", issuer(leaf));
        check.warn("chain", what, CHAIN).help(
            "append the certificates up to the root, which the CA gives with it (often as \"fullchain.pem\"): \
             clients that do not know the issuer refuse it",
        );
    }
    for (index, pair) in chain.windows(2).enumerate() {
        let (x509, next) = (pair[0], pair[1]);
        if is_issuer(next, x509) {
            continue;
        }
        let place = format!("certificate {} of `chain`", index + 2);
        let what = if chain.iter().any(|other| is_issuer(other, x509) && !is_issuer(x509, x509)) {
            format!("{place} is in the wrong order: it has not issued the one before it")
        } else {
            format!("{place} has not issued the one before it, whose issuer is {:?}", issuer(x509))
        };
        check.warn("chain", what, CHAIN).help(
            "put behind each certificate the one that has issued it, and nothing else: some clients refuse others",
        );
        break;
    }
}

/// True if a certificate can be that of another's issuer, by their names and keys' identifiers (RFC 5280, sections 4.1.2.4
/// and 4.2.1.1).
fn is_issuer(issuer: &X509, child: &X509) -> bool {
    let wanted = extension::<AuthorityKeyIdentifier>(child).and_then(|wanted| wanted.key_identifier);
    let found = extension::<SubjectKeyIdentifier>(issuer).map(|found| found.0);
    issuer.tbs_certificate().subject() == child.tbs_certificate().issuer()
        && (wanted.is_none() || found.is_none() || wanted == found)
}
