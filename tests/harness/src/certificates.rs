//! Certificates of every kind, right and wrong ones.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SerialNumber,
};

/// A day.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate and its key.
pub struct Certificate(CertifiedIssuer<'static, KeyPair>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.pem())
    }
}

/// What a certificate is made of: a server's, valid from yesterday on for 90 days, before `change`.
fn parameters(
    subject: &str,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("names that a certificate can have");
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, subject);
    parameters.use_authority_key_identifier_extension = true;
    parameters.is_ca = IsCa::ExplicitNoCa;
    lasts(&mut parameters, -1, 89);
    change(&mut parameters);
    parameters
}

/// Makes a certificate that of a CA.
pub fn is_ca(parameters: &mut CertificateParams) {
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

/// Makes a certificate one that is valid between two days, counted from now.
pub fn lasts(parameters: &mut CertificateParams, from: i32, to: i32) {
    let day = |days: i32| match u32::try_from(days) {
        Ok(days) => SystemTime::now() + DAY * days,
        Err(_) => SystemTime::now() - DAY * days.unsigned_abs(),
    };
    parameters.not_before = day(from).into();
    parameters.not_after = day(to).into();
}

impl Certificate {
    /// One that has signed itself.
    ///
    /// # Panics
    /// If there can be no such certificate.
    #[must_use]
    pub fn of_itself(subject: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters(subject, names, change), key).expect("it signs"))
    }

    /// One that this one has signed.
    ///
    /// # Panics
    /// If there can be no such certificate.
    #[must_use]
    pub fn issue(&self, subject: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key");
        let parameters = parameters(subject, names, change);
        Self(CertifiedIssuer::signed_by(parameters, key, &self.0).expect("it signs"))
    }

    /// The same with an RSA key.
    ///
    /// # Panics
    /// If there can be no such certificate.
    #[must_use]
    pub fn issue_rsa(&self, subject: &str, names: &[&str]) -> Self {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
        let parameters = parameters(subject, names, |_| {});
        Self(CertifiedIssuer::signed_by(parameters, key, &self.0).expect("it signs"))
    }

    /// The list of those that it has revoked, by their serial numbers, which is replaced so many days from now.
    ///
    /// # Panics
    /// If there can be no such list.
    #[must_use]
    pub fn revoke(&self, serials: &[u64], next: i32) -> String {
        let mut dates = CertificateParams::default();
        lasts(&mut dates, next - 97, next);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: dates.not_before,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: dates.not_before,
            next_update: dates.not_after,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).expect("it signs").pem().expect("it is written")
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// Its key in PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.0.key().serialize_pem()
    }
}
