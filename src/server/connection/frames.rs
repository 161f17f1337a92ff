//! The frames that an HTTP/2 client sends, seen as they pass by (RFC 9113, section 4.1): whether one is on its way, and
//! how many ask for nothing. hyper tells of neither.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::clock::Tick;

/// The client's preface (RFC 9113, section 3.4), before its first frame.
pub(in crate::server) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's head.
const HEAD: usize = 9;
/// The types of frames that matter here (RFC 9113, section 6), and the flag of one that ends a request's head.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The most requests that a client may take back at once.
pub(super) const RESETS: usize = 200;

/// The most bytes of frames that are read before others of the thread have their turn, and the client's frames are looked
/// at.
const TURN: u64 = 32 << 10;

/// A client's stream, of which the frames are seen.
pub(super) struct Frames<S> {
    stream: S,
    reader: Reader,
    seen: Arc<Seen>,
}

/// The frames that were seen. The task that reads them is the one that looks: `Relaxed` is enough.
#[derive(Debug, Default)]
struct Seen {
    /// Those of requests and their bodies, and all others, since the last look.
    asking: AtomicU64,
    others: AtomicU64,
    /// The bytes of all of them.
    bytes: AtomicU64,
    /// The number of the one that is on its way; 0 if none is.
    under_way: AtomicU64,
}

/// A place in the frames of a client.
#[derive(Debug, Default)]
struct Reader {
    /// The number of frames that have begun.
    number: u64,
    /// The head of the next frame, as far as it is there.
    head: [u8; HEAD],
    length: usize,
    /// Bytes until that begins.
    left: usize,
    /// True within the body of a frame other than `DATA`.
    is_within: bool,
    /// True between the frames of a request's head.
    is_open: bool,
}

impl Reader {
    fn read(&mut self, mut bytes: &[u8], seen: &Seen) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                self.is_within &= self.left > 0;
                continue;
            }
            if self.length == 0 && !self.is_open {
                self.number += 1;
            }
            let taken = bytes.len().min(HEAD - self.length);
            self.head[self.length..][..taken].copy_from_slice(&bytes[..taken]);
            self.length += taken;
            bytes = &bytes[taken..];
            if self.length == HEAD {
                self.length = 0;
                self.begin(seen);
            }
        }
        let is_under_way = self.is_within || self.is_open || self.length > 0;
        seen.under_way.store(if is_under_way { self.number } else { 0 }, Relaxed);
    }

    /// A frame's head is there.
    fn begin(&mut self, seen: &Seen) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.is_within = kind != DATA && self.left > 0;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.is_open = flags & END_HEADERS == 0;
        }
        let count = match kind {
            HEADERS => &seen.asking,
            DATA if self.left > 0 => &seen.asking,
            _ => &seen.others,
        };
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

impl<S> Frames<S> {
    pub(super) fn new(stream: S, now: Tick) -> (Self, Flood) {
        let seen = Arc::<Seen>::default();
        let reader = Reader { left: PREFACE.len(), ..Reader::default() };
        (Self { stream, reader, seen: Arc::clone(&seen) }, Flood::new(seen, now))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let bytes = this.seen.bytes.load(Relaxed);
        if bytes >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.seen.bytes.store(bytes + read.len() as u64, Relaxed);
        this.reader.read(read, &this.seen);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

// ---- too much ------------------------------------------------------------------------------------------------

/// A client's frames that ask for nothing (pings, settings, priorities, resets, updates of windows), and the requests that
/// it takes back. It may send some for each frame that asks for something and for what it is sent, and some beside.
#[derive(Debug)]
pub(super) struct Flood {
    seen: Arc<Seen>,
    frames: Allowance,
    resets: Allowance,
    /// Requests taken back since the last look.
    taken_back: u64,
    /// Bytes of answers written, of those that have earned frames.
    written: u64,
}

/// So many at once, so many more in each second.
#[derive(Debug)]
struct Allowance {
    left: u64,
    most: u64,
    a_second: u64,
    since: Tick,
}

impl Allowance {
    fn new(most: u64, a_second: u64, now: Tick) -> Self {
        Self { left: most, most, a_second, since: now }
    }

    fn give(&mut self, number: u64) {
        self.left = self.left.saturating_add(number).min(self.most);
    }

    /// False if there are not so many left.
    fn take(&mut self, number: u64, now: Tick) -> bool {
        let millis = u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX);
        let more = millis.saturating_mul(self.a_second) / 1000;
        if more > 0 {
            self.give(more);
            // What is left of the time earns the next.
            self.since = self.since.after(Duration::from_millis(more.saturating_mul(1000) / self.a_second));
        }
        let left = self.left.checked_sub(number);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

impl Flood {
    /// Bytes of answers, each for which the client may send a frame: one that reads in small portions says so often.
    const BYTES: u64 = 32;

    fn new(seen: Arc<Seen>, now: Tick) -> Self {
        let (frames, resets) = (Allowance::new(1000, 100, now), Allowance::new(RESETS as u64, 100, now));
        Self { seen, frames, resets, taken_back: 0, written: 0 }
    }

    /// The client has reset so many streams before it had a byte of an answer's body.
    pub(super) fn taken_back(&mut self, number: u64) {
        self.taken_back += number;
    }

    /// The number of the frame that is on its way; 0 if none is, or it is one of a body.
    pub(super) fn under_way(&self) -> u64 {
        self.seen.under_way.load(Relaxed)
    }

    /// Looks at the frames that have come: true if they are too many. `written`: the bytes of answers that it was sent until now.
    pub(super) fn is_too_much(&mut self, written: u64, now: impl Fn() -> Tick) -> bool {
        let Seen { asking, others, bytes, .. } = &*self.seen;
        let [asking, others, _] = [asking, others, bytes].map(|count| count.swap(0, Relaxed));
        let earned = (written - self.written) / Self::BYTES;
        self.written += earned * Self::BYTES;
        self.frames.give(asking + earned);
        let taken_back = std::mem::take(&mut self.taken_back);
        (others > 0 || taken_back > 0) && {
            let now = now();
            !self.frames.take(others, now) || !self.resets.take(taken_back, now)
        }
    }
}

#[cfg(test)]
mod tests {
    //! What is seen of the frames does not depend on how they arrive; and a client that asks may say much beside.

    use proptest::prelude::*;

    use super::*;
    use crate::server::clock::Clock;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(length).expect("it is short").to_be_bytes();
        [vec![a, b, c, kind, flags, 0, 0, 0, 1], vec![7; length]].concat()
    }

    fn counts(seen: &Seen) -> (u64, u64) {
        (seen.asking.load(Relaxed), seen.others.load(Relaxed))
    }

    proptest! {
        #[test]
        fn the_frames_are_the_same_however_they_arrive(
            frames in prop::collection::vec((0..10_u8, 0..2_u8, 0..300_usize), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|&(kind, end, length)| frame(kind, end * END_HEADERS, length)).collect();
            let (whole, pieces) = (Seen::default(), Seen::default());
            let mut reader = Reader::default();
            reader.read(&bytes, &whole);
            let expected = reader.number;
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut reader = Reader::default();
            let mut from = 0;
            for to in cuts.into_iter().chain([bytes.len()]) {
                reader.read(&bytes[from..to], &pieces);
                from = to;
            }
            prop_assert_eq!(counts(&pieces), counts(&whole));
            prop_assert_eq!(reader.number, expected);
            prop_assert_eq!(pieces.under_way.load(Relaxed), whole.under_way.load(Relaxed));
        }
    }

    #[test]
    fn a_request_is_under_way_from_the_first_byte_of_its_head_to_the_last() {
        let seen = Seen::default();
        let mut reader = Reader::default();
        let head =
            [frame(HEADERS, 0, 5), frame(CONTINUATION, 0, 5), frame(CONTINUATION, END_HEADERS, 5)].concat();
        for byte in &head {
            assert!(reader.number == 0 || seen.under_way.load(Relaxed) == 1);
            reader.read(&[*byte], &seen);
        }
        assert_eq!((seen.under_way.load(Relaxed), counts(&seen)), (0, (1, 2)));
        // A body may take its time: another limit is its own.
        reader.read(&frame(DATA, 0, 100)[..50], &seen);
        assert_eq!((seen.under_way.load(Relaxed), counts(&seen)), (0, (2, 2)));
    }

    #[test]
    fn pings_are_too_many_soon_unless_there_is_something_to_ping_about() {
        let clock = Clock::new();
        let start = clock.now();
        let pings = |asks: bool, seconds: u64| {
            let (mut frames, mut flood) = Frames::new((), start);
            frames.reader.left = 0;
            (0..seconds * 1000).find(|millis| {
                if asks {
                    frames.reader.read(&frame(HEADERS, END_HEADERS, 10), &frames.seen);
                }
                frames.reader.read(&frame(PING, 0, 8), &frames.seen);
                flood.is_too_much(0, || start.after(Duration::from_millis(*millis)))
            })
        };
        let too_many = pings(false, 60).expect("a thousand a second are too many");
        assert!((1000..1300).contains(&too_many), "{too_many}");
        assert_eq!(pings(true, 60), None);
    }

    /// As with messages of a few bytes, each of which is acknowledged and pinged about.
    #[test]
    fn what_is_earned_a_little_at_a_time_is_earned() {
        let start = Clock::new().now();
        let too_many = |bytes: u64, pings: fn(u64) -> u64| {
            let (mut frames, mut flood) = Frames::new((), start);
            frames.reader.left = 0;
            (0..10_000).find(|look| {
                for _ in 0..pings(*look) {
                    frames.reader.read(&frame(PING, 0, 8), &frames.seen);
                }
                flood.is_too_much(look * bytes, || start.after(Duration::from_millis(look * 17)))
            })
        };
        // 88 a second, of 100.
        assert_eq!(too_many(0, |look| 1 + look % 2), None);
        // With what it is sent for two in three of them.
        assert_eq!(too_many(29, |_| 2), None);
        assert!(too_many(0, |_| 2).is_some());
    }

    #[test]
    fn a_client_may_take_back_many_requests_at_once_and_not_as_many_all_the_time() {
        let start = Clock::new().now();
        let (_, mut flood) = Frames::new((), start);
        let mut take_back = |number: u64, after: Duration| {
            flood.taken_back(number);
            flood.is_too_much(0, || start.after(after))
        };
        assert!(!take_back(200, Duration::ZERO));
        assert!(!take_back(100, Duration::from_secs(1)));
        assert!(take_back(101, Duration::from_secs(2)));
    }
}
