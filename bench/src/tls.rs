//! TLS: the certificates that all servers have, and the clients' side of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

/// The host that the certificates are for.
pub(crate) const HOST: &str = "localhost";

/// An authority that the clients trust.
pub(crate) struct Authority {
    roots: Arc<RootCertStore>,
    /// It signs for the servers, and is certified by one that no server sends: so are most.
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate, as files in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// With the authority's, as certbot's `fullchain.pem`.
    pub(crate) chain: PathBuf,
    /// Beside the chain, and named as `HAProxy` looks for it.
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            (params, KeyPair::generate().expect("there is randomness"))
        };
        let (params, key) = authority();
        let root = CertifiedIssuer::self_signed(params, key).expect("a key signs");
        let mut roots = RootCertStore::empty();
        roots.add(root.as_ref().der().clone()).expect("it is an authority");
        let (params, key) = authority();
        let intermediate = CertifiedIssuer::signed_by(params, key, &root).expect("a key signs");
        Self { roots: Arc::new(roots), intermediate }
    }

    /// A certificate with a key of ECDSA on P-256, which is what certbot asks for.
    pub(crate) fn certify(&self, folder: &Path) -> Certificate {
        self.certify_key(folder, "ecdsa", &KeyPair::generate().expect("there is randomness"))
    }

    /// A certificate with a key of RSA of 2,048 bits, as many older ones have.
    pub(crate) fn certify_rsa(&self, folder: &Path) -> Certificate {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048);
        self.certify_key(folder, "rsa", &key.expect("there is randomness"))
    }

    fn certify_key(&self, folder: &Path, name: &str, key: &KeyPair) -> Certificate {
        let params = CertificateParams::new([HOST.to_owned()]).expect("it is a name");
        let certificate = params.signed_by(key, &self.intermediate).expect("a key signs");
        let (chain, key_file) =
            (folder.join(name).with_extension("pem"), folder.join(name).with_extension("pem.key"));
        fs::write(&chain, certificate.pem() + &self.intermediate.as_ref().pem())
            .expect("a file can be written");
        fs::write(&key_file, key.serialize_pem()).expect("a file can be written");
        Certificate { chain, key: key_file }
    }

    /// A client's side. It offers one version, one suite and one group, so that all servers compute the same.
    pub(crate) fn client(&self, resumption: Resumption) -> Arc<ClientConfig> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suite is of this version")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = resumption;
        Arc::new(config)
    }
}
