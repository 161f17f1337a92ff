//! A client that has the right keys, and may do anything with them: for tests and fuzz targets.

use std::iter;

use tokio::io::ReadBuf;

use super::keys::{Material, Suite};
use super::records::{ALERT, CHANGE_CIPHER_SPEC, Closed, DATA, HANDSHAKE, MAX_READ, Records};
use super::session::{Session, Version};

/// Where decisions come from: numbers below the one that is given.
pub(super) trait Choices {
    fn below(&mut self, end: usize) -> usize;
}

impl<F: FnMut(usize) -> usize> Choices for F {
    fn below(&mut self, end: usize) -> usize {
        self(end)
    }
}

/// The shortest one: version, random, no session, one suite, no compression (RFC 5246, section 7.4.1.2).
pub(super) const CLIENT_HELLO: [u8; 45] = {
    let mut hello = [0; 45];
    (hello[0], hello[3]) = (1, 41);
    (hello[4], hello[5]) = (3, 3);
    (hello[40], hello[41], hello[42]) = (2, 0xc0, 0x2b);
    hello[43] = 1;
    hello
};

/// The client's side of a connection.
pub(super) struct Client {
    suite: &'static Suite,
    material: Material,
    seq: u64,
    /// What it sends.
    pub(super) bytes: Vec<u8>,
    /// All the data that it has sealed.
    pub(super) data: Vec<u8>,
}

impl Client {
    pub(super) fn new(suite: &'static Suite, material: Material, seq: u64) -> Self {
        Self { suite, material, seq, bytes: Vec::new(), data: Vec::new() }
    }

    fn seal(&mut self, kind: u8, plain: &[u8]) {
        self.material.keys(self.suite).seal(self.seq, kind, iter::once(plain), &mut self.bytes);
        self.seq += 1;
        if kind == DATA {
            self.data.extend_from_slice(plain);
        }
    }

    fn update(&mut self) {
        if self.suite.version == Version::Tls13 {
            (self.material, self.seq) = (self.material.next(self.suite), 0);
        }
    }

    /// Up to eight things: most of them right, some of them not.
    pub(super) fn act(&mut self, choices: &mut impl Choices) {
        for _ in 0..=choices.below(8) {
            let start = self.bytes.len();
            self.act_once(choices);
            // A bit that flips, behind the type and the version: our layer authenticates the header as it came, rustls as
            // it should have come.
            let is_whole = self.bytes.len() > start + 3;
            if is_whole && choices.below(25) == 0 {
                let at = start + 3 + choices.below(self.bytes.len() - start - 3);
                if !self.bytes[start + 3..=at].windows(2).any(|pair| pair == [DATA, 3]) {
                    self.bytes[at] ^= 1 << choices.below(8);
                }
            }
        }
        if choices.below(5) == 0 {
            self.bytes.truncate(choices.below(self.bytes.len() + 1));
        }
    }

    fn act_once(&mut self, choices: &mut impl Choices) {
        match choices.below(20) {
            0..8 => {
                let length = [0, 1, 10, 1000, 16384, 16385][choices.below(6)];
                let byte = u8::try_from(choices.below(256)).unwrap_or(0);
                self.seal(DATA, &vec![byte; length]);
            }
            8 | 9 => {
                self.seal(HANDSHAKE, &[24, 0, 0, 1, 0]);
                self.update();
            }
            10 => {
                self.seal(HANDSHAKE, &[24, 0, 0, 1, 1]);
                self.update();
            }
            11 => self.seal(HANDSHAKE, &[24, 0, 0, 1, [2, 3, 255][choices.below(3)]]),
            12 => {
                let message: Vec<u8> =
                    (0..=choices.below(8)).map(|_| [24, 0, 1, 2, 20][choices.below(5)]).collect();
                self.seal(HANDSHAKE, &message);
                if message == [24, 0, 0, 1, 0] || message == [24, 0, 0, 1, 1] {
                    self.update();
                }
            }
            13 => self.seal(HANDSHAKE, &[24, 0, 0, 1][..=choices.below(4)]),
            14 => self.seal(ALERT, &[[1, 2][choices.below(2)], [0, 90, 10, 20][choices.below(4)]]),
            15 => {
                let alert: Vec<u8> = (0..choices.below(4)).map(|_| [0, 1, 2][choices.below(3)]).collect();
                self.seal(ALERT, &alert);
            }
            16 => self.seal([CHANGE_CIPHER_SPEC, 24, 0, 99][choices.below(4)], &[1]),
            // A KeyUpdate in pieces.
            17 => {
                self.seal(HANDSHAKE, &[24, 0]);
                self.seal(HANDSHAKE, &[0, 1]);
                self.seal(HANDSHAKE, &[[0, 1][choices.below(2)]]);
                self.update();
            }
            // Records that are not sealed.
            18 => self.bytes.extend(
                [[20, 3, 3, 0, 1, 1], [21, 3, 3, 0, 1, 0], [23, 3, 1, 0, 1, 0], [99, 3, 3, 0, 1, 0]]
                    [choices.below(4)],
            ),
            // Another handshake (TLS 1.2), or noise.
            _ if choices.below(2) == 0 => self.seal(HANDSHAKE, &CLIENT_HELLO),
            _ => {
                for _ in 0..choices.below(30) {
                    self.bytes.push(u8::try_from(choices.below(256)).unwrap_or(0));
                }
            }
        }
    }
}

/// Decisions by the bytes of an input; when they are used up, 0.
impl Choices for &[u8] {
    fn below(&mut self, end: usize) -> usize {
        let mut number = 0;
        for _ in 0..if end > 256 { 2 } else { 1 } {
            let Some((byte, rest)) = self.split_first() else { break };
            number = number * 256 + usize::from(*byte);
            *self = rest;
        }
        number % end
    }
}

/// All that comes of a client's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    data: Vec<u8>,
    closed: Option<Closed>,
    /// Alerts.
    sent: Vec<u8>,
}

/// A record layer with keys that are always the same, and whatever client the input makes: cut anywhere and carried anytime
/// it has the same outcome, it gives out nothing but what was sealed, and it holds no more than a few records.
pub(crate) fn fuzz(mut input: &[u8]) {
    const IDS: [u16; 9] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8];
    let choices = &mut input;
    let suite = Suite::by_id(IDS[choices.below(IDS.len())]).expect("a suite that is known");
    let material = |byte| {
        (1..=48)
            .find_map(|length| Material::new(suite, &vec![byte; length]))
            .expect("one of them is its length")
    };
    let records = || {
        let session = Session {
            suite: suite.id,
            alpn: None,
            server_name: None,
            client: None,
            resumed: false,
            policy: 0,
        };
        Records::new(session, suite, (material(1), 0), (material(2), 0), Vec::new())
    };
    let mut client = Client::new(suite, material(1), 0);
    if choices.below(4) == 0 {
        client.bytes = choices.to_vec();
    } else {
        client.act(choices);
    }
    let whole = outcome(records(), &client.bytes, &mut |end| end - 1);
    let cut = outcome(records(), &client.bytes, choices);
    assert_eq!(whole, cut, "however it is cut");
    assert!(client.data.starts_with(&whole.data), "nothing but what was sealed");
}

fn outcome(mut records: Records, mut bytes: &[u8], choices: &mut impl Choices) -> Outcome {
    let (mut data, mut closed) = (Vec::new(), None);
    while !bytes.is_empty() && closed.is_none() {
        let held = records.held();
        let (piece, rest) = bytes.split_at((1 + choices.below(MAX_READ - held)).min(bytes.len()));
        bytes = rest;
        let mut buffer = [&vec![0; held], piece].concat();
        let mut out = vec![0; 1 + choices.below(2 * MAX_READ)];
        let mut out = ReadBuf::new(&mut out);
        records.take(&mut buffer, &mut out);
        loop {
            data.extend_from_slice(out.filled());
            out.clear();
            if !records.give_plain(&mut out) {
                break;
            }
        }
        closed = records.closed();
        assert!(records.footprint() < 4 * MAX_READ, "{} bytes", records.footprint());
        assert_eq!(records.has_read_ahead(), closed.is_some());
        if closed.is_none() && choices.below(3) == 0 {
            let note = records.take_note().expect("it is open");
            records = Records::from_note(note).expect("it was written by one");
        }
        if choices.below(3) == 0 {
            records.park();
        }
    }
    Outcome { data, closed, sent: records.unsent }
}
