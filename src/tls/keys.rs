//! Record protection: what turns keying material and a sequence number into sealed and opened records.
//!
//! All cryptography is AWS-LC's. Its `LessSafeKey` takes any nonce: the keys that it has for TLS 1.3 alone take their
//! first nonce for number 0, and a connection that was carried begins later than that.

use aws_lc_rs::{aead, hkdf};
use zeroize::Zeroizing;

use super::session::Version;

/// The length of a record's header.
pub(super) const HEADER: usize = 5;
/// The length of an AEAD's tag, which is the same for all suites.
pub(super) const TAG: usize = 16;
/// The longest keying material: a secret of SHA-384.
const MAX_MATERIAL: usize = 48;
/// The length of a nonce.
const NONCE: usize = 12;
/// TLS 1.2's AES-GCM sends this much of the nonce with each record (RFC 5288, section 3).
const EXPLICIT_NONCE: usize = 8;

/// What a cipher suite means for records.
#[derive(Debug)]
pub(super) struct Suite {
    /// Its number at IANA.
    pub id: u16,
    /// Its name at IANA.
    pub name: &'static str,
    /// The version of TLS that it belongs to.
    pub version: Version,
    aead: &'static aead::Algorithm,
    hkdf: hkdf::Algorithm,
    /// The number of records that one key may seal.
    pub limit: u64,
    /// The number of bytes of the nonce that stand in each record.
    pub explicit_nonce: usize,
}

/// AES-GCM: 2^24 records of full size (RFC 8446, section 5.5, in round numbers).
const GCM: u64 = 1 << 24;
/// ChaCha20-Poly1305 has no limit before sequence numbers wrap: this is as good as none, and far from there.
const CHACHA: u64 = 1 << 48;

macro_rules! suite {
    ($id:literal, $name:literal, $version:ident, $aead:ident, $hkdf:ident, $limit:expr, $explicit:expr) => {
        Suite {
            id: $id,
            name: $name,
            version: Version::$version,
            aead: &aead::$aead,
            hkdf: hkdf::$hkdf,
            limit: $limit,
            explicit_nonce: $explicit,
        }
    };
}

/// All that rustls has. TLS 1.2's come out of its handshake as keys, so their `hkdf` is used for nothing.
#[rustfmt::skip]
static SUITES: [Suite; 9] = [
    suite!(0x1301, "TLS_AES_128_GCM_SHA256", Tls13, AES_128_GCM, HKDF_SHA256, GCM, 0),
    suite!(0x1302, "TLS_AES_256_GCM_SHA384", Tls13, AES_256_GCM, HKDF_SHA384, GCM, 0),
    suite!(0x1303, "TLS_CHACHA20_POLY1305_SHA256", Tls13, CHACHA20_POLY1305, HKDF_SHA256, CHACHA, 0),
    suite!(0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Tls12, AES_128_GCM, HKDF_SHA256, GCM, EXPLICIT_NONCE),
    suite!(0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Tls12, AES_256_GCM, HKDF_SHA384, GCM, EXPLICIT_NONCE),
    suite!(0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", Tls12, CHACHA20_POLY1305, HKDF_SHA256, CHACHA, 0),
    suite!(0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Tls12, AES_128_GCM, HKDF_SHA256, GCM, EXPLICIT_NONCE),
    suite!(0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Tls12, AES_256_GCM, HKDF_SHA384, GCM, EXPLICIT_NONCE),
    suite!(0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", Tls12, CHACHA20_POLY1305, HKDF_SHA256, CHACHA, 0),
];

impl Suite {
    /// The suite of this number.
    pub(super) fn by_id(id: u16) -> Option<&'static Self> {
        SUITES.iter().find(|suite| suite.id == id)
    }

    fn key_len(&self) -> usize {
        self.aead.key_len()
    }

    /// The length of a [`Material`]: of a traffic secret in TLS 1.3, of a key and its nonces' base in TLS 1.2.
    fn material_len(&self) -> usize {
        match self.version {
            Version::Tls13 => self.hkdf.hmac_algorithm().digest_algorithm().output_len(),
            Version::Tls12 => self.key_len() + NONCE,
        }
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
    fn expand_label(&self, secret: &[u8], label: &[u8], out: &mut [u8]) {
        struct Len(usize);
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                self.0
            }
        }
        let length = be16(out.len());
        let label_len = [be16(b"tls13 ".len() + label.len())[1]];
        let info: [&[u8]; 5] = [&length, &label_len, b"tls13 ", label, &[0]];
        hkdf::Prk::new_less_safe(self.hkdf, secret)
            .expand(&info, Len(out.len()))
            .and_then(|okm| okm.fill(out))
            .expect("no more than one block is asked for");
    }
}

/// A length as records have it. Theirs are below 2^15.
fn be16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("the length of a record, or less").to_be_bytes()
}

/// The keying material of one direction: all that is kept of its keys while a connection is parked, and all that
/// travels.
pub(super) struct Material(Zeroizing<[u8; MAX_MATERIAL]>);

impl Material {
    /// `None` if the suite's has another length.
    pub(super) fn new(suite: &Suite, from: &[u8]) -> Option<Self> {
        if from.len() != suite.material_len() {
            return None;
        }
        let mut bytes = Zeroizing::new([0; MAX_MATERIAL]);
        bytes[..from.len()].copy_from_slice(from);
        Some(Self(bytes))
    }

    pub(super) fn as_bytes(&self, suite: &Suite) -> &[u8] {
        &self.0[..suite.material_len()]
    }

    /// The secret after a KeyUpdate (RFC 8446, section 7.2).
    pub(super) fn next(&self, suite: &Suite) -> Self {
        debug_assert_eq!(suite.version, Version::Tls13, "TLS 1.2 has no KeyUpdate");
        let mut next = Self(Zeroizing::new([0; MAX_MATERIAL]));
        suite.expand_label(self.as_bytes(suite), b"traffic upd", &mut next.0[..suite.material_len()]);
        next
    }

    /// True if these are the key and the nonces' base that follow from it.
    pub(super) fn yields(&self, suite: &Suite, key: &[u8], iv: &[u8]) -> bool {
        let (own_key, own_iv) = self.key_and_iv(suite);
        own_key[..suite.key_len()] == *key && own_iv == *iv
    }

    fn key_and_iv(&self, suite: &Suite) -> (Zeroizing<[u8; 32]>, [u8; NONCE]) {
        let (mut key, mut iv) = (Zeroizing::new([0; 32]), [0; NONCE]);
        let len = suite.key_len();
        match suite.version {
            Version::Tls13 => {
                suite.expand_label(self.as_bytes(suite), b"key", &mut key[..len]);
                suite.expand_label(self.as_bytes(suite), b"iv", &mut iv);
            }
            Version::Tls12 => {
                key[..len].copy_from_slice(&self.0[..len]);
                iv.copy_from_slice(&self.0[len..len + NONCE]);
            }
        }
        (key, iv)
    }

    pub(super) fn keys(&self, suite: &'static Suite) -> Keys {
        let (key, iv) = self.key_and_iv(suite);
        let key =
            aead::UnboundKey::new(suite.aead, &key[..suite.key_len()]).expect("a key of its own length");
        Keys { suite, aead: aead::LessSafeKey::new(key), iv }
    }
}

/// The expanded keys of one direction: some hundred bytes, made from [`Material`] in a microsecond or two.
pub(super) struct Keys {
    suite: &'static Suite,
    aead: aead::LessSafeKey,
    iv: [u8; NONCE],
}

/// A record that was not sealed with these keys and this number.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAuthentic;

impl Keys {
    /// The nonce of a record (RFC 8446, section 5.3). In TLS 1.2's AES-GCM the sender may choose its explicit part: this
    /// is as unique as any.
    fn nonce(&self, seq: u64) -> [u8; NONCE] {
        let mut nonce = self.iv;
        for (n, s) in nonce[4..].iter_mut().zip(seq.to_be_bytes()) {
            *n ^= s;
        }
        nonce
    }

    /// What TLS 1.2 authenticates beside the plaintext (RFC 5246, section 6.2.3.3).
    fn aad12(seq: u64, kind: u8, len: usize) -> aead::Aad<[u8; 13]> {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&seq.to_be_bytes());
        aad[8..11].copy_from_slice(&[kind, 3, 3]);
        aad[11..].copy_from_slice(&be16(len));
        aead::Aad::from(aad)
    }

    /// The number of bytes that a record has beside its plaintext.
    pub(super) fn overhead(suite: &Suite) -> usize {
        HEADER + suite.explicit_nonce + usize::from(suite.version == Version::Tls13) + TAG
    }

    /// Appends one record to `out`. `seq` must never have been used with these keys: a nonce that is used twice gives
    /// away plaintext, and with AES-GCM the key that authenticates.
    pub(super) fn seal<'a>(
        &self,
        seq: u64,
        kind: u8,
        plain: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        let nonce = self.nonce(seq);
        out.extend([kind, 3, 3, 0, 0]);
        out.extend_from_slice(&nonce[NONCE - self.suite.explicit_nonce..]);
        let body = out.len();
        plain.for_each(|piece| out.extend_from_slice(piece));
        let plain_len = out.len() - body;
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag = match self.suite.version {
            Version::Tls13 => {
                out.push(kind);
                out[start] = super::records::DATA;
                out[start + 3..body].copy_from_slice(&be16(plain_len + 1 + TAG));
                let header: [u8; HEADER] = out[start..body].try_into().expect("a header");
                self.aead.seal_in_place_separate_tag(nonce, aead::Aad::from(header), &mut out[body..])
            }
            Version::Tls12 => {
                let len = be16(self.suite.explicit_nonce + plain_len + TAG);
                out[start + 3..start + HEADER].copy_from_slice(&len);
                let aad = Self::aad12(seq, kind, plain_len);
                self.aead.seal_in_place_separate_tag(nonce, aad, &mut out[body..])
            }
        };
        out.extend_from_slice(tag.expect("it is far below the AEAD's own limit").as_ref());
    }

    /// Opens one whole record in place. Returns the type within and the plaintext.
    pub(super) fn open<'a>(&self, seq: u64, record: &'a mut [u8]) -> Result<(u8, &'a [u8]), NotAuthentic> {
        let (header, body) = record.split_first_chunk_mut::<HEADER>().ok_or(NotAuthentic)?;
        match self.suite.version {
            Version::Tls13 => {
                let nonce = aead::Nonce::assume_unique_for_key(self.nonce(seq));
                let aad = aead::Aad::from(*header);
                let inner = self.aead.open_in_place(nonce, aad, body).map_err(|_| NotAuthentic)?;
                // Zeros pad; the last byte that is none is the type (RFC 8446, section 5.2). All zeros: type 0, which
                // nobody accepts.
                let end = inner.iter().rposition(|byte| *byte != 0);
                Ok(end.map_or((0, &[][..]), |end| (inner[end], &inner[..end])))
            }
            Version::Tls12 => {
                let overhead = self.suite.explicit_nonce + TAG;
                let plain_len = body.len().checked_sub(overhead).ok_or(NotAuthentic)?;
                let (explicit, sealed) = body.split_at_mut(self.suite.explicit_nonce);
                let mut nonce = self.nonce(seq);
                if !explicit.is_empty() {
                    nonce[NONCE - EXPLICIT_NONCE..].copy_from_slice(explicit);
                }
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                let aad = Self::aad12(seq, header[0], plain_len);
                let inner = self.aead.open_in_place(nonce, aad, sealed).map_err(|_| NotAuthentic)?;
                Ok((header[0], inner))
            }
        }
    }
}
