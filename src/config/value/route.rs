//! The values of a route.

use std::io;
use std::path::PathBuf;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use toml::Spanned;
use toml::de::DeValue;

use super::{Refusal, Text, whole};
use crate::config::diagnostic::Mistake;
use crate::config::written::{Kind, wrong_type};
use crate::daemon::http::routes::{check, files};

/// A host, or all below one.
pub(in crate::config) struct Host;

impl Text for Host {
    type Value = String;

    fn expected() -> String {
        check::HOST.to_owned()
    }

    fn parse(text: &str) -> Result<String, Refusal> {
        Ok(text.to_owned())
    }
}

/// The hosts of a route: one, or a list.
pub(in crate::config) struct Hosts;

impl Kind for Hosts {
    type Value = Vec<Spanned<String>>;

    fn expected() -> String {
        format!("{}, or a list of such", check::HOST)
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Self::Value> {
        let list = match value.get_ref() {
            DeValue::String(host) => {
                return Some(vec![Spanned::new(value.span(), host.clone().into_owned())]);
            }
            DeValue::Array(list) => list,
            other => {
                mistakes.push(wrong_type::<Self>(name, value.span(), other));
                return None;
            }
        };
        if list.is_empty() {
            let expected = format!("expected {}", Self::expected());
            let mistake = Mistake::new(value.span(), format!("`{name}` is empty"), expected);
            mistakes.push(mistake.help("leave it out: the route is for every host then".to_owned()));
            return None;
        }
        let host = |host: &Spanned<DeValue<'_>>| match host.get_ref() {
            DeValue::String(text) => Some(Spanned::new(host.span(), text.clone().into_owned())),
            other => {
                mistakes.push(wrong_type::<Self>(name, host.span(), other));
                None
            }
        };
        let hosts: Vec<_> = list.iter().filter_map(host).collect();
        (!hosts.is_empty()).then_some(hosts)
    }
}

/// `/exact/path`, or `/below/*`.
pub(in crate::config) struct RoutePath;

impl Text for RoutePath {
    type Value = String;

    fn expected() -> String {
        check::PATH.to_owned()
    }

    fn parse(text: &str) -> Result<String, Refusal> {
        Ok(text.to_owned())
    }
}

/// The value of a header field.
pub(in crate::config) struct FieldValue;

impl Text for FieldValue {
    type Value = HeaderValue;

    fn expected() -> String {
        "a header's value: visible ASCII on one line".to_owned()
    }

    fn parse(text: &str) -> Result<HeaderValue, Refusal> {
        HeaderValue::from_str(text).map_err(|_| Refusal::new("has a character that a header cannot have"))
    }
}

/// A media type.
pub(in crate::config) struct ContentType;

impl Text for ContentType {
    type Value = HeaderValue;

    fn expected() -> String {
        "a media type, such as \"text/plain; charset=utf-8\"".to_owned()
    }

    fn parse(text: &str) -> Result<HeaderValue, Refusal> {
        let (media, _) = text.split_once(';').unwrap_or((text, ""));
        let valid =
            media.trim_end().split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype));
        match HeaderValue::from_str(text) {
            Ok(value) if valid => Ok(value),
            _ => Err(Refusal::new("is no media type")),
        }
    }
}

/// RFC 9110, 5.6.2.
fn token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

/// A table of headers.
pub(in crate::config) struct Headers;

impl Kind for Headers {
    type Value = Vec<(Spanned<HeaderName>, HeaderValue)>;

    fn expected() -> String {
        "a table of headers, such as { Location = \"/new\" }".to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Self::Value> {
        let span = value.span();
        let table = match value.into_inner() {
            DeValue::Table(table) => table,
            other => {
                mistakes.push(wrong_type::<Self>(name, span, &other));
                return None;
            }
        };
        let mut headers: Self::Value = Vec::new();
        for (key, value) in table {
            let at = key.span();
            let shown = key.get_ref().escape_debug().to_string();
            let Ok(header) = HeaderName::from_bytes(key.get_ref().as_bytes()) else {
                mistakes.push(Mistake::new(
                    at,
                    format!("`{shown}` is no header's name"),
                    "expected letters and \"-\"",
                ));
                continue;
            };
            if let Some((first, _)) = headers.iter().find(|(other, _)| *other.get_ref() == header) {
                mistakes.push(
                    Mistake::new(at, format!("`{shown}` is given twice"), "expected each header once")
                        .also(first.span(), "upper and lower case are the same"),
                );
                continue;
            }
            if let Some(value) = FieldValue::read(value, &shown, mistakes) {
                headers.push((Spanned::new(at, header), value));
            }
        }
        Some(headers)
    }
}

/// A directory to serve files from. One that is not there, or cannot be read, is a mistake that may pass; one that is
/// not absolute is refused by the rules of `files`.
pub(in crate::config) struct Directory;

impl Kind for Directory {
    type Value = PathBuf;

    fn expected() -> String {
        check::ROOT.to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<PathBuf> {
        let span = value.span();
        let DeValue::String(path) = value.get_ref() else {
            mistakes.push(wrong_type::<Self>(name, span, value.get_ref()));
            return None;
        };
        let path = PathBuf::from(&**path);
        if !path.is_absolute() {
            return Some(path);
        }
        if let Some(error) = files::unreadable(&path) {
            let (what, help) = match error.kind() {
                io::ErrorKind::NotFound => {
                    ("is not there".to_owned(), Some("make the directory, or correct the path"))
                }
                io::ErrorKind::NotADirectory => ("is not a directory".to_owned(), None),
                io::ErrorKind::PermissionDenied => (
                    "may not be read".to_owned(),
                    Some("let the user that runs steadfast enter and read the directory"),
                ),
                _ => (format!("cannot be read: {error}"), None),
            };
            let mistake =
                Mistake::new(span, format!("`{name}` {what}"), format!("expected {}", Self::expected()));
            mistakes.push(mistake.help(help.map(str::to_owned)).of_the_moment());
        }
        Some(path)
    }
}

/// The file that answers for a directory, or `false` for none.
pub(in crate::config) struct Index;

impl Kind for Index {
    type Value = Option<String>;

    fn expected() -> String {
        check::INDEX.to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Option<String>> {
        match value.get_ref() {
            DeValue::Boolean(false) => Some(None),
            DeValue::String(file) => Some(Some(file.clone().into_owned())),
            other => {
                mistakes.push(wrong_type::<Self>(name, value.span(), other));
                None
            }
        }
    }
}

/// The status of an answer.
pub(in crate::config) struct Status;

impl Kind for Status {
    type Value = StatusCode;

    fn expected() -> String {
        check::STATUS.to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<StatusCode> {
        let number = whole::<Self, u16>(&value, name, mistakes)?;
        let status = StatusCode::from_u16(number).ok();
        if status.is_none() {
            mistakes.push(wrong_type::<Self>(name, value.span(), value.get_ref()));
        }
        status
    }
}

/// `true`: the key alone says it all.
pub(in crate::config) struct True;

impl Kind for True {
    type Value = ();

    fn expected() -> String {
        "true".to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<()> {
        if let DeValue::Boolean(true) = value.get_ref() {
            return Some(());
        }
        mistakes.push(wrong_type::<Self>(name, value.span(), value.get_ref()));
        None
    }
}
