//! HTTP/2 frame by frame (RFC 9113), for clients that write what no library would.

/// A part of a body (section 6.1).
pub const DATA: u8 = 0;
/// A head, or its beginning (6.2).
pub const HEADERS: u8 = 1;
/// What nobody heeds any more (6.3).
pub const PRIORITY: u8 = 2;
/// The end of a stream, before its time (6.4).
pub const RST_STREAM: u8 = 3;
/// What the other end is to know (6.5).
pub const SETTINGS: u8 = 4;
/// What is to be sent back (6.7).
pub const PING: u8 = 6;
/// The beginning of the end of the connection (6.8).
pub const GOAWAY: u8 = 7;
/// Room for more of a body (6.9).
pub const WINDOW_UPDATE: u8 = 8;
/// More of a head (6.10).
pub const CONTINUATION: u8 = 9;

/// The flag of the last frame of a stream.
pub const END_STREAM: u8 = 1;
/// The flag of the last frame of a head.
pub const END_HEADERS: u8 = 4;
/// The flag of a frame that says that the settings, or the ping, have come.
pub const ACK: u8 = 1;

/// What a client sends before its first frame (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The number of the setting that is the window of each stream (section 6.5.2).
const INITIAL_WINDOW_SIZE: u8 = 4;
/// `CANCEL`, the reason of a client that has lost its interest (section 7).
const CANCEL: u32 = 8;

/// The methods, as the static table of HPACK has them (RFC 7541, appendix A).
const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// A frame.
///
/// # Panics
/// If the payload is longer than a frame can be.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [0, a, b, c] = u32::try_from(payload.len()).expect("it is short").to_be_bytes() else {
        panic!("a payload of {} bytes", payload.len())
    };
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// The beginning of a connection, whose client has room for so much of each answer.
#[must_use]
pub fn hello(window: u32) -> Vec<u8> {
    let window = [&[0, INITIAL_WINDOW_SIZE][..], &window.to_be_bytes()].concat();
    [PREFACE, &frame(SETTINGS, 0, 0, &window), &frame(SETTINGS, ACK, 0, &[])].concat()
}

/// The head of a `GET` of a short path, in HPACK (RFC 7541) without any table of its own.
///
/// # Panics
/// If the path is longer than 255 bytes.
#[must_use]
pub fn get_head(path: &str) -> Vec<u8> {
    head(GET, path)
}

fn head(method: u8, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).expect("it is short");
    [&[method, 0x86, 0x01, 1, b'a', 0x04, length][..], path.as_bytes()].concat()
}

/// A whole `GET` of a short path.
#[must_use]
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get_head(path))
}

/// A `POST`, whose body is still to come. Some fields may be added to its head, in HPACK.
#[must_use]
pub fn post(stream: u32, path: &str, fields: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[&head(POST, path), fields].concat())
}

/// A client that takes its request back.
#[must_use]
pub fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// More room for an answer; on stream 0, for all of them.
#[must_use]
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}
