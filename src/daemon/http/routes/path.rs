//! The one reading of a request's path, by which its route is chosen and in which it is passed on.
//!
//! A proxy that reads a path differently from its upstream opens what its routes close. So the spellings of a path that
//! RFC 3986, section 6.2.2, calls equivalent become one: unreserved characters are decoded, the digits of the other
//! encodings are in upper case, dot segments are resolved. Empty segments are merged, as most servers do. An encoded
//! slash, on which upstreams do not agree, is compared as a slash and passed on as it came.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// A path, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading<'a> {
    /// The path to pass on: normal, and percent-encoded where it was.
    pub(crate) path: Cow<'a, str>,
    /// The path to compare with the routes': decoded throughout, an encoded slash or backslash being a slash.
    pub(crate) compared: Cow<'a, [u8]>,
    /// The path to compare if an encoded slash (here a NUL, which no path has) or a backslash is a part of a name;
    /// `None` where there is none.
    pub(crate) undivided: Option<Vec<u8>>,
}

/// The reason why a path has no reading; its text follows "the path".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("does not begin with a slash")]
    Relative,
    #[error("leads above the root")]
    AboveTheRoot,
    #[error("has a \"%\" that is not followed by two hexadecimal digits")]
    Encoding,
    #[error("has an encoded NUL")]
    Nul,
    #[error("has a dot segment beside an encoded slash or a backslash")]
    HiddenDots,
}

/// The spellings in a normal path that some servers take for a slash.
const DIVIDERS: [&str; 2] = ["%2F", "%5C"];

/// The characters that a segment of a URI cannot hold (RFC 3986, section 3.3). hyper lets some of them pass.
const NOT_OF_A_SEGMENT: AsciiSet = CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Reads the path of a URI.
pub(crate) fn read(path: &str) -> Result<Reading<'_>, Unreadable> {
    if !path.starts_with('/') {
        return Err(Unreadable::Relative);
    }
    if is_plain(path) {
        return Ok(Reading { path: path.into(), compared: path.as_bytes().into(), undivided: None });
    }
    let path = resolved(path)?;
    let decoded = |path: &str| Cow::from(percent_decode_str(path)).into_owned();
    let Some(divided) = divided(&path) else {
        let compared = decoded(&path).into();
        return Ok(Reading { path: path.into(), compared, undivided: None });
    };
    let mut compared = decoded(&divided);
    compared.dedup_by(|byte, before| (*byte, *before) == (b'/', b'/'));
    let undivided = decoded(&path.replace("%2F", "%00"));
    Ok(Reading { path: path.into(), compared: compared.into(), undivided: Some(undivided) })
}

/// Puts another path into a request's URI; the query stays as it came.
///
/// # Errors
/// The path is longer than a URI may be.
pub(super) fn replace(request: &mut Request, path: &str) -> Result<(), axum::http::Error> {
    let mut parts = request.uri().clone().into_parts();
    let query = parts.path_and_query.as_ref().and_then(PathAndQuery::query);
    parts.path_and_query = Some(match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}"))?,
        None => PathAndQuery::try_from(path)?,
    });
    *request.uri_mut() = Uri::from_parts(parts)?;
    Ok(())
}

/// True if the path is normal as it is, which most are.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    path.bytes().all(|byte| {
        let is_plain = match byte {
            b'/' | b'.' => before != b'/',
            _ => is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte),
        };
        before = byte;
        is_plain
    })
}

/// The path with its dot segments resolved (RFC 3986, section 5.2.4), its empty segments merged, and in each segment
/// what need not be encoded decoded.
fn resolved(path: &str) -> Result<String, Unreadable> {
    let mut segments: Vec<String> = Vec::new();
    let mut is_folder = false;
    for written in path.split('/').skip(1) {
        let segment = normalised(written)?;
        is_folder = matches!(&*segment, "" | "." | "..");
        match &*segment {
            "" | "." => {}
            ".." => drop(segments.pop().ok_or(Unreadable::AboveTheRoot)?),
            _ => segments.push(segment),
        }
    }
    let mut path: String = segments.iter().flat_map(|segment| ["/", segment.as_str()]).collect();
    if is_folder {
        path.push('/');
    }
    Ok(path)
}

/// One segment, with unreserved characters as themselves, all other encodings in upper case, and what cannot stand in a
/// URI encoded.
fn normalised(segment: &str) -> Result<String, Unreadable> {
    let mut normal = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((literal, encoded)) = rest.split_once('%') {
        normal.extend(utf8_percent_encode(literal, &NOT_OF_A_SEGMENT));
        let digits = encoded.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let digits = digits.ok_or(Unreadable::Encoding)?;
        match u8::from_str_radix(digits, 16) {
            Ok(0) => return Err(Unreadable::Nul),
            Ok(byte) if is_unreserved(byte) => normal.push(byte.into()),
            _ => {
                normal.push('%');
                normal.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = &encoded[2..];
    }
    normal.extend(utf8_percent_encode(rest, &NOT_OF_A_SEGMENT));
    // A server that decodes the slash would find dots that are not resolved.
    let is_dots = |name: &str| matches!(name, "." | "..");
    match divided(&normal) {
        Some(names) if names.split('/').any(is_dots) => Err(Unreadable::HiddenDots),
        _ => Ok(normal),
    }
}

/// A normal path with a slash for each divider; `None` where there is none.
fn divided(path: &str) -> Option<String> {
    let is_divided = DIVIDERS.iter().any(|divider| path.contains(divider));
    is_divided.then(|| DIVIDERS.iter().fold(path.to_owned(), |path, divider| path.replace(divider, "/")))
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path as it was sent, as it is passed on, and as it is compared.
    const READ: [(&str, &str, &str); 13] = [
        ("/", "/", "/"),
        ("/a/b.c/.d/..e/", "/a/b.c/.d/..e/", "/a/b.c/.d/..e/"),
        ("/%41%2d%2E%5f%7E", "/A-._~", "/A-._~"),
        ("/%c3%a9/%2a", "/%C3%A9/%2A", "/\u{e9}/*"),
        ("//a///b//", "/a/b/", "/a/b/"),
        ("/a/./b/.", "/a/b/", "/a/b/"),
        ("/a/b/../c/..", "/a/", "/a/"),
        ("/a//../b", "/b", "/b"),
        ("/a%2fb%5Cc", "/a%2Fb%5Cc", "/a/b/c"),
        ("/a%2f/%2fb\\", "/a%2F/%2Fb%5C", "/a/b/"),
        ("/{\u{e9}}!$&'()*+,;=:@", "/%7B%C3%A9%7D!$&'()*+,;=:@", "/{\u{e9}}!$&'()*+,;=:@"),
        ("/%252e%252f", "/%252e%252f", "/%2e%2f"),
        ("/a%2fb/../c", "/c", "/c"),
    ];

    #[test]
    fn equivalent_spellings_are_one_path() {
        for (sent, path, compared) in READ {
            let reading = read(sent).unwrap_or_else(|unreadable| panic!("{sent}: {unreadable}"));
            assert_eq!(reading.path, path, "{sent}");
            assert_eq!(reading.compared, compared.as_bytes(), "{sent}");
        }
        let reading = read("/a%2fb%5cc").expect("a reading");
        assert_eq!(reading.undivided.as_deref(), Some(b"/a\0b\\c".as_slice()));
    }

    #[test]
    fn a_path_that_can_be_read_in_several_ways_is_not_read() {
        for (path, why) in [
            ("", Unreadable::Relative),
            ("*", Unreadable::Relative),
            ("a/b", Unreadable::Relative),
            ("/..", Unreadable::AboveTheRoot),
            ("/a/../../b", Unreadable::AboveTheRoot),
            ("//%2e.", Unreadable::AboveTheRoot),
            ("/%", Unreadable::Encoding),
            ("/%1", Unreadable::Encoding),
            ("/%+1", Unreadable::Encoding),
            ("/%\u{e9}", Unreadable::Encoding),
            ("/a%00", Unreadable::Nul),
            ("/a%2f..", Unreadable::HiddenDots),
            ("/a\\.\\b", Unreadable::HiddenDots),
            ("/%2e%2e%5cb", Unreadable::HiddenDots),
        ] {
            assert_eq!(read(path), Err(why), "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_the_same_again_and_has_nothing_left_to_resolve(
            path in "(/(%2[ef5F]|%5c|%[46]1|[.a\\\\]){0,4}){1,5}",
        ) {
            if let Ok(first) = read(&path) {
                prop_assert_eq!(&read(&first.path).expect("a reading"), &first);
                prop_assert!(first.path.starts_with('/') && !first.path.contains("//"));
                for slashes in ["/", "//"] {
                    let divided = String::from_utf8_lossy(&first.compared).replace('\\', slashes);
                    prop_assert!(divided.split('/').all(|name| !matches!(name, "." | "..")), "{divided}");
                }
            }
        }
    }
}
