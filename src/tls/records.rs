//! The record layer of a connection whose handshake is over: what rustls would do from there on, in a form that can be
//! parked and can travel. No I/O.
//!
//! It is a server's. It sends application data, alerts and KeyUpdates; it takes the same, and refuses whatever else a
//! client might send, with the alert that rustls would send.

use std::mem::take;
use std::sync::Arc;
use std::{fmt, io, iter};

use serde::{Deserialize, Serialize};
use tokio::io::ReadBuf;
use zeroize::Zeroize;

use super::keys::{HEADER, Keys, Material, Suite};
use super::note::{HalfNote, NoteError, TlsNote};
use super::resting::Resting;
use super::session::{Session, Version};

/// The most plaintext in a record (RFC 8446, section 5.1).
pub(super) const MAX_PLAIN: usize = 1 << 14;
/// The most plaintext that is sealed ahead of the socket: four full records.
pub(super) const MAX_AHEAD: usize = 4 * MAX_PLAIN;
/// The most that is read from a socket at once: two full records.
pub(super) const MAX_READ: usize = 2 * (HEADER + MAX_PLAIN + 256);

// Types of records.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

/// The type of the message that begins a handshake.
const CLIENT_HELLO: u8 = 1;
/// A KeyUpdate that asks for none in return (RFC 8446, section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

// Levels of alerts, and two alerts that are no errors.
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// As many KeyUpdates as BoringSSL and rustls allow without data in between.
const MAX_UPDATES: u8 = 32;
/// As many empty records in a row as rustls allows.
const MAX_EMPTY: u8 = 32;
/// As many warnings as rustls allows.
const MAX_WARNINGS: u8 = 4;
/// More records than any client has sent on one connection.
const MAX_SEQ: u64 = 1 << 48;
/// The longest name of a host, and the longest subject, that a note may have.
const MAX_SERVER_NAME: usize = 255;
const MAX_SUBJECT: usize = 1 << 12;

/// What a client did wrong, as the alert that tells it so (RFC 8446, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fault {
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    IllegalParameter = 47,
    DecodeError = 50,
    InternalError = 80,
}

/// The alert that declines another handshake in TLS 1.2 (RFC 5246, section 7.2.2).
const NO_RENEGOTIATION: u8 = 100;

/// Why nothing can be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// The client said goodbye: the end of the data.
    Notified,
    /// The socket ended without that: the data may be cut short.
    Truncated,
    /// The socket failed.
    Failed(io::ErrorKind),
    /// The client reported an error of ours.
    Alert(u8),
    /// The client broke the protocol.
    Fault(Fault),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notified => f.write_str("closed by the client"),
            Self::Truncated => f.write_str("the connection ended without a close_notify"),
            Self::Failed(kind) => kind.fmt(f),
            Self::Alert(description) => write!(f, "the client sent alert {description}"),
            Self::Fault(fault) => write!(f, "the client broke TLS ({fault:?})"),
        }
    }
}

/// One direction.
struct Half {
    material: Material,
    /// Of the next record.
    seq: u64,
    /// None while parked, and before the first record.
    keys: Option<Box<Keys>>,
}

impl Half {
    fn new((material, seq): (Material, u64)) -> Self {
        Self { material, seq, keys: None }
    }

    fn keys(&mut self, suite: &'static Suite) -> &Keys {
        self.keys.get_or_insert_with(|| Box::new(self.material.keys(suite)))
    }

    fn update(&mut self, suite: &'static Suite) {
        self.material = self.material.next(suite);
        self.keys = None;
        self.seq = 0;
    }

    fn from_note(suite: &Suite, note: &HalfNote) -> Result<Self, NoteError> {
        let material = Material::new(suite, &note.material).ok_or(NoteError::Material)?;
        Ok(Self::new((material, note.seq)))
    }

    fn note(&self, suite: &Suite) -> HalfNote {
        HalfNote { material: self.material.as_bytes(suite).to_vec(), seq: self.seq }
    }
}

/// What a client may do now and then, and not for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// KeyUpdates without data in between.
    updates: u8,
    /// Empty records in a row.
    empty: u8,
    warnings: u8,
    /// True if it has asked for another handshake.
    has_declined: bool,
}

impl Counts {
    fn is_bearable(self) -> bool {
        self.updates <= MAX_UPDATES && self.empty <= MAX_EMPTY && self.warnings <= MAX_WARNINGS
    }
}

/// The beginning of the only handshake message that a client may send.
#[derive(Clone, Copy, Default)]
struct Piece {
    bytes: [u8; KEY_UPDATE.len() - 1],
    len: u8,
}

impl Piece {
    fn new(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { len: u8::try_from(bytes.len()).ok()?, ..Self::default() };
        piece.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(piece)
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// True for a whole `ClientHello`, as far as its length tells: it asks for another handshake, whatever else is in it.
fn is_client_hello(plain: &[u8]) -> bool {
    /// Version, random, no session, one suite, no compression (RFC 5246, section 7.4.1.2).
    const SHORTEST: usize = 2 + 32 + 1 + 4 + 2;
    match *plain {
        [CLIENT_HELLO, 0, high, low, ref body @ ..] => {
            body.len() >= SHORTEST && body.len() == usize::from(u16::from_be_bytes([high, low]))
        }
        _ => false,
    }
}

/// Both directions, and what is between them and the socket.
pub(crate) struct Records {
    session: Arc<Session>,
    suite: &'static Suite,
    read: Half,
    write: Half,
    /// The keys of both, while parked.
    resting: Option<Resting>,
    /// Not yet opened: at most the beginning of one record, but for what came with a handshake or a note.
    raw: Vec<u8>,
    /// Opened and not yet read, from `plain_read` on.
    plain: Vec<u8>,
    plain_read: usize,
    /// Sealed and not yet sent, from `unsent_sent` on.
    pub(super) unsent: Vec<u8>,
    pub(super) unsent_sent: usize,
    /// The number of bytes of plaintext in it that are not counted as sent.
    pub(super) unsent_plain: usize,
    /// The number of bytes of plaintext that the socket has taken, since somebody asked for it.
    pub(super) sent_plain: usize,
    /// True if whoever reads sends what is sealed, for nobody is known to write.
    pub(super) reader_sends: bool,
    handshake: Piece,
    /// True if the client has asked for our KeyUpdate, which has to come before our next data.
    owes_update: bool,
    closed: Option<Closed>,
    said_goodbye: bool,
    counts: Counts,
}

impl Records {
    /// After a handshake: for each direction the keying material and the number of the next record, and what has been
    /// read of the records to come.
    pub(super) fn new(
        session: Session,
        suite: &'static Suite,
        read: (Material, u64),
        write: (Material, u64),
        raw: Vec<u8>,
    ) -> Self {
        debug_assert_eq!(session.suite, suite.id);
        Self {
            session: Arc::new(session),
            suite,
            read: Half::new(read),
            write: Half::new(write),
            resting: None,
            raw,
            plain: Vec::new(),
            plain_read: 0,
            unsent: Vec::new(),
            unsent_sent: 0,
            unsent_plain: 0,
            sent_plain: 0,
            reader_sends: false,
            handshake: Piece::default(),
            owes_update: false,
            closed: None,
            said_goodbye: false,
            counts: Counts::default(),
        }
    }

    /// What the handshake has agreed on.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Takes back the keys that have rested.
    fn wake(&mut self) {
        if let Some(resting) = self.resting.take() {
            [self.read.keys, self.write.keys] = resting.wake();
        }
    }

    /// Gives back all memory that can be made again.
    pub(super) fn park(&mut self) {
        if self.resting.is_none() {
            let keys = [self.read.keys.take(), self.write.keys.take()];
            self.resting = keys.iter().any(Option::is_some).then(|| Resting::new(keys));
        }
        for buffer in [&mut self.raw, &mut self.plain, &mut self.unsent] {
            buffer.shrink_to_fit();
        }
    }

    /// True if something is here for whoever reads next: no event of the socket will tell.
    pub(super) fn has_read_ahead(&self) -> bool {
        self.has_plain() || self.closed.is_some() || self.has_record()
    }

    /// True if plaintext is here for whoever reads next.
    pub(super) fn has_plain(&self) -> bool {
        self.plain_read < self.plain.len()
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.unsent_sent < self.unsent.len()
    }

    /// Why nothing can be read any more, after the plaintext that is left.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// Nothing will come from the socket any more.
    pub(super) fn close(&mut self, closed: Closed) {
        self.closed.get_or_insert(closed);
    }

    /// True if there is something to continue: neither side has closed. A tunnel goes on although the client has said
    /// goodbye: without [its end](Self::take_end).
    pub(super) fn may_travel(&self, is_tunnel: bool) -> bool {
        let goes_on = match self.closed {
            None => true,
            Some(Closed::Notified) => is_tunnel,
            Some(_) => false,
        };
        goes_on && !self.said_goodbye
    }

    /// Takes out the end of what the client says, if it has said goodbye: the plaintext that is left. From then on there is
    /// nothing to be read, and whoever takes this sees to it that nobody does.
    pub(super) fn take_end(&mut self) -> Option<Vec<u8>> {
        if self.closed != Some(Closed::Notified) {
            return None;
        }
        self.closed = None;
        // What follows a goodbye is ignored (RFC 8446, section 6.1).
        self.raw = Vec::new();
        let mut plain = take(&mut self.plain);
        plain.drain(..take(&mut self.plain_read));
        Some(plain)
    }

    /// All of it, for another process. None if a side has closed. It stays where it is, and is wiped there: who moves a key
    /// leaves a copy behind that nobody wipes. Nobody may use it from then on.
    pub(super) fn take_note(&mut self) -> Option<TlsNote> {
        if !self.may_travel(false) {
            return None;
        }
        self.plain[..self.plain_read].zeroize();
        self.plain.drain(..self.plain_read);
        self.unsent.drain(..self.unsent_sent);
        Some(TlsNote {
            session: Session::clone(&self.session),
            read: self.read.note(self.suite),
            write: self.write.note(self.suite),
            owes_update: self.owes_update,
            counts: self.counts,
            handshake: self.handshake.as_bytes().to_vec(),
            plain: take(&mut self.plain),
            raw: take(&mut self.raw),
            unsent: take(&mut self.unsent),
        })
    }

    /// Continues what another process has begun.
    ///
    /// # Errors
    ///
    /// A note that no [`TlsStream`](super::TlsStream) would have written is refused.
    pub(crate) fn from_note(mut note: TlsNote) -> Result<Self, NoteError> {
        let suite = Suite::by_id(note.session.suite).ok_or(NoteError::Suite(note.session.suite))?;
        let read = Half::from_note(suite, &note.read)?;
        let write = Half::from_note(suite, &note.write)?;
        if write.seq > suite.limit || read.seq > MAX_SEQ {
            return Err(NoteError::Sequence);
        }
        let long = |text: &Option<Box<str>>, most| text.as_ref().is_some_and(|text| text.len() > most);
        if note.plain.len() > MAX_READ
            || note.raw.len() > MAX_READ
            || note.unsent.len() > 2 * MAX_AHEAD
            || long(&note.session.server_name, MAX_SERVER_NAME)
            || long(&note.session.client, MAX_SUBJECT)
        {
            return Err(NoteError::Length);
        }
        let handshake = Piece::new(&note.handshake).ok_or(NoteError::State)?;
        let updates = note.owes_update || !note.handshake.is_empty();
        if updates && suite.version == Version::Tls12
            || !KEY_UPDATE.starts_with(handshake.as_bytes())
            || !note.counts.is_bearable()
        {
            return Err(NoteError::State);
        }
        let mut records = Self::new(
            note.session.clone(),
            suite,
            (read.material, read.seq),
            (write.material, write.seq),
            take(&mut note.raw),
        );
        records.plain = take(&mut note.plain);
        records.unsent = take(&mut note.unsent);
        // An alert, on an idle connection where nobody writes; or data of a tunnel, in which nobody has written here yet.
        records.reader_sends = records.has_unsent();
        records.handshake = handshake;
        records.owes_update = note.owes_update;
        records.counts = note.counts;
        Ok(records)
    }

    /// The bytes of memory that it holds, itself included.
    #[cfg(any(test, fuzzing))]
    pub(super) fn footprint(&self) -> usize {
        let keys = [&self.read.keys, &self.write.keys].into_iter().flatten().count() * size_of::<Keys>();
        let texts = [&self.session.server_name, &self.session.client];
        let texts: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
        size_of::<Self>()
            + keys
            + texts
            + self.raw.capacity()
            + self.plain.capacity()
            + self.unsent.capacity()
    }

    // --- Reading ------------------------------------------------------------------------------

    /// The number of bytes that are here of a record, or of records, to come.
    pub(super) fn held(&self) -> usize {
        self.raw.len()
    }

    /// True if a record is here that can be opened, or refused, without more from the socket.
    pub(super) fn has_record(&self) -> bool {
        !self.is_partial(&self.raw)
    }

    /// True if these are a record's beginning, or nothing, and whatever follows may be right.
    fn is_partial(&self, bytes: &[u8]) -> bool {
        match self.length(bytes) {
            Ok(length) => length.is_none_or(|length| length > bytes.len()),
            Err(_) => false,
        }
    }

    /// The length of the record at the front of `bytes`, if its header is all there. A header is refused at sight: to
    /// wait for a record that is none would hold up the alert.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let is_expected = |kind| match self.suite.version {
            Version::Tls13 => kind == DATA,
            Version::Tls12 => matches!(kind, ALERT | HANDSHAKE | DATA),
        };
        match *bytes {
            [CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE, ..] if !is_expected(bytes[0]) => {
                return Err(Fault::UnexpectedMessage);
            }
            [kind, ..] if !is_expected(kind) => return Err(Fault::DecodeError),
            [_, major, ..] if major != 3 => return Err(Fault::DecodeError),
            _ => {}
        }
        let Some(&[_, _, _, high, low]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if bytes[0] != DATA && [high, low] == [0, 0] {
            return Err(Fault::DecodeError);
        }
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_PLAIN + Keys::overhead(self.suite) {
            return Err(Fault::RecordOverflow);
        }
        Ok(Some(length))
    }

    /// Opens the records that were here already.
    pub(super) fn take_held(&mut self, out: &mut ReadBuf<'_>) {
        let mut raw = take(&mut self.raw);
        let taken = self.take_records(&mut raw, out);
        raw.drain(..taken);
        self.raw = raw;
    }

    /// Takes what has come from the socket: it is in `buffer` behind room for the bytes that are [held](Self::held).
    /// The data goes to `out` and, what does not fit, to whoever reads next.
    pub(super) fn take(&mut self, buffer: &mut [u8], out: &mut ReadBuf<'_>) {
        let held = self.held();
        let header = held.min(HEADER);
        buffer[..header].copy_from_slice(&self.raw[..header]);
        // However slowly a record comes, what is here of it is not copied into the buffer for each part, but once. Only a
        // parked connection moves it each time, for parking leaves no room behind it.
        let is_partial = match self.length(&buffer[..buffer.len().min(HEADER)]) {
            Ok(length) => length.is_none_or(|length| length > buffer.len()),
            Err(_) => false,
        };
        if is_partial {
            self.raw.extend_from_slice(&buffer[held..]);
            return;
        }
        buffer[..held].copy_from_slice(&self.raw);
        self.raw.clear();
        let taken = self.take_records(buffer, out);
        self.raw.extend_from_slice(&buffer[taken..]);
    }

    /// Opens the whole records at the front of `bytes` and returns how many bytes they were.
    fn take_records(&mut self, bytes: &mut [u8], out: &mut ReadBuf<'_>) -> usize {
        let mut taken = 0;
        while self.closed.is_none() {
            let rest = &mut bytes[taken..];
            let result = match self.length(rest) {
                Ok(Some(length)) if length <= rest.len() => {
                    taken += length;
                    self.take_record(&mut rest[..length], out)
                }
                Ok(_) => break,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = result {
                self.fail(fault);
            }
        }
        taken
    }

    fn take_record(&mut self, record: &mut [u8], out: &mut ReadBuf<'_>) -> Result<(), Fault> {
        let (suite, seq) = (self.suite, self.read.seq);
        let next = seq.checked_add(1).ok_or(Fault::InternalError)?;
        self.wake();
        let (kind, plain) = self.read.keys(suite).open(seq, record).map_err(|_| Fault::BadRecordMac)?;
        self.read.seq = next;
        if plain.len() > MAX_PLAIN {
            return Err(Fault::RecordOverflow);
        }
        if self.handshake.len > 0 && kind != HANDSHAKE {
            return Err(Fault::UnexpectedMessage);
        }
        if plain.is_empty() {
            self.counts.empty += 1;
            return if kind == DATA && self.counts.empty <= MAX_EMPTY {
                Ok(())
            } else {
                Err(Fault::UnexpectedMessage)
            };
        }
        self.counts.empty = 0;
        match kind {
            DATA => {
                self.counts.updates = 0;
                let fits = if self.has_plain() { 0 } else { plain.len().min(out.remaining()) };
                out.put_slice(&plain[..fits]);
                self.plain.extend_from_slice(&plain[fits..]);
                Ok(())
            }
            ALERT => self.take_alert(plain),
            HANDSHAKE if suite.version == Version::Tls13 => self.take_handshake(plain),
            HANDSHAKE if is_client_hello(plain) => self.decline_renegotiation(),
            _ => Err(Fault::UnexpectedMessage),
        }
    }

    fn take_alert(&mut self, plain: &[u8]) -> Result<(), Fault> {
        let &[level, description] = plain else {
            return Err(Fault::DecodeError);
        };
        match (level, description) {
            (WARNING | FATAL, CLOSE_NOTIFY) => self.closed = Some(Closed::Notified),
            (WARNING, USER_CANCELED) => return self.take_warning(),
            (WARNING, _) if self.suite.version == Version::Tls12 => return self.take_warning(),
            (WARNING, _) => return Err(Fault::DecodeError),
            (FATAL, _) => self.closed = Some(Closed::Alert(description)),
            _ => return Err(Fault::IllegalParameter),
        }
        Ok(())
    }

    fn take_warning(&mut self) -> Result<(), Fault> {
        self.counts.warnings += 1;
        if self.counts.warnings > MAX_WARNINGS { Err(Fault::UnexpectedMessage) } else { Ok(()) }
    }

    /// The only message that a client may send after its handshake is KeyUpdate.
    fn take_handshake(&mut self, plain: &[u8]) -> Result<(), Fault> {
        const FIXED: usize = KEY_UPDATE.len() - 1;
        let held = self.handshake.as_bytes().len();
        let (piece, request) = plain.split_at(plain.len().min(FIXED - held));
        if !KEY_UPDATE[held..].starts_with(piece) {
            return Err(Fault::UnexpectedMessage);
        }
        self.handshake = Piece::new(&KEY_UPDATE[..held + piece.len()]).ok_or(Fault::InternalError)?;
        match *request {
            [] => return Ok(()),
            // Nothing may follow it under the old keys (RFC 8446, section 5.1).
            [_, _, ..] => return Err(Fault::UnexpectedMessage),
            [_] if self.counts.updates == MAX_UPDATES => return Err(Fault::UnexpectedMessage),
            [0] => {}
            [1] => self.owes_update = true,
            [_] => return Err(Fault::IllegalParameter),
        }
        self.handshake = Piece::default();
        self.counts.updates += 1;
        self.read.update(self.suite);
        Ok(())
    }

    /// The first request for another handshake is declined, the second one is an error: as rustls has it.
    fn decline_renegotiation(&mut self) -> Result<(), Fault> {
        if std::mem::replace(&mut self.counts.has_declined, true) {
            return Err(Fault::UnexpectedMessage);
        }
        self.seal(ALERT, &[WARNING, NO_RENEGOTIATION]);
        Ok(())
    }

    fn fail(&mut self, fault: Fault) {
        self.closed = Some(Closed::Fault(fault));
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.seal(ALERT, &[FATAL, fault as u8]);
        }
    }

    /// Gives out plaintext that is here. `false` if there is none.
    pub(super) fn give_plain(&mut self, out: &mut ReadBuf<'_>) -> bool {
        if !self.has_plain() {
            return false;
        }
        let left = &self.plain[self.plain_read..];
        let n = left.len().min(out.remaining());
        out.put_slice(&left[..n]);
        self.plain_read += n;
        if !self.has_plain() {
            (self.plain, self.plain_read) = (Vec::new(), 0);
        }
        true
    }

    // --- Writing ------------------------------------------------------------------------------

    fn seal(&mut self, kind: u8, plain: &[u8]) {
        self.seal_pieces(kind, iter::once(plain));
    }

    /// The one place that seals, and counts what it has sealed.
    fn seal_pieces<'a>(&mut self, kind: u8, pieces: impl Iterator<Item = &'a [u8]>) {
        let (suite, seq) = (self.suite, self.write.seq);
        self.wake();
        self.write.seq = seq.checked_add(1).expect("the limits of the suites are far below it");
        self.write.keys(suite).seal(seq, kind, pieces, &mut self.unsent);
    }

    /// Before data: what the client is owed, and new keys where the old ones are worn out. `false`: these are, and
    /// the version has no new ones.
    fn refresh(&mut self) -> bool {
        // The last number is for the KeyUpdate, or for the goodbye.
        let is_worn_out = self.write.seq + 1 >= self.suite.limit;
        if self.suite.version == Version::Tls12 {
            return !is_worn_out;
        }
        if self.owes_update || is_worn_out {
            self.seal(HANDSHAKE, &KEY_UPDATE);
            self.write.update(self.suite);
            self.owes_update = false;
        }
        true
    }

    /// Seals as much of the data as may wait, and returns how much that was.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::BrokenPipe`] after a goodbye, which is also said when TLS 1.2's keys are worn out.
    pub(super) fn seal_data(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let total = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_AHEAD);
        let mut bufs = bufs.iter().map(|buf| &**buf);
        let (mut rest, mut done) = (&[][..], 0);
        while done < total {
            if self.said_goodbye {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if !self.refresh() {
                self.say_goodbye();
                return if done > 0 { Ok(done) } else { Err(io::ErrorKind::BrokenPipe.into()) };
            }
            let mut left = (total - done).min(MAX_PLAIN);
            done += left;
            self.unsent.reserve(left + Keys::overhead(self.suite));
            self.seal_pieces(
                DATA,
                iter::from_fn(|| {
                    if left == 0 {
                        return None;
                    }
                    while rest.is_empty() {
                        rest = bufs.next()?;
                    }
                    let (piece, after) = rest.split_at(rest.len().min(left));
                    rest = after;
                    left -= piece.len();
                    Some(piece)
                }),
            );
        }
        Ok(done)
    }

    pub(super) fn say_goodbye(&mut self) {
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.seal(ALERT, &[WARNING, CLOSE_NOTIFY]);
        }
    }
}
