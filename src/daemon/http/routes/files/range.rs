//! Ranges of a file (RFC 9110, section 14).

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::daemon::http::routes::number;

/// A range of bytes, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// From the first to the last byte, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl Range {
    /// The range of a request; `None` without one. A list of ranges, and one that is malformed or of another unit, is
    /// ignored, as section 14.2 permits: the whole is better than an error.
    pub(super) fn asked(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::RANGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return None;
        };
        let (unit, range) = line.to_str().ok()?.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        let number = |digits: &str| number(digits.as_bytes());
        match (unit.eq_ignore_ascii_case("bytes"), first, last) {
            (false, _, _) => None,
            (true, "", last) => number(last).map(Self::Last),
            (true, first, "") => Some(Self::From(number(first)?, None)),
            (true, first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }
}

impl From<Range> for HeaderValue {
    fn from(range: Range) -> Self {
        let range = match range {
            Range::From(first, Some(last)) => format!("bytes={first}-{last}"),
            Range::From(first, None) => format!("bytes={first}-"),
            Range::Last(length) => format!("bytes=-{length}"),
        };
        Self::try_from(range).unwrap_or(Self::from_static("bytes=0-"))
    }
}

/// True if `ServeDir` found nothing in the range: 416, or, for an empty file, a part that is empty.
pub(super) fn is_unsatisfied(response: &Response) -> bool {
    match response.status() {
        StatusCode::RANGE_NOT_SATISFIABLE => true,
        StatusCode::PARTIAL_CONTENT => is_of_nothing(response),
        _ => false,
    }
}

/// True if the file that a range was asked of is empty.
pub(super) fn is_of_nothing(response: &Response) -> bool {
    response.headers().get(header::CONTENT_RANGE).is_some_and(|range| range.as_bytes().ends_with(b"/0"))
}

/// Makes the answer 416, with the length of the file (section 15.5.17).
pub(super) fn refuse(response: &mut Response) {
    if is_of_nothing(response) {
        *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_RANGE, HeaderValue::from_static("bytes */0"));
    }
}
