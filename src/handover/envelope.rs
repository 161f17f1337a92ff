//! The encryption of a message's bytes on their way to the next process.
//!
//! A parcel of a TLS connection has the secrets of its keys. They travel in a memfd, which is memory like any other: it
//! can be swapped out, and is there as long as anybody holds it. So its bytes are encrypted under a key that is used
//! once and travels in the message itself, which is in the kernel alone and is gone when it is received.

use std::io;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

/// The length of a key, in bytes.
pub(super) const KEY: usize = 32;

/// The number of bytes that encryption adds: the tag of AES-GCM.
pub(super) const OVERHEAD: usize = 16;

/// The key of one message.
pub(super) struct Envelope(Zeroizing<[u8; KEY]>);

impl Envelope {
    /// A key that no other message has.
    pub(super) fn new() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; KEY]);
        // The kernel's, and not AWS-LC's: that takes some hundred milliseconds to gather its first ones.
        let mut filled = 0;
        while filled < KEY {
            filled += getrandom(&mut key[filled..], GetRandomFlags::empty())?;
        }
        Ok(Self(key))
    }

    /// The key that came with a message.
    pub(super) fn from_key(key: [u8; KEY]) -> Self {
        Self(Zeroizing::new(key))
    }

    /// The key, as it travels with its message.
    pub(super) fn key(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Encrypts, in place; the key is used up.
    pub(super) fn close(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let refused = |_| io::Error::other("too large to be encrypted");
        self.aead().seal_in_place_append_tag(nonce(), Aad::empty(), bytes).map_err(refused)
    }

    /// Decrypts, in place. An error if these are not the bytes that were encrypted.
    pub(super) fn open<'a>(&self, bytes: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "its bytes are not those that were sent");
        self.aead().open_in_place(nonce(), Aad::empty(), bytes).map(|opened| &*opened).map_err(wrong)
    }

    fn aead(&self) -> LessSafeKey {
        let Ok(key) = UnboundKey::new(&AES_256_GCM, &self.0[..]) else {
            unreachable!("the key has its length")
        };
        LessSafeKey::new(key)
    }
}

/// Of a key that encrypts once, any nonce is used once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    //! Bytes come out as they went in, or not at all.

    use super::*;

    #[test]
    fn what_was_closed_can_be_opened_with_its_key_alone() {
        let envelope = Envelope::new().expect("random numbers");
        let mut bytes = b"the secrets of a connection".to_vec();
        envelope.close(&mut bytes).expect("short");
        assert!(!bytes.windows(7).any(|part| part == b"secrets"));
        let mut copy = bytes.clone();
        let opened = Envelope::from_key(*envelope.key());
        assert_eq!(opened.open(&mut copy).expect("as it was"), b"the secrets of a connection");

        let other = Envelope::new().expect("random numbers");
        other.open(&mut bytes.clone()).expect_err("another key");
        bytes[3] ^= 1;
        envelope.open(&mut bytes).expect_err("another byte");
    }
}
