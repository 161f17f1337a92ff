//! Durations, sizes and counts.

use std::time::Duration;

use bytesize::ByteSize;
use jiff::fmt::friendly::SpanParser;
use toml::Spanned;
use toml::de::DeValue;

use super::{Refusal, Text, is_number, whole};
use crate::config::diagnostic::Mistake;
use crate::config::written::Kind;
use crate::daemon::http::{COUNTS, HEADER_LIMIT, THREADS};
use crate::rules;

/// A duration in which something must happen.
pub(in crate::config) struct Timeout;

impl Text for Timeout {
    type Value = Duration;

    fn expected() -> String {
        rules::TIMEOUT.to_owned()
    }

    fn parse(text: &str) -> Result<Duration, Refusal> {
        duration(text)
    }
}

/// A duration that may be nothing.
pub(in crate::config) struct Delay;

impl Text for Delay {
    type Value = Duration;

    fn expected() -> String {
        rules::DELAY.to_owned()
    }

    fn parse(text: &str) -> Result<Duration, Refusal> {
        duration(text)
    }
}

/// A duration, or "never".
pub(in crate::config) struct Deadline;

impl Text for Deadline {
    type Value = Option<Duration>;

    fn expected() -> String {
        "a duration, such as \"30s\" or \"5m\", or \"never\"".to_owned()
    }

    fn parse(text: &str) -> Result<Option<Duration>, Refusal> {
        if text == "never" { Ok(None) } else { duration(text).map(Some) }
    }
}

/// A duration in which something must happen, or "never".
pub(in crate::config) struct IdleTimeout;

impl Text for IdleTimeout {
    type Value = Option<Duration>;

    fn expected() -> String {
        rules::TIMEOUT_OR_NEVER.to_owned()
    }

    fn parse(text: &str) -> Result<Option<Duration>, Refusal> {
        if text == "never" { Ok(None) } else { Timeout::parse(text).map(Some) }
    }
}

fn duration(text: &str) -> Result<Duration, Refusal> {
    match SpanParser::new().parse_unsigned_duration(text) {
        Ok(duration) => Ok(duration),
        Err(_) if is_number(text) => Err(Refusal::new("has no unit")
            .help(format!("{text} seconds are \"{text}s\", {text} minutes \"{text}m\""))),
        Err(_) if text.starts_with('-') => Err(Refusal::new("is negative")),
        Err(_) => Err(Refusal::new("is no duration")),
    }
}

/// A number of bytes.
pub(in crate::config) struct BodyLimit;

impl Text for BodyLimit {
    type Value = u64;

    fn expected() -> String {
        "a size, such as \"10MiB\" or \"64KiB\"".to_owned()
    }

    fn parse(text: &str) -> Result<u64, Refusal> {
        size(text)
    }
}

/// The size of a request's largest head, in bytes.
pub(in crate::config) struct HeaderLimit;

impl Text for HeaderLimit {
    type Value = usize;

    fn expected() -> String {
        HEADER_LIMIT.to_owned()
    }

    fn parse(text: &str) -> Result<usize, Refusal> {
        usize::try_from(size(text)?).map_err(|_| Refusal::new("is too large"))
    }
}

fn size(text: &str) -> Result<u64, Refusal> {
    match text.parse::<ByteSize>() {
        _ if text.starts_with('-') => Err(Refusal::new("is negative")),
        // The parser's result for every number that is too large.
        Ok(ByteSize(u64::MAX)) => Err(Refusal::new("is too large")),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err(Refusal::new("is no size")),
    }
}

/// A number of connections or requests.
pub(in crate::config) struct Connections;

impl Kind for Connections {
    type Value = usize;

    fn expected() -> String {
        rules::whole_number(&COUNTS)
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<usize> {
        whole::<Self, usize>(&value, name, mistakes)
    }
}

/// A number of threads; `None` is one for each core.
pub(in crate::config) struct Threads;

impl Kind for Threads {
    type Value = Option<usize>;

    fn expected() -> String {
        format!("\"auto\" or {}", rules::whole_number(&THREADS))
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Option<usize>> {
        match value.get_ref() {
            DeValue::String(text) if text == "auto" => Some(None),
            _ => whole::<Self, usize>(&value, name, mistakes).map(Some),
        }
    }
}

/// A number of restarts.
pub(in crate::config) struct Restarts;

impl Kind for Restarts {
    type Value = u32;

    fn expected() -> String {
        format!("a whole number from 0 to {}", u32::MAX)
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<u32> {
        whole::<Self, u32>(&value, name, mistakes)
    }
}
