//! What was read of requests to come.

use bytes::Bytes;
use tokio::io::ReadBuf;

/// Bytes that were read from the socket and belong to requests to come.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// In a box, for few connections have any.
    bytes: Option<Box<Bytes>>,
    /// The number of them that hyper has been given, and may give back.
    given: u32,
    /// True if hyper has also been given later bytes, from the socket.
    passed: bool,
    /// True if all that hyper was given came at once, and is the head of a request without anything behind it.
    pub(super) one_head: bool,
}

impl ReadAhead {
    pub(super) fn new(bytes: Bytes) -> Self {
        // An empty `Bytes` may still pin a whole buffer.
        Self { bytes: (!bytes.is_empty()).then(|| Box::new(bytes)), ..Self::default() }
    }

    pub(super) fn left(&self) -> &[u8] {
        self.bytes.as_ref().map_or(&[], |bytes| &bytes[self.given as usize..])
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.map_or_else(Bytes::new, |bytes| bytes.slice(self.given as usize..))
    }

    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = buf.remaining().min(self.left().len()).min(u32::MAX as usize);
        let bytes = &self.left()[..n];
        buf.put_slice(bytes);
        self.one_head = self.is_untouched() && is_one_head(bytes);
        self.given += u32::try_from(n).unwrap_or(u32::MAX);
    }

    /// hyper was given these, from the socket.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.one_head = self.is_untouched() && is_one_head(bytes);
        self.passed = true;
    }

    /// True if hyper was given nothing.
    pub(super) fn is_untouched(&self) -> bool {
        self.given == 0 && !self.passed
    }

    /// Takes back what hyper has not used, which is the end of what it was given.
    pub(super) fn take_back(&mut self, unused: Bytes) {
        let Self { bytes, given, passed, .. } = std::mem::take(self);
        *self = match bytes {
            // The unused bytes are the end of these: they are kept, not copied, so that many pipelined requests cost one
            // copy in all.
            Some(bytes) if !passed => Self::new(bytes.slice((given as usize).saturating_sub(unused.len())..)),
            _ => Self::new(unused),
        };
    }
}

/// True if bytes are the head of one request and nothing else: it ends with the first empty line (RFC 9112, section 2.1).
fn is_one_head(bytes: &[u8]) -> bool {
    let end = memchr::memchr_iter(b'\n', bytes).find_map(|at| match bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    });
    end == Some(bytes.len())
}
