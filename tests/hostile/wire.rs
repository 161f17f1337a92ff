//! Raw bytes, both ways.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use steadfast_harness::PATIENCE;

/// A connection of a client that sends what it likes.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the daemon accepts connections");
    stream.set_nodelay(true).expect("a socket can send at once");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a read timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket has a write timeout");
    stream
}

/// Everything that comes until the connection ends, by a close or by a reset.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {}
        Err(error) => {
            panic!("the connection neither ends nor goes on: {error}; so far {}", received.escape_ascii())
        }
    }
    received
}

/// The next answer; what comes behind it stays in `received`.
///
/// # Errors
///
/// The event that came instead: the end of the connection, a reset, or no HTTP.
pub(crate) fn answer(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    to_head: bool,
) -> Result<Message, String> {
    let parse = if to_head { Message::parse_answer_to_head } else { Message::parse };
    loop {
        let mut rest = &received[..];
        match parse(&mut rest) {
            Ok(answer) => {
                *received = rest.to_vec();
                return Ok(answer);
            }
            Err(Wrong::Short) => more(stream, received)?,
            Err(wrong) => return Err(format!("{wrong} in {}", received.escape_ascii())),
        }
    }
}

fn more(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<(), String> {
    let mut bytes = [0; 16 * 1024];
    match stream.read(&mut bytes) {
        Ok(0) => Err(format!("closed after {:?}", received.escape_ascii().to_string())),
        Ok(count) => {
            received.extend_from_slice(&bytes[..count]);
            Ok(())
        }
        Err(error) => Err(format!("{error} after {:?}", received.escape_ascii().to_string())),
    }
}

/// Sends these bytes, and returns all that is answered until the daemon closes. The client's own side stays open.
pub(crate) fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // A request that is refused early may not be read to its end.
    let _ = stream.write_all(bytes);
    read_to_end(&mut stream)
}

/// The statuses of a row of answers.
///
/// # Panics
///
/// If they are no HTTP, or the last one is not whole.
pub(crate) fn statuses(answers: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    let mut rest = answers;
    while !rest.is_empty() {
        let message =
            Message::parse(&mut rest).unwrap_or_else(|wrong| panic!("{wrong} in {}", answers.escape_ascii()));
        statuses.push(message.status());
    }
    statuses
}

/// A whole message, read as strictly as the standard allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its first line.
    pub(crate) start: String,
    /// Its fields in their order, names in lower case; in Latin-1, where every byte is a letter.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Fields that came after a chunked body.
    pub(crate) trailers: Vec<(String, String)>,
}

/// The reason why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// They are the beginning of one, perhaps.
    Short,
    Malformed(String),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => f.write_str("a message that breaks off"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
        }
    }
}

impl Message {
    /// Takes a message from the front of `bytes`, which else stay as they are.
    pub(crate) fn parse(bytes: &mut &[u8]) -> Result<Self, Wrong> {
        Self::take(bytes, false)
    }

    /// The same for an answer to `HEAD`, which has no body whatever its head announces (RFC 9112, section 6.3).
    pub(crate) fn parse_answer_to_head(bytes: &mut &[u8]) -> Result<Self, Wrong> {
        Self::take(bytes, true)
    }

    fn take(bytes: &mut &[u8], to_head: bool) -> Result<Self, Wrong> {
        let mut rest = *bytes;
        let start = line(&mut rest)?;
        let fields = fields(&mut rest)?;
        let all = |name: &str| -> Vec<&str> {
            fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
        };
        let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
        let bodyless = start.contains(" 204 ") || start.contains(" 304 ") || start.contains(" 1");
        let mut trailers = Vec::new();
        let body = match (&lengths[..], &codings[..]) {
            _ if to_head => Vec::new(),
            ([], ["chunked"]) => {
                let body = chunks(&mut rest)?;
                trailers = self::fields(&mut rest)?;
                body
            }
            ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| Wrong::Malformed(format!("length {length}")))?;
                take(&mut rest, if bodyless && start.starts_with("HTTP/") { 0 } else { length })?.to_vec()
            }
            ([], []) => Vec::new(),
            both => return Err(Wrong::Malformed(format!("{both:?}"))),
        };
        *bytes = rest;
        Ok(Self { start, fields, body, trailers })
    }

    /// The status of an answer.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub(crate) fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1).and_then(|code| code.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// True if it says that its connection is closed after it (RFC 9112, section 9.6).
    pub(crate) fn says_close(&self) -> bool {
        self.fields.iter().any(|(name, value)| name == "connection" && value.eq_ignore_ascii_case("close"))
    }

    /// The only field of this name.
    ///
    /// # Panics
    ///
    /// If there are two.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(n, _)| n == name);
        let found = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} twice: {self:?}");
        found
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Wrong> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Wrong::Short)?;
    *rest = after;
    Ok(taken)
}

fn line(rest: &mut &[u8]) -> Result<String, Wrong> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n").ok_or(Wrong::Short)?;
    let line = take(rest, end)?;
    take(rest, 2)?;
    if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return Err(Wrong::Malformed(line.escape_ascii().to_string()));
    }
    Ok(line.iter().copied().map(char::from).collect())
}

fn fields(rest: &mut &[u8]) -> Result<Vec<(String, String)>, Wrong> {
    let mut fields = Vec::new();
    loop {
        let line = line(rest)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let malformed = || Wrong::Malformed(format!("field {line:?}"));
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed());
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

fn chunks(rest: &mut &[u8]) -> Result<Vec<u8>, Wrong> {
    let mut body = Vec::new();
    loop {
        let size = line(rest)?;
        let malformed = || Wrong::Malformed(format!("chunk size {size:?}"));
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        let size = usize::from_str_radix(&size, 16).map_err(|_| malformed())?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(take(rest, size)?);
        if take(rest, 2)? != b"\r\n" {
            return Err(Wrong::Malformed("a chunk without an end".into()));
        }
    }
}
