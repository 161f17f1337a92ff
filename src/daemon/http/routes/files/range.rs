//! Ranges of a file (RFC 9110, section 14).

use std::ops::Range;

use axum::http::{HeaderMap, header};

use crate::daemon::http::routes::number;

/// A range of bytes, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// From the first to the last byte, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

/// The answer to a request for a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of the file, with 200.
    Whole,
    /// These bytes, with 206.
    Of(Range<u64>),
    /// There is nothing in the range: 416 (section 15.5.17).
    None,
}

impl Asked {
    /// The range of a request; `None` without one. A list of ranges, and one that is malformed or of another unit, is
    /// ignored, as section 14.2 permits: the whole is better than an error.
    pub(super) fn by(headers: &HeaderMap) -> Option<Self> {
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

    /// The part of a file of so many bytes. A range that is longer than the file is all of it (section 14.1.2), and
    /// the end of an empty file is the whole of it.
    pub(super) fn of(self, length: u64) -> Part {
        match self {
            Self::From(first, _) if first >= length => Part::None,
            Self::From(first, last) => {
                Part::Of(first..last.map_or(length, |last| last.saturating_add(1).min(length)))
            }
            Self::Last(0) => Part::None,
            Self::Last(_) if length == 0 => Part::Whole,
            Self::Last(bytes) => Part::Of(length.saturating_sub(bytes)..length),
        }
    }
}
