//! How single values are written: durations, sizes, addresses, upstreams, and the rest.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use bytesize::ByteSize;
use jiff::fmt::friendly::SpanParser;
use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::{Mistake, list, nearest};
use super::written::{Kind, wrong_type};
use crate::daemon::http::listener::Address;
use crate::daemon::http::routes::proxy;
use crate::logging;

/// A value that is written as a string.
pub(super) trait Text {
    type Value;

    fn expected() -> String;

    fn parse(text: &str) -> Result<Self::Value, Refusal>;
}

/// Why a string is not what it should be.
pub(super) struct Refusal {
    /// Completes "`key` ...".
    what: String,
    help: Option<String>,
}

impl Refusal {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            help: None,
        }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

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

// ---- durations and sizes -------------------------------------------------------------------------------------

/// No duration is longer: the clock can always be added to it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration in which something must happen: more than nothing.
pub(super) struct Timeout;

impl Text for Timeout {
    type Value = Duration;

    fn expected() -> String {
        "a duration of more than zero, such as \"10s\" or \"1m 30s\"".to_owned()
    }

    fn parse(text: &str) -> Result<Duration, Refusal> {
        match duration(text)? {
            Duration::ZERO => Err(Refusal::new("is zero")),
            timeout => Ok(timeout),
        }
    }
}

/// A duration that may be nothing.
pub(super) struct Delay;

impl Text for Delay {
    type Value = Duration;

    fn expected() -> String {
        "a duration, such as \"10s\" or \"250ms\"".to_owned()
    }

    fn parse(text: &str) -> Result<Duration, Refusal> {
        duration(text)
    }
}

/// A duration, or "never".
pub(super) struct Deadline;

impl Text for Deadline {
    type Value = Option<Duration>;

    fn expected() -> String {
        "a duration, such as \"30s\" or \"5m\", or \"never\"".to_owned()
    }

    fn parse(text: &str) -> Result<Option<Duration>, Refusal> {
        if text == "never" {
            Ok(None)
        } else {
            duration(text).map(Some)
        }
    }
}

fn duration(text: &str) -> Result<Duration, Refusal> {
    match SpanParser::new().parse_unsigned_duration(text) {
        Ok(duration) if duration > LONGEST => Err(Refusal::new("is longer than a year")),
        Ok(duration) => Ok(duration),
        Err(_) if is_number(text) => Err(Refusal::new("has no unit").help(format!(
            "{text} seconds are \"{text}s\", {text} minutes \"{text}m\""
        ))),
        Err(_) if text.starts_with('-') => Err(Refusal::new("is negative")),
        Err(_) => Err(Refusal::new("is no duration")),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number of bytes.
pub(super) struct BodyLimit;

impl Text for BodyLimit {
    type Value = u64;

    fn expected() -> String {
        "a size, such as \"10MiB\" or \"64KiB\"".to_owned()
    }

    fn parse(text: &str) -> Result<u64, Refusal> {
        match text.parse::<ByteSize>() {
            _ if text.starts_with('-') => Err(Refusal::new("is negative")),
            // The parser answers what is too large with the largest number there is.
            Ok(ByteSize(u64::MAX)) => Err(Refusal::new("is too large")),
            Ok(ByteSize(bytes)) => Ok(bytes),
            Err(_) => Err(Refusal::new("is no size")),
        }
    }
}

// ---- numbers and flags ---------------------------------------------------------------------------------------

/// How many connections may be open. A descriptor is a C `int`, so there can never be more.
pub(super) struct Connections;

impl Kind for Connections {
    type Value = usize;

    fn expected() -> String {
        format!("a whole number from 1 to {}", i32::MAX)
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<usize> {
        whole::<Self, i32>(&value, name, mistakes, |number| number >= 1)
            .and_then(|number| number.try_into().ok())
    }
}

/// How many restarts are too many.
pub(super) struct Restarts;

impl Kind for Restarts {
    type Value = u32;

    fn expected() -> String {
        format!("a whole number from 0 to {}", u32::MAX)
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<u32> {
        whole::<Self, u32>(&value, name, mistakes, |_| true)
    }
}

/// The status of an answer. 1xx announce an answer and are none.
pub(super) struct Status;

impl Kind for Status {
    type Value = StatusCode;

    fn expected() -> String {
        "a status from 200 to 599".to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<StatusCode> {
        whole::<Self, u16>(&value, name, mistakes, |number| (200..=599).contains(&number))
            .and_then(|number| StatusCode::from_u16(number).ok())
    }
}

fn whole<K: Kind, N: TryFrom<i128> + Copy>(
    value: &Spanned<DeValue<'_>>,
    name: &str,
    mistakes: &mut Vec<Mistake>,
    possible: impl Fn(N) -> bool,
) -> Option<N> {
    let number = match value.get_ref() {
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    };
    let number = number
        .and_then(|number| N::try_from(number).ok())
        .filter(|number| possible(*number));
    if number.is_none() {
        mistakes.push(wrong_type::<K>(name, value.span(), value.get_ref()));
    }
    number
}

/// `true` or `false`.
pub(super) struct Flag;

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

/// `true`: the key alone says it all.
pub(super) struct True;

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

// ---- addresses -----------------------------------------------------------------------------------------------

/// Where to listen.
pub(super) struct Listen;

impl Text for Listen {
    type Value = Address;

    fn expected() -> String {
        "\"HOST:PORT\", \"unix:/path\" or \"fd:NAME\"".to_owned()
    }

    fn parse(text: &str) -> Result<Address, Refusal> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Address::Unix);
        }
        if let Some(name) = text.strip_prefix("fd:") {
            return descriptor_name(name).map(Address::Inherited);
        }
        if text.starts_with('/') {
            return Err(Refusal::new("is a path").help(format!("a unix socket is \"unix:{text}\"")));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let help = format!("leave out \"{scheme}://\": \"{}\"", rest.trim_end_matches('/'));
            return Err(Refusal::new("is a URL").help(help));
        }
        if is_number(text) {
            return Err(
                Refusal::new("has no host").help(format!("for this machine alone: \"127.0.0.1:{text}\""))
            );
        }
        match host_and_port(text)? {
            (Host::Address(address), port) => Ok(Address::Tcp(SocketAddr::new(address, port))),
            (Host::Name(name), port) => {
                // A name may stand for several addresses; the first of the family every machine has is listened on.
                let found: Vec<_> = (name, port).to_socket_addrs().into_iter().flatten().collect();
                let chosen = found.iter().find(|address| address.is_ipv4()).or(found.first());
                chosen.copied().map(Address::Tcp).ok_or_else(|| {
                    Refusal::new("names a host that is not known here").help("give its address instead")
                })
            }
        }
    }
}

/// The server that a route's requests are passed to.
pub(super) struct Upstream;

impl Text for Upstream {
    type Value = proxy::Upstream;

    fn expected() -> String {
        "\"http://HOST:PORT\" or \"unix:/path\"".to_owned()
    }

    fn parse(text: &str) -> Result<proxy::Upstream, Refusal> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(proxy::Upstream::Unix);
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(match text.split_once("://") {
                Some(("https", _)) => Refusal::new("asks for https, which is not supported"),
                Some((scheme, _)) => Refusal::new(format!("asks for {scheme:?}, which is not supported")),
                None if text.starts_with('/') => {
                    Refusal::new("is a path").help(format!("a unix socket is \"unix:{text}\""))
                }
                None => Refusal::new("has no scheme").help(format!("write \"http://{text}\"")),
            });
        };
        if let Some(path) = rest.find(['/', '?', '#']) {
            let (server, path) = rest.split_at(path);
            return Err(Refusal::new("has a path").help(format!(
                "leave out {path:?}: the request's own path is passed on as it came, to \"http://{server}\"",
            )));
        }
        match host_and_port(rest)? {
            (_, 0) => Err(Refusal::new("has port 0, where nobody can be reached")),
            _ => match rest.parse::<Authority>() {
                Ok(authority) => Ok(proxy::Upstream::Http(authority)),
                Err(_) => Err(Refusal::new("has no valid host")),
            },
        }
    }
}

enum Host<'t> {
    Address(IpAddr),
    Name(&'t str),
}

fn host_and_port(text: &str) -> Result<(Host<'_>, u16), Refusal> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Refusal::new("is an IPv6 address without brackets")
            .help("write the address in brackets and then the port: \"[::1]:8080\""));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else {
        return Err(Refusal::new("has no port"));
    };
    if !is_number(port) {
        return Err(Refusal::new("has a port that is no number"));
    }
    let port = port.parse().map_err(|_| Refusal::new("has a port above 65535"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(address) => address
            .parse()
            .ok()
            .map(|address| Host::Address(IpAddr::V6(address))),
        None if matches!(host, "" | "*") => {
            return Err(Refusal::new("has no host")
                .help(format!("every address of this machine is \"0.0.0.0:{port}\"")));
        }
        None => match host.parse::<Ipv4Addr>() {
            Ok(address) => Some(Host::Address(IpAddr::V4(address))),
            // What ends in a number can only be an address, and this one is wrong.
            Err(_) if host.rsplit('.').next().is_some_and(is_number) => None,
            Err(_) => host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
                .then_some(Host::Name(host)),
        },
    };
    host.map(|host| (host, port))
        .ok_or_else(|| Refusal::new("has no valid host"))
}

fn socket_path(path: &str) -> Result<PathBuf, Refusal> {
    if !path.starts_with('/') {
        return Err(Refusal::new("is not an absolute path").help("write it from the root: \"unix:/run/...\""));
    }
    // `sun_path` has 108 bytes, the last of them zero.
    if path.len() > 107 {
        return Err(Refusal::new(format!(
            "is {} bytes long, and a socket's path at most 107",
            path.len()
        )));
    }
    if path.contains('\0') || path.ends_with('/') {
        return Err(Refusal::new("is not the path of a socket"));
    }
    Ok(PathBuf::from(path))
}

/// As systemd.socket(5) has it.
fn descriptor_name(name: &str) -> Result<String, Refusal> {
    let valid = (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
    if valid {
        Ok(name.to_owned())
    } else {
        Err(Refusal::new("is not the name of a descriptor")
            .help("it is the FileDescriptorName= of the .socket unit, or the unit's own name"))
    }
}

// ---- routes --------------------------------------------------------------------------------------------------

/// `/exact/path`, or `/below/*`.
pub(super) struct RoutePath;

impl Text for RoutePath {
    type Value = String;

    fn expected() -> String {
        "a path such as \"/health\", or \"/app/*\" for everything below".to_owned()
    }

    fn parse(text: &str) -> Result<String, Refusal> {
        if !text.starts_with('/') {
            return Err(Refusal::new("does not begin with \"/\""));
        }
        let fixed = text.strip_suffix("/*").unwrap_or(text);
        if fixed.contains('*') {
            return Err(Refusal::new("has a \"*\" that is not its whole last segment"));
        }
        // RFC 3986: what a path in a request can hold. Anything else would never be asked for.
        let stranger = fixed
            .chars()
            .find(|char| !char.is_ascii_alphanumeric() && !"/-._~!$&'()+,;=:@%".contains(*char));
        match stranger {
            None => Ok(text.to_owned()),
            Some('?') => Err(Refusal::new("has a query").help("a route is chosen by its path alone")),
            Some(char) => Err(
                Refusal::new(format!("has {char:?}, which no request's path can have"))
                    .help("write it percent-encoded, as clients do"),
            ),
        }
    }
}

/// Any text.
pub(super) struct Words;

impl Text for Words {
    type Value = String;

    fn expected() -> String {
        "a string".to_owned()
    }

    fn parse(text: &str) -> Result<String, Refusal> {
        Ok(text.to_owned())
    }
}

/// The value of a header field.
pub(super) struct FieldValue;

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
pub(super) struct ContentType;

impl Text for ContentType {
    type Value = HeaderValue;

    fn expected() -> String {
        "a media type, such as \"text/plain; charset=utf-8\"".to_owned()
    }

    fn parse(text: &str) -> Result<HeaderValue, Refusal> {
        let (media, _) = text.split_once(';').unwrap_or((text, ""));
        let valid = media
            .trim_end()
            .split_once('/')
            .is_some_and(|(kind, subtype)| token(kind) && token(subtype));
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
pub(super) struct Headers;

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
        if table.len() > 100 {
            mistakes.push(Mistake::new(
                span,
                format!("`{name}` has {} headers", table.len()),
                "expected at most 100",
            ));
            return None;
        }
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
            if FRAMING.contains(&header) {
                let help = "leave it out: it is different on each connection".to_owned();
                mistakes.push(
                    Mistake::new(
                        at,
                        format!("`{shown}` is set by the server"),
                        "expected another header",
                    )
                    .help(help),
                );
                continue;
            }
            if let Some((first, _)) = headers.iter().find(|(other, _)| *other.get_ref() == header) {
                mistakes.push(
                    Mistake::new(
                        at,
                        format!("`{shown}` is given twice"),
                        "expected each header once",
                    )
                    .also(first.span(), "and here: upper and lower case are the same"),
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

/// The headers that say where a message ends and what becomes of its connection: the server's own.
static FRAMING: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A directory to serve files from, there and readable now.
pub(super) struct Directory;

impl Text for Directory {
    type Value = PathBuf;

    fn expected() -> String {
        "the absolute path of a directory".to_owned()
    }

    fn parse(text: &str) -> Result<PathBuf, Refusal> {
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            return Err(Refusal::new("is not absolute").help("a service has no working directory of its own"));
        }
        // The dot asks for what serving needs: to enter it, not only to list it.
        match fs::read_dir(path.join(".")) {
            Ok(_) => Ok(path),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => {
                    Refusal::new("is not there").help("make the directory, or correct the path")
                }
                io::ErrorKind::NotADirectory => Refusal::new("is not a directory"),
                io::ErrorKind::PermissionDenied => Refusal::new("may not be read")
                    .help("let the user that runs steadfast enter and read the directory"),
                _ => Refusal::new(format!("cannot be read: {error}")),
            }),
        }
    }
}

/// The file that answers for a directory, or `false` for none.
pub(super) struct Index;

impl Kind for Index {
    type Value = Option<String>;

    fn expected() -> String {
        "a file's name, such as \"index.html\", or false for none".to_owned()
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Option<String>> {
        match value.get_ref() {
            DeValue::Boolean(false) => return Some(None),
            DeValue::String(file) if !file.contains(['/', '\0']) && !matches!(&**file, "" | "." | "..") => {
                return Some(Some(file.clone().into_owned()));
            }
            DeValue::String(_) => {
                let expected = format!("expected {}", Self::expected());
                mistakes.push(Mistake::new(
                    value.span(),
                    format!("`{name}` is not the name of a file"),
                    expected,
                ));
            }
            other => mistakes.push(wrong_type::<Self>(name, value.span(), other)),
        }
        None
    }
}

// ---- words to choose from ------------------------------------------------------------------------------------

/// A value that is one of a few words.
pub(super) trait Choice {
    type Value: Copy + 'static;

    const WORDS: &[(&str, Self::Value)];
}

impl<C: Choice> Text for C {
    type Value = C::Value;

    fn expected() -> String {
        format!(
            "one of {}",
            list(C::WORDS.iter().map(|(word, _)| *word)).replace('`', "\"")
        )
    }

    fn parse(text: &str) -> Result<C::Value, Refusal> {
        C::WORDS
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let refusal = Refusal::new(format!("is {text:?}"));
                match nearest(text, C::WORDS.iter().map(|(word, _)| *word)) {
                    Some(word) => refusal.help(format!("the nearest is {word:?}")),
                    None => refusal,
                }
            })
    }
}

/// `[log] level`.
pub(super) struct Level;

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
pub(super) struct Target;

impl Choice for Target {
    type Value = logging::Target;

    const WORDS: &[(&str, Self::Value)] = &[
        ("auto", logging::Target::Auto),
        ("journald", logging::Target::Journald),
        ("stderr", logging::Target::Stderr),
    ];
}

/// `[log] format`.
pub(super) struct Format;

impl Choice for Format {
    type Value = logging::Format;

    const WORDS: &[(&str, Self::Value)] = &[("text", logging::Format::Text), ("json", logging::Format::Json)];
}

/// `[log] access`.
pub(super) struct Access;

impl Choice for Access {
    type Value = logging::Access;

    const WORDS: &[(&str, Self::Value)] = &[
        ("all", logging::Access::All),
        ("errors", logging::Access::Errors),
        ("off", logging::Access::Off),
    ];
}
