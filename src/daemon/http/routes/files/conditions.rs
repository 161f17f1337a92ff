//! The conditions of a request for a file (RFC 9110, section 13).

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::text::Text;

/// The last second that HTTP has a date for, in 9999 (RFC 9110, section 5.6.7).
const LAST_DATE: u64 = 253_402_300_799;

/// The time within which a file can change twice without another date (RFC 9110, section 8.8.2.2).
const GRANULARITY: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    /// Never a weak one; none for a file of before 1970.
    pub(super) etag: Option<HeaderValue>,
    /// In whole seconds; none where HTTP has no date for it.
    pub(super) modified: Option<SystemTime>,
}

/// What follows from the conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The file is answered with.
    Holds,
    /// The client has the file: 304.
    NotModified,
    /// The file is not the one that the client expects: 412.
    Failed,
}

impl Validators {
    /// Those of a file, by the time of its last change since 1970 and its length.
    pub(super) fn new(modified: Option<Duration>, length: u64) -> Self {
        let second = modified.map(|at| at.as_secs()).filter(|second| *second <= LAST_DATE);
        Self {
            etag: modified.and_then(|at| tag(at, length)),
            modified: second.map(|second| SystemTime::UNIX_EPOCH + Duration::from_secs(second)),
        }
    }

    /// Evaluates the conditions in the order of section 13.2.2.
    pub(super) fn evaluate(&self, asked: &HeaderMap) -> Outcome {
        // Most requests have none: to look for each costs more than to look through the fields that there are.
        if !asked.keys().any(|name| name.as_str().starts_with("if-")) {
            return Outcome::Holds;
        }
        let modified_after = |date| self.modified.is_some_and(|modified| modified > date);
        let failed = match tags(asked, &header::IF_MATCH) {
            // An empty list is no condition: there is nothing that the file could be.
            Some(tags) => !tags.is_empty() && !self.is_among(&tags, false),
            None => date(asked, &header::IF_UNMODIFIED_SINCE).is_some_and(modified_after),
        };
        if failed {
            return Outcome::Failed;
        }
        match tags(asked, &header::IF_NONE_MATCH) {
            Some(tags) if self.is_among(&tags, true) => Outcome::NotModified,
            Some(_) => Outcome::Holds,
            None => match (date(asked, &header::IF_MODIFIED_SINCE), self.modified) {
                (Some(date), Some(modified)) if modified <= date => Outcome::NotModified,
                _ => Outcome::Holds,
            },
        }
    }

    /// True if the file is still the one that the client has a part of, or the client does not ask: it sends no
    /// `If-Range` (section 13.1.5). A tag is compared strongly, and a date counts once it is old enough.
    pub(super) fn range_applies(&self, asked: &HeaderMap, now: SystemTime) -> bool {
        let mut conditions = asked.get_all(header::IF_RANGE).iter();
        let condition = match (conditions.next(), conditions.next()) {
            (None, _) => return true,
            (Some(condition), None) => condition,
            (Some(_), Some(_)) => return false,
        };
        if self.etag.as_ref() == Some(condition) {
            return true;
        }
        self.modified.is_some_and(|modified| {
            let is_old = now.duration_since(modified).is_ok_and(|age| age >= GRANULARITY);
            is_old && time(condition) == Some(modified)
        })
    }

    /// True if the file's tag is one of these. `weakly`: also if it is a weak one there (section 8.8.3.2).
    fn is_among(&self, tags: &[&[u8]], weakly: bool) -> bool {
        matches!(tags, [tag] if *tag == b"*")
            || self.etag.as_ref().is_some_and(|etag| {
                let strong = |tag| if weakly { strip_weak(tag) } else { tag };
                tags.iter().any(|tag| strong(tag) == etag.as_bytes())
            })
    }
}

/// The tag of a file, by the time of its last change and its length.
fn tag(modified: Duration, length: u64) -> Option<HeaderValue> {
    let (second, nanosecond) = (modified.as_secs(), modified.subsec_nanos().into());
    let mut tag = Text::new();
    tag.push(b"\"").push_hex(second, 1).push(b".").push_hex(nanosecond, 8);
    tag.push(b"-").push_hex(length, 1).push(b"\"");
    tag.value()
}

fn strip_weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The tags of a list, which may be on several lines (section 5.3); `None` if there is no such field.
fn tags<'a>(asked: &'a HeaderMap, field: &HeaderName) -> Option<Vec<&'a [u8]>> {
    asked.contains_key(field).then(|| {
        let lines = asked.get_all(field).iter().map(HeaderValue::as_bytes);
        lines.flat_map(list).filter(|tag| !tag.is_empty()).collect()
    })
}

/// The elements of a list, with a comma between two (section 5.6.1) but none within quotes.
fn list(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let elements = line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    });
    elements.map(<[u8]>::trim_ascii)
}

/// A date that is a condition. It counts only if it stands on one line (sections 13.1.3 and 13.1.4).
fn date(asked: &HeaderMap, field: &HeaderName) -> Option<SystemTime> {
    let mut lines = asked.get_all(field).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => time(line),
        _ => None,
    }
}

/// A date in any of the three forms (RFC 9110, section 5.6.7).
fn time(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}
