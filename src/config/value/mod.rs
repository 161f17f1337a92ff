//! The ways in which single values are written.

mod address;
mod amount;
mod choice;
mod https;
mod route;

use std::fmt;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

pub(super) use address::{Listen, Proxies, Proxy, Upstream};
pub(super) use amount::{
    BodyLimit, Connections, Deadline, Delay, HeaderLimit, IdleTimeout, Restarts, Threads, Timeout,
};
pub(super) use choice::{Access, AccessFormat, ClientAuth, Format, Level, Target, TlsVersion};
pub(super) use https::{AuthoritiesFile, ChainFile, FieldName, KeyFile, RevocationsFile};
pub(super) use route::{
    ContentType, Directory, FieldValue, Headers, Host, Hosts, Index, RoutePath, Status, True,
};

use super::diagnostic::Mistake;
use super::written::{Kind, wrong_type};
use crate::logging::ACCESS_FILE;

/// A value that is written as a string.
pub(super) trait Text {
    type Value;

    fn expected() -> String;

    fn parse(text: &str) -> Result<Self::Value, Refusal>;
}

/// The reason why a string is not what it should be.
pub(super) struct Refusal {
    /// Completes "`key` ...".
    what: String,
    help: Option<String>,
}

impl Refusal {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// The reason why a text is not a value as the config has it: what is wrong, what is expected, and advice.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    what: String,
    expected: String,
    help: Option<String>,
}

impl ParseError {
    /// The value that a text is.
    fn or_value<T: Text>(text: &str) -> Result<T::Value, Self> {
        let refused =
            |Refusal { what, help }| Self { text: text.to_owned(), what, expected: T::expected(), help };
        T::parse(text).map_err(refused)
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, what, expected, help } = self;
        write!(f, "{text:?} {what}: expected {expected}")?;
        help.as_ref().map_or(Ok(()), |help| write!(f, "; {help}"))
    }
}

impl std::error::Error for ParseError {}

impl<T: Text> Kind for T {
    type Value = T::Value;

    fn expected() -> String {
        <T as Text>::expected()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<T::Value> {
        let span = value.span();
        let DeValue::String(text) = value.get_ref() else {
            mistakes.push(wrong_type::<T>(name, span, value.get_ref()));
            return None;
        };
        match T::parse(text) {
            Ok(value) => Some(value),
            Err(Refusal { what, help }) => {
                let expected = format!("expected {}", <T as Text>::expected());
                mistakes.push(Mistake::new(span, format!("`{name}` {what}"), expected).help(help));
                None
            }
        }
    }
}

/// Any text.
pub(in crate::config) struct Words;

impl Text for Words {
    type Value = String;

    fn expected() -> String {
        "a string".to_owned()
    }

    fn parse(text: &str) -> Result<String, Refusal> {
        Ok(text.to_owned())
    }
}

/// `[log] access_file`.
pub(in crate::config) struct AccessFile;

impl Kind for AccessFile {
    type Value = Option<PathBuf>;

    fn expected() -> String {
        ACCESS_FILE.to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Option<PathBuf>> {
        let span = value.span();
        let DeValue::String(path) = value.get_ref() else {
            mistakes.push(wrong_type::<Self>(name, span, value.get_ref()));
            return None;
        };
        if path == "stderr" {
            return Some(None);
        }
        let path = PathBuf::from(&**path);
        if path.is_absolute()
            && let Some(directory) = path.parent()
            && !directory.is_dir()
        {
            let mistake = Mistake::new(
                span,
                format!("`{name}` is in no directory"),
                format!("expected {}", Self::expected()),
            );
            let help = format!("make the directory {}, or correct the path", directory.display());
            mistakes.push(mistake.help(help).of_the_moment());
        }
        Some(Some(path))
    }
}

/// `true` or `false`.
pub(in crate::config) struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn expected() -> String {
        "true or false".to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<bool> {
        if let DeValue::Boolean(flag) = value.get_ref() {
            return Some(*flag);
        }
        mistakes.push(wrong_type::<Self>(name, value.span(), value.get_ref()));
        None
    }
}

/// A whole number that an `N` can be.
fn whole<K: Kind, N: TryFrom<i128>>(
    value: &Spanned<DeValue<'_>>,
    name: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<N> {
    let number = match value.get_ref() {
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    };
    let number = number.and_then(|number| N::try_from(number).ok());
    if number.is_none() {
        mistakes.push(wrong_type::<K>(name, value.span(), value.get_ref()));
    }
    number
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
