//! Words to choose from.

use super::{Refusal, Text};
use crate::config::diagnostic::{list, nearest};
use crate::daemon::http::https;
use crate::logging;

/// A value that is one of a few words.
pub(in crate::config) trait Choice {
    type Value: Copy + 'static;

    const WORDS: &[(&str, Self::Value)];
}

impl<C: Choice> Text for C {
    type Value = C::Value;

    fn expected() -> String {
        format!("one of {}", list(C::WORDS.iter().map(|(word, _)| *word)).replace('`', "\""))
    }

    fn parse(text: &str) -> Result<C::Value, Refusal> {
        C::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let refusal = Refusal::new(format!("is {text:?}"));
            match nearest(text, C::WORDS.iter().map(|(word, _)| *word)) {
                Some(word) => refusal.help(format!("the nearest is {word:?}")),
                None => refusal,
            }
        })
    }
}

/// `[https] min_version`.
pub(in crate::config) struct TlsVersion;

impl Choice for TlsVersion {
    type Value = https::TlsVersion;

    const WORDS: &[(&str, Self::Value)] =
        &[("1.2", https::TlsVersion::V1_2), ("1.3", https::TlsVersion::V1_3)];
}

/// `[https] client_auth`.
pub(in crate::config) struct ClientAuth;

impl Choice for ClientAuth {
    type Value = https::ClientAuth;

    const WORDS: &[(&str, Self::Value)] =
        &[("required", https::ClientAuth::Required), ("optional", https::ClientAuth::Optional)];
}

/// `[log] level`.
pub(in crate::config) struct Level;

impl Choice for Level {
    type Value = Option<tracing::Level>;

    const WORDS: &[(&str, Self::Value)] = &[
        ("off", None),
        ("error", Some(tracing::Level::ERROR)),
        ("warn", Some(tracing::Level::WARN)),
        ("info", Some(tracing::Level::INFO)),
        ("debug", Some(tracing::Level::DEBUG)),
        ("trace", Some(tracing::Level::TRACE)),
    ];
}

/// `[log] target`.
pub(in crate::config) struct Target;

impl Choice for Target {
    type Value = logging::Target;

    const WORDS: &[(&str, Self::Value)] = &[
        ("auto", logging::Target::Auto),
        ("journald", logging::Target::Journald),
        ("stderr", logging::Target::Stderr),
    ];
}

/// `[log] format`.
pub(in crate::config) struct Format;

impl Choice for Format {
    type Value = logging::Format;

    const WORDS: &[(&str, Self::Value)] = &[("text", logging::Format::Text), ("json", logging::Format::Json)];
}

/// `[log] access_format`.
pub(in crate::config) struct AccessFormat;

impl Choice for AccessFormat {
    type Value = logging::AccessFormat;

    const WORDS: &[(&str, Self::Value)] = &[
        ("event", logging::AccessFormat::Event),
        ("combined", logging::AccessFormat::Combined),
        ("json", logging::AccessFormat::Json),
    ];
}

/// `[log] access`.
pub(in crate::config) struct Access;

impl Choice for Access {
    type Value = logging::Access;

    const WORDS: &[(&str, Self::Value)] =
        &[("all", logging::Access::All), ("errors", logging::Access::Errors), ("off", logging::Access::Off)];
}
