//! The id of a request: in its answer, in the request that an upstream or a caller's `Router` gets, in the log and in
//! `/status`.

use std::cell::RefCell;
use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use fastrand::Rng;
use rustix::rand::{GetRandomFlags, getrandom};

/// The field that a request's id stands in.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a trusted proxy, in bytes.
const LONGEST: usize = 128;

thread_local! {
    /// Begins with what the kernel gives: fastrand's own beginning is made of the time and the thread's number, which
    /// many machines, or many processes of one, can have alike.
    static RANDOM: RefCell<Rng> = RefCell::new(seed().map_or_else(Rng::new, Rng::with_seed));
}

/// A number from the kernel's generator; none where it has no such call (getrandom(2)).
fn seed() -> Option<u64> {
    let mut seed = [0; 8];
    let taken = getrandom(&mut seed, GetRandomFlags::empty()).ok()?;
    (taken == seed.len()).then(|| u64::from_ne_bytes(seed))
}

/// What the thread's generator gives.
pub(super) fn random<T>(draw: impl FnOnce(&mut Rng) -> T) -> T {
    RANDOM.with_borrow_mut(draw)
}

/// A request's id. No secret: it tells requests apart, and is not hard to guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestId {
    /// 128 bits of a generator that each thread begins at random.
    Own([u8; 16]),
    /// What a trusted proxy has sent: visible ASCII characters.
    Given(HeaderValue),
}

impl RequestId {
    /// The id of a request that has none.
    pub(crate) fn fresh() -> Self {
        Self::Own(random(|random| random.u128(..)).to_ne_bytes())
    }

    /// The id in the fields of a trusted proxy's request, if there is one that can be kept.
    pub(super) fn given(headers: &HeaderMap) -> Option<Self> {
        let mut given = headers.get_all(X_REQUEST_ID).iter();
        let (id, None) = (given.next()?, given.next()) else { return None };
        let is_id = (1..=LONGEST).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
        is_id.then(|| Self::Given(id.clone()))
    }

    /// The id that another process has written down, if it is one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, text.parse().ok()?);
        Self::given(&headers)
    }

    /// The value of the field.
    pub(crate) fn value(&self) -> HeaderValue {
        match self {
            Self::Own(id) => field(&hex::<16, 32>(id)),
            Self::Given(id) => id.clone(),
        }
    }

    /// Its 32 hex digits as a trace's id (W3C Trace Context, section 3.2.2.3), if it can be one.
    pub(super) fn trace(&self) -> Option<[u8; 32]> {
        match self {
            Self::Own(id) => Some(hex(id)),
            Self::Given(id) => id.as_bytes().try_into().ok().filter(|id: &[u8; 32]| is_hex_id(id)),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Given(id) => f.write_str(id.to_str().unwrap_or_default()),
        }
    }
}

/// True of lower-case hex digits that are not all 0.
pub(super) fn is_hex_id(id: &[u8]) -> bool {
    id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && id.iter().any(|byte| *byte != b'0')
}

/// Bytes as hex digits. `format!` costs twenty times as much, which each request would bear.
pub(super) fn hex<const BYTES: usize, const DIGITS: usize>(bytes: &[u8; BYTES]) -> [u8; DIGITS] {
    const DIGIT: &[u8; 16] = b"0123456789abcdef";
    const { assert!(DIGITS == 2 * BYTES) }
    let mut digits = [0; DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGIT[usize::from(byte >> 4)];
        pair[1] = DIGIT[usize::from(byte & 15)];
    }
    digits
}

/// A field's value of visible characters.
pub(super) fn field(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| unreachable!("visible characters are a value"))
}

#[cfg(test)]
mod tests {
    //! Ids are 32 hex digits, and of others' only those are kept that do no harm.

    use super::*;

    fn given(values: &[&[u8]]) -> Option<RequestId> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
        }
        RequestId::given(&headers)
    }

    #[test]
    fn an_id_is_the_same_in_a_field_and_in_the_log() {
        let id = RequestId::Own([0, 1, 0x2f, 0xf0, 0xff, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.to_string(), "00012ff0ff05060708090a0b0c0d0e0f");
        assert_eq!(id.value(), id.to_string());
        assert_eq!(RequestId::fresh().to_string().len(), 32);
        assert_ne!(RequestId::fresh(), RequestId::fresh());
    }

    #[test]
    fn a_trusted_proxys_id_is_kept_if_it_is_one_word_of_ascii() {
        let longest = [b'x'; LONGEST];
        for kept in [b"a".as_slice(), b"req-1/2;\"~", &longest] {
            let id = given(&[kept]).expect("it is kept");
            assert_eq!(id.value().as_bytes(), kept);
            assert_eq!(RequestId::parse(&id.to_string()), Some(id));
        }
        for refused in [b"".as_slice(), b"two words", b"a\tb", b"caf\xc3\xa9", &[b'x'; LONGEST + 1]] {
            assert_eq!(given(&[refused]), None, "{}", refused.escape_ascii());
        }
        assert_eq!(given(&[]), None);
        assert_eq!(given(&[b"one", b"another"]), None);
    }

    #[test]
    fn an_id_of_32_hex_digits_can_be_a_traces() {
        let hex = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            given(&[hex.as_bytes()]).and_then(|id| id.trace()).as_ref(),
            hex.as_bytes().try_into().ok()
        );
        for other in [hex.to_uppercase(), "0".repeat(32), hex[1..].to_owned(), format!("{}g", &hex[1..])] {
            assert_eq!(given(&[other.as_bytes()]).and_then(|id| id.trace()), None, "{other}");
        }
    }
}
