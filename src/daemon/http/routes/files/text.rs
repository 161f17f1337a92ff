//! Texts for the fields of an answer.

use std::fmt::{self, Write};

use axum::http::HeaderValue;

/// The length of the longest text: a `Content-Range` with three numbers of twenty digits.
const LONGEST: usize = 72;

/// The text of a field. It is put together here and then copied once: `String`s that grow, and are shrunk in the end,
/// cost more than all else that an answer's head takes.
#[derive(Debug)]
pub(super) struct Text {
    bytes: [u8; LONGEST],
    /// More than there is room for, if it is too long.
    length: usize,
}

impl Text {
    /// The value of a field, as it is displayed; `None` if it is too long, or not fit for a field.
    pub(super) fn of(value: impl fmt::Display) -> Option<HeaderValue> {
        let mut text = Self::new();
        write!(text, "{value}").ok()?;
        text.value()
    }

    pub(super) fn new() -> Self {
        Self { bytes: [0; LONGEST], length: 0 }
    }

    pub(super) fn push(&mut self, text: &[u8]) -> &mut Self {
        let end = self.length.saturating_add(text.len());
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(text);
        }
        self.length = end;
        self
    }

    /// Appends a number in hexadecimal digits, at least so many. The standard library's formatter takes three times as
    /// long.
    pub(super) fn push_hex(&mut self, mut number: u64, least: usize) -> &mut Self {
        let mut digits = [b'0'; 16];
        let mut first = digits.len();
        while number > 0 {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(number % 16) as usize];
            number /= 16;
        }
        self.push(&digits[first.min(digits.len() - least)..])
    }

    pub(super) fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.bytes.get(..self.length)?).ok()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}
