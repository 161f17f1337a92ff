//! Text for people: what comes from outside, made fit to be shown in the log, in STATUS, on a terminal; and numbers.
//!
//! A client chooses the path of its request, an upstream its error, and an operator looks at them as root. So
//! control characters are written as escapes, and text that would fill the screen, or the log, is cut.

use std::borrow::Cow;
use std::fmt::{Display, Write};

/// The most that is shown of a method, a path or a query, in bytes.
pub(crate) const LONGEST: usize = 1024;

/// The text without what drives a terminal or turns the order of its characters about: control characters (C0, DEL, C1)
/// but for line feeds and tabs, line separators, and the bidirectional controls of UAX #9. They are written as in Rust,
/// `\u{9b}`. Printable text is returned as it is, so a second call changes nothing.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_harmful(char) {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", char.escape_unicode());
        } else {
            shown.push(char);
        }
    }
    shown.into()
}

fn is_harmful(char: char) -> bool {
    match char {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        char => char.is_control(),
    }
}

/// The beginning of a method, a path or a query, and how much more there is.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    excerpt_of(LONGEST, text)
}

/// The first `longest` bytes of a text, and how much more there is.
pub(crate) fn excerpt_of(longest: usize, text: &str) -> Cow<'_, str> {
    let (begin, rest) = split(longest, text);
    beginning(begin, rest.len())
}

/// The last `longest` bytes of a text, and how much there is before.
pub(crate) fn ending_of(longest: usize, text: &str) -> Cow<'_, str> {
    let least = text.len().saturating_sub(longest);
    let start = (least..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or_default();
    match start {
        0 => printable(text),
        before => format!("({before} B before)...{}", printable(&text[start..])).into(),
    }
}

/// The first `longest` bytes of a text, and the rest.
pub(crate) fn split(longest: usize, text: &str) -> (&str, &str) {
    if text.len() <= longest {
        return (text, "");
    }
    let end = (0..=longest).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
    text.split_at(end)
}

/// The beginning of a text, of which so many bytes more are left out.
pub(crate) fn beginning(begin: &str, more: usize) -> Cow<'_, str> {
    match more {
        0 => printable(begin),
        more => format!("{}...({more} B more)", printable(begin)).into(),
    }
}

/// A number of things: "1 request", "2 requests".
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A number with its thousands apart: "1,203".
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A rate: "0.3", "1,203".
#[must_use]
pub fn rate(rate: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates, which is as good here"
    )]
    let whole = rate.round() as u64;
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { grouped(whole) }
}

/// A number of bytes in the unit that suits it: "1.2 MiB".
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one digit of it is shown")]
    let (mut size, mut unit) = (bytes as f64 / 1024.0, units[0]);
    for next in &units[1..] {
        if size < 1023.95 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    format!("{size:.1} {unit}")
}

/// A time, in seconds, in the units that suit it: "0.3 ms", "4.2 s", "3 min 12 s", "2 h 5 min", "3 d 4 h".
#[must_use]
pub fn lasting(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates, which is as good here"
    )]
    let whole = seconds.round() as u64;
    let two = |large, large_unit, small, small_unit| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match whole {
        _ if seconds <= 0.0 => "0 s".to_owned(),
        _ if seconds < 0.000_95 => format!("{:.2} ms", seconds * 1e3),
        _ if seconds < 0.009_95 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3_600 => two(whole / 60, "min", whole % 60, "s"),
        3_600..86_400 => two(whole / 3_600, "h", whole % 3_600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    //! Only text is shown, and no more than is wanted.

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_drives_a_terminal_is_escaped_and_all_else_is_as_it_was() {
        for (text, shown) in [
            ("/a/b?c=ü", "/a/b?c=ü"),
            ("two\n\tlines", "two\n\tlines"),
            ("\u{1b}[31m\r\u{7}", r"\u{1b}[31m\u{d}\u{7}"),
            ("\u{9b}31m\u{7f}", r"\u{9b}31m\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{2028}", r"a\u{202e}b\u{2066}c\u{2028}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(excerpt_of(5, "/path"), "/path");
        assert_eq!(excerpt_of(5, "/paths"), "/path...(1 B more)");
        // Within a character nothing can be cut.
        assert_eq!(excerpt_of(4, "/abü"), "/ab...(2 B more)");
        assert_eq!(ending_of(5, "/path"), "/path");
        assert_eq!(ending_of(5, "/paths"), "(1 B before)...paths");
        assert_eq!(ending_of(4, "üabc"), "(2 B before)...abc");
    }

    #[test]
    fn numbers_are_in_units_that_people_read() {
        let shown = [0, 999, 1203, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "999", "1,203", "1,234,567"]);
        let shown = [0, 1023, 1536, 1_048_570, 5_000_000_000].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "1.0 MiB", "4.7 GiB"]);
        let times = [0.0, 0.0003, 0.0042, 0.25, 4.2, 59.0, 192.0, 7200.0, 7500.0, 273_600.0];
        let shown = [
            "0 s",
            "0.30 ms",
            "4.2 ms",
            "250 ms",
            "4.2 s",
            "59 s",
            "3 min 12 s",
            "2 h",
            "2 h 5 min",
            "3 d 4 h",
        ];
        assert_eq!(times.map(lasting), shown);
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left_and_twice_is_once(text: String, longest in 0..50usize) {
            let shown = excerpt_of(longest, &text).into_owned();
            prop_assert!(!shown.contains(is_harmful));
            prop_assert_eq!(printable(&shown).into_owned(), shown);
            prop_assert!(!ending_of(longest, &text).contains(is_harmful));
        }
    }
}
