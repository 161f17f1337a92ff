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
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
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
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left_and_twice_is_once(text: String, longest in 0..50usize) {
            let shown = excerpt_of(longest, &text).into_owned();
            prop_assert!(!shown.contains(is_harmful));
            prop_assert_eq!(printable(&shown).into_owned(), shown);
        }
    }
}
