//! Client certificates: by which CAs and lists of revocation they are judged, and their subjects.

use std::cmp::Reverse;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_cert::certificate::{CertificateInner, Raw, Version};
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::name::Name;

use super::certificates::{X509, in_words, is_ca, read_pem, why_no_pem};
use crate::rules::Check;

/// The text of a mistake that says what is expected of the CAs of clients.
pub(crate) const CA: &str = "the absolute path of a file of CA certificates in PEM";
/// The same of lists of revocation.
pub(crate) const CRL: &str = "the absolute path of a file of certificate revocation lists in PEM";

/// The largest file of CAs.
const LARGEST: u64 = 16 << 20;
/// The largest file of lists: a large CA's has megabytes.
const LARGEST_CRL: u64 = 256 << 20;
/// The most bytes of names of CAs that a client is sent: the field has 65,535 (RFC 5246, section 7.4.4; RFC 8446, section
/// 4.2.4), and rustls does not look.
const MOST_NAMES: usize = 60_000;
/// The extensions of a list that say which certificates it speaks of.
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const ISSUING_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");
/// The longest subject that is passed on, in bytes.
const LONGEST_SUBJECT: usize = 1024;

/// Makes the judge of client certificates of the files of a section's `client_ca` and `client_crl`, tells `policy` what it
/// judges by, and notes what is wrong or doubtful. `None` if there can be none.
///
/// A certificate is refused if its CA, or one between that and the root, has no list in `crl`, if that is given. A list that is past its time counts on:
/// otherwise nobody got in from that moment.
pub(crate) fn verifier(
    ca: &Path,
    crl: Option<&Path>,
    is_required: bool,
    provider: &Arc<CryptoProvider>,
    policy: &mut Sha256,
    check: &mut Check,
) -> Option<Arc<dyn ClientCertVerifier>> {
    policy.update([u8::from(is_required), u8::from(crl.is_some())]);
    let cas = cas(ca, policy, check);
    let lists = match crl {
        None => Some(Vec::new()),
        Some(crl) => lists(crl, cas.as_ref(), policy, check),
    };
    let roots = cas?.roots;
    // A client chooses by them, and needs none to choose.
    let are_too_many =
        roots.subjects().iter().map(|subject| subject.as_ref().len() + 2).sum::<usize>() > MOST_NAMES;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = builder.with_crls(lists?);
    let builder = if are_too_many { builder.clear_root_hint_subjects() } else { builder };
    let builder = if is_required { builder } else { builder.allow_unauthenticated() };
    match builder.build() {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            // Of the CAs there is one at least: only a list can be at fault.
            check.note("client_crl", format!("`client_crl` cannot be used: {error}"), CRL);
            None
        }
    }
}

/// Adds a part to the digest of a policy. Its length comes first, so that no other parts have the same bytes.
pub(crate) fn add_part(policy: &mut Sha256, part: &[u8]) {
    policy.update((part.len() as u64).to_be_bytes());
    policy.update(part);
}

/// The CAs of clients.
struct Cas {
    roots: RootCertStore,
    subjects: Vec<Name>,
}

fn cas(path: &Path, policy: &mut Sha256, check: &mut Check) -> Option<Cas> {
    let pem = read_pem("client_ca", path, CA, LARGEST, check)?;
    add_part(policy, &pem);
    let mut cas = Cas { roots: RootCertStore::empty(), subjects: Vec::new() };
    for (index, der) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let read = der.map_err(|error| why_no_pem(&error).to_owned()).and_then(|der| {
            let x509 = X509::from_der(&der).map_err(|error| error.to_string())?;
            cas.roots.add(der).map_err(|error| error.to_string())?;
            Ok(x509)
        });
        match read {
            Ok(x509) if !is_ca(&x509) && !is_old_root(&x509) => {
                let what = format!("certificate {} of `client_ca` is not that of a CA", index + 1);
                check.note("client_ca", what, CA).help(
                    "leave out a server's, and those of clients: they are let in by the CA that has issued them, whose own \
                     certificate has `basicConstraints=CA:TRUE`",
                );
                return None;
            }
            Ok(x509) => {
                let subject = x509.tbs_certificate().subject().clone();
                let end = x509.tbs_certificate().validity().not_after.to_system_time();
                if let Ok(since) = SystemTime::now().duration_since(end) {
                    let what =
                        format!("the CA {:?} in `client_ca` expired {} ago", name(&subject), in_words(since));
                    check.warn("client_ca", what, "one that is valid").help(
                        "its clients are still let in: leave it out, or put the renewed one in its place",
                    );
                }
                if !cas.subjects.contains(&subject) {
                    cas.subjects.push(subject);
                }
            }
            Err(error) => {
                let what = format!("certificate {} of `client_ca` cannot be used: {error}", index + 1);
                check.note("client_ca", what, CA);
                return None;
            }
        }
    }
    if cas.subjects.is_empty() {
        check.note("client_ca", "`client_ca` has no certificate", CA);
        return None;
    }
    Some(cas)
}

/// True for one of X.509's first version, which has no word for a CA, that has signed itself.
fn is_old_root(x509: &X509) -> bool {
    let certificate = x509.tbs_certificate();
    certificate.version() == Version::V1 && certificate.subject() == certificate.issuer()
}

fn lists(
    path: &Path,
    cas: Option<&Cas>,
    policy: &mut Sha256,
    check: &mut Check,
) -> Option<Vec<CertificateRevocationListDer<'static>>> {
    let pem = read_pem("client_crl", path, CRL, LARGEST_CRL, check)?;
    add_part(policy, &pem);
    let mut lists = Vec::new();
    for (index, der) in CertificateRevocationListDer::pem_slice_iter(&pem).enumerate() {
        let read = der
            .map_err(|error| why_no_pem(&error).to_owned())
            .and_then(|der| List::read(der).map_err(|error| error.to_string()));
        match read {
            Ok(list) => {
                let place = lists.iter().find(|(_, other): &&(_, List)| other.scope == list.scope);
                lists.push((place.map_or(index, |(place, _)| *place), list));
            }
            Err(error) => {
                let what = format!("list {} of `client_crl` cannot be read: {error}", index + 1);
                check.note("client_crl", what, CRL);
                return None;
            }
        }
    }
    if lists.is_empty() {
        check.note("client_crl", "`client_crl` has no list", CRL);
        return None;
    }
    // Of those that speak of the same certificates the first counts: that is to be the newest. Others stay where they are.
    lists.sort_by_key(|(place, list)| (*place, Reverse(list.since)));
    let mut last = None;
    for (place, list) in &lists {
        if last.replace(place) != Some(place) {
            list.check_age(check);
        }
    }
    let subjects = cas.map_or(&[][..], |cas| &cas.subjects);
    let has_list = |ca: &Name| lists.iter().any(|(_, list)| list.scope.issuer == *ca);
    for subject in subjects.iter().filter(|subject| !has_list(subject)) {
        let what = format!("`client_crl` has no list of the CA {:?}", name(subject));
        check
            .warn("client_crl", what, "a list of each CA")
            .help("add its list, though it be empty: until then nobody is let in with a certificate of it, or of a CA below it");
    }
    Some(lists.into_iter().map(|(_, list)| list.der).collect())
}

/// A list of revocation.
struct List {
    scope: Scope,
    since: Duration,
    /// The time by which there is to be a newer one.
    next: Option<SystemTime>,
    der: CertificateRevocationListDer<'static>,
}

/// The certificates that a list speaks of.
#[derive(PartialEq)]
struct Scope {
    issuer: Name,
    /// The key of that name (RFC 5280, section 5.2.1), and a part of what it has issued (section 5.2.5): each as it is written.
    extensions: [Option<Vec<u8>>; 2],
}

impl List {
    fn read(der: CertificateRevocationListDer<'static>) -> Result<Self, x509_cert::der::Error> {
        let list = CertificateList::<Raw>::from_der(&der)?.tbs_cert_list;
        let extensions = [AUTHORITY_KEY, ISSUING_POINT].map(|id| {
            let found = list.crl_extensions.iter().flatten().find(|extension| extension.extn_id == id)?;
            Some(found.extn_value.as_bytes().to_vec())
        });
        Ok(Self {
            since: list.this_update.to_unix_duration(),
            next: list.next_update.map(|next| next.to_system_time()),
            scope: Scope { issuer: list.issuer, extensions },
            der,
        })
    }

    fn check_age(&self, check: &mut Check) {
        if let Some(since) = self.next.and_then(|next| SystemTime::now().duration_since(next).ok()) {
            let issuer = name(&self.scope.issuer);
            let what =
                format!("the list of {issuer:?} in `client_crl` was to be replaced {} ago", in_words(since));
            check
                .warn("client_crl", what, "the latest list")
                .help("fetch the new one, and reload: a certificate revoked since is still believed");
        }
    }
}

/// The subject of a certificate as RFC 4514 writes it, `CN=alice,O=Example`, in ASCII: other characters are escaped, as that
/// allows. `None` if it cannot be read, is empty, or has more than 1,024 bytes.
pub(crate) fn subject(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let x509 = CertificateInner::<Raw>::from_der(certificate).ok()?;
    let subject = name(x509.tbs_certificate().subject());
    (1..=LONGEST_SUBJECT).contains(&subject.len()).then(|| subject.into())
}

/// A name as RFC 4514 writes it, in ASCII.
pub(super) fn name(name: &Name) -> String {
    let mut ascii = String::new();
    for char in name.to_string().chars() {
        if char.is_ascii() {
            ascii.push(char);
        } else {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                _ = write!(ascii, "\\{byte:02X}");
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    //! Subjects, and what makes a policy.

    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};
    use steadfast_harness::certificates::{Certificate, is_ca};

    use super::*;

    fn subject_of(names: &[(DnType, &str)]) -> Option<Box<str>> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        for (name, value) in names {
            parameters.distinguished_name.push(name.clone(), DnValue::Utf8String((*value).to_owned()));
        }
        let key = KeyPair::generate().expect("a key");
        subject(parameters.self_signed(&key).expect("it signs itself").der())
    }

    #[test]
    fn a_subject_is_written_as_rfc_4514_does_in_ascii_alone() {
        let alice =
            [(DnType::CountryName, "SE"), (DnType::OrganizationName, "A, B"), (DnType::CommonName, "alice")];
        assert_eq!(subject_of(&alice).as_deref(), Some("CN=alice,O=A\\, B,C=SE"));
        for (name, written) in [
            ("Bj\u{f6}rn", "CN=Bj\\C3\\B6rn"),
            (" #+\"<>;\\ ", "CN=\\ #\\+\\\"\\<\\>\\;\\\\\\ "),
            ("#", "CN=\\#"),
            ("a\r\nX-Admin: yes\u{7f}\0", "CN=a\\0d\\0aX-Admin: yes\\7f\\00"),
        ] {
            let found = subject_of(&[(DnType::CommonName, name)]).expect("a subject");
            assert_eq!(&*found, written);
            assert!(found.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{found}");
        }
    }

    /// The digest of a policy by these two files.
    fn policy(ca: &str, crl: Option<&str>) -> Vec<u8> {
        judge(ca, crl).1
    }

    /// The judge of clients by these two files, and the digest of its policy.
    fn judge(ca: &str, crl: Option<&str>) -> (Arc<dyn ClientCertVerifier>, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("it is written");
            path
        };
        let crl = crl.map(|text| file("crl", text));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (mut policy, mut check) = (Sha256::new(), Check::default());
        let verifier = verifier(&file("ca", ca), crl.as_deref(), true, &provider, &mut policy, &mut check);
        (verifier.unwrap_or_else(|| panic!("{check:?}")), policy.finalize().to_vec())
    }

    #[test]
    fn a_client_is_let_in_if_each_ca_above_it_has_a_list() {
        let root = Certificate::of_itself("Root", &[], is_ca);
        let between = root.issue("CA", &[], is_ca);
        let for_clients = |parameters: &mut CertificateParams| {
            parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        };
        let client = CertificateDer::from(between.issue("alice", &[], for_clients).der());
        let is_let_in = |lists: &[&Certificate]| {
            let lists: String = lists.iter().map(|ca| ca.revoke(&[], 7)).collect();
            let (judge, _) = judge(&root.pem(), Some(&lists));
            let now = rustls::pki_types::UnixTime::now();
            judge.verify_client_cert(&client, &[between.der().into()], now).is_ok()
        };
        assert!(is_let_in(&[&root, &between]));
        assert!(!is_let_in(&[&between]), "the root's is missing");
        assert!(!is_let_in(&[&root]), "its own CA's is missing");
    }

    #[test]
    fn of_several_lists_of_a_ca_the_newest_counts_wherever_it_stands() {
        let ca = Certificate::of_itself("CA", &[], is_ca);
        let client = CertificateDer::from(
            ca.issue("alice", &[], |parameters| {
                parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
                parameters.serial_number = Some(6.into());
            })
            .der(),
        );
        let [old, new] = [ca.revoke(&[], 1), ca.revoke(&[6], 7)];
        for lists in [old.clone() + &new, new + &old] {
            let (judge, _) = judge(&ca.pem(), Some(&lists));
            let now = rustls::pki_types::UnixTime::now();
            assert!(judge.verify_client_cert(&client, &[], now).is_err());
        }
    }

    /// The field that has them in a handshake holds no more than 65,535 bytes.
    #[test]
    fn the_names_of_many_cas_are_not_sent() {
        let pem = |count: usize| -> String {
            (0..count).map(|n| Certificate::of_itself(&format!("{n:01000}"), &[], is_ca).pem()).collect()
        };
        let hints = |pem: &str| judge(pem, None).0.root_hint_subjects().len();
        assert_eq!(hints(&pem(3)), 3);
        assert_eq!(hints(&pem(64)), 0);
    }

    #[test]
    fn a_policy_is_another_one_if_the_same_bytes_are_in_other_files() {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = rcgen::CertifiedIssuer::self_signed(parameters, key).expect("it signs itself");
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2120, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let crl = list.signed_by(&ca).expect("it signs").pem().expect("it is written");
        let both = ca.pem() + &crl;
        let policies = [policy(&both, None), policy(&ca.pem(), Some(&crl)), policy(&both, Some(&crl))];
        assert_eq!(policies[1], policy(&ca.pem(), Some(&crl)));
        assert!(policies[0] != policies[1] && policies[1] != policies[2] && policies[2] != policies[0]);
    }

    #[test]
    fn a_subject_that_is_none_or_too_long_is_not_passed_on() {
        assert_eq!(subject_of(&[]), None);
        assert!(subject_of(&[(DnType::CommonName, &"a".repeat(1021))]).is_some());
        assert_eq!(subject_of(&[(DnType::CommonName, &"a".repeat(1022))]), None);
        assert_eq!(subject(&CertificateDer::from(vec![0x30, 0])), None);
    }
}
