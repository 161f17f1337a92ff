//! The one reading of a host, of requests and of routes alike: without its port and the dot of the root, in lower case.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::Request;
use axum::http::header::HOST;
use percent_encoding::percent_decode_str;

/// The most characters of a name, without the dot of the root (RFC 1035, section 2.3.4).
const LONGEST: usize = 253;

/// The most characters of a label (RFC 1035, section 2.3.4).
const LONGEST_LABEL: usize = 63;

/// The reason why a route's host is none that a request could ask for; its text follows "`host`".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::daemon::http) enum Invalid {
    #[error("is empty")]
    Empty,
    #[error("is a URL")]
    Url,
    #[error("has a port")]
    Port,
    #[error("has a \"*\" that is not its whole first label")]
    Star,
    #[error("has {0:?}, which no request's host can have")]
    NotAscii(char),
    #[error("has {0:?}, which no name of a host has")]
    Character(char),
    #[error("has a label that is empty, or longer than 63 characters")]
    Label,
    #[error("is longer than 253 characters")]
    Long,
    #[error("ends in a number, and is no IPv4 address")]
    Number,
}

/// The hosts that a route claims, as they are compared: `example.org` for one, `.example.org` for all below it.
pub(in crate::daemon::http) fn claim(host: &str) -> Result<String, Invalid> {
    let literal = host.strip_prefix('[').and_then(|literal| literal.strip_suffix(']'));
    if let Ok(address) = literal.unwrap_or(host).parse() {
        return Ok(bracketed(address));
    }
    let below = host.strip_prefix("*.");
    let name = below.unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let stranger = name.chars().find(|char| !(char.is_ascii_alphanumeric() || "-_.".contains(*char)));
    match stranger {
        Some('/') => return Err(Invalid::Url),
        Some(':') if name.contains("://") => return Err(Invalid::Url),
        Some(':') if name.rsplit(':').next().is_some_and(is_number) => return Err(Invalid::Port),
        Some('[') if name.rsplit_once("]:").is_some_and(|(_, port)| is_number(port)) => {
            return Err(Invalid::Port);
        }
        Some('*') => return Err(Invalid::Star),
        Some(char) if !char.is_ascii() => return Err(Invalid::NotAscii(char)),
        Some(char) => return Err(Invalid::Character(char)),
        None if name.is_empty() => return Err(Invalid::Empty),
        None => {}
    }
    let mut labels = name.split('.');
    if labels.clone().any(|label| label.is_empty() || label.len() > LONGEST_LABEL) {
        Err(Invalid::Label)
    } else if name.len() > LONGEST {
        Err(Invalid::Long)
    } else if labels.next_back().is_some_and(is_number)
        && (below.is_some() || name.parse::<Ipv4Addr>().is_err())
    {
        Err(Invalid::Number)
    } else {
        Ok(if below.is_some() { format!(".{name}") } else { name })
    }
}

/// The host that a request asks for; `None` if it names none that could have a route. The authority of an absolute URI
/// takes the place of `Host` (RFC 9112, section 3.2.2), and that of HTTP/2 is the URI's (RFC 9113, section 8.3.1).
pub(in crate::daemon::http) fn of(request: &Request) -> Option<Cow<'_, str>> {
    authority(request).and_then(read)
}

/// The host that a request asks for as it is written, without its port.
pub(super) fn written(request: &Request) -> Option<&str> {
    let host = without_user(authority(request)?);
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    Some(&host[..end])
}

fn authority(request: &Request) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(HOST)?.to_str().ok(),
    }
}

fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn read(authority: &str) -> Option<Cow<'_, str>> {
    let host = without_user(authority);
    if let Some(literal) = host.strip_prefix('[') {
        let (address, _) = literal.split_once(']')?;
        return address.parse().ok().map(|address| bracketed(address).into());
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    // A name may be percent-encoded (RFC 3986, section 3.2.2), and no spelling of it may get past its route.
    let mut name = percent_decode_str(name).decode_utf8().ok()?;
    if name.ends_with('.') || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase().into();
    }
    // A name of thousands of labels would be looked for as often.
    (!name.starts_with('.') && (1..=LONGEST).contains(&name.len())).then_some(name)
}

/// Everything that claims a host, the most specific first: its name, then all below each of its parents.
pub(in crate::daemon::http) fn claims(host: &str) -> impl Iterator<Item = &str> {
    std::iter::once(host).chain(host.match_indices('.').map(|(dot, _)| &host[dot..]))
}

/// An address as a host (RFC 3986, section 3.2.2), in its one spelling.
fn bracketed(address: Ipv6Addr) -> String {
    format!("[{address}]")
}

#[cfg(test)]
mod tests {
    //! Spellings of hosts.

    use super::*;

    #[test]
    fn every_spelling_of_a_host_is_one() {
        for (authority, host) in [
            ("example.org", "example.org"),
            ("EXAMPLE.org:8080", "example.org"),
            ("example.org.:80", "example.org"),
            ("example.org:", "example.org"),
            ("ex%61mple.%4Frg", "example.org"),
            ("me:secret@example.org", "example.org"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8:0::1]:80", "[2001:db8::1]"),
        ] {
            assert_eq!(read(authority).as_deref(), Some(host), "{authority}");
            assert_eq!(claim(host).as_deref(), Ok(host), "{authority}");
        }
        assert_eq!(claim("Example.Org.").as_deref(), Ok("example.org"));
        assert_eq!(claim("*.Example.org").as_deref(), Ok(".example.org"));
        assert_eq!(claim("2001:db8:0::1").as_deref(), Ok("[2001:db8::1]"));
    }

    #[test]
    fn a_host_without_a_name_is_none() {
        let longest = "a.".repeat(126) + "a";
        assert_eq!(read(&format!("{longest}.")).as_deref(), Some(&*longest));
        let too_long = format!("{longest}.a");
        for authority in ["", ":80", ".", ".example.org", "%ff.org", "[::1", "[example.org]", &too_long] {
            assert_eq!(read(authority), None, "{authority}");
        }
    }

    #[test]
    fn a_host_that_no_request_asks_for_is_not_claimed() {
        for (host, why) in [
            ("", Invalid::Empty),
            ("*.", Invalid::Empty),
            (".", Invalid::Empty),
            ("https://example.org", Invalid::Url),
            ("example.org/app", Invalid::Url),
            ("example.org:443", Invalid::Port),
            ("*", Invalid::Star),
            ("www.*.org", Invalid::Star),
            ("*example.org", Invalid::Star),
            ("müller.example", Invalid::NotAscii('ü')),
            ("exam ple.org", Invalid::Character(' ')),
            ("[::1", Invalid::Character('[')),
            ("*.::g", Invalid::Character(':')),
            (".example.org", Invalid::Label),
            ("a..example.org", Invalid::Label),
            (&format!("{}.org", "a".repeat(64)), Invalid::Label),
            (&("a.".repeat(127) + "a"), Invalid::Long),
            ("127.1", Invalid::Number),
            ("*.0.0.1", Invalid::Number),
        ] {
            assert_eq!(claim(host), Err(why), "{host}");
        }
    }
}
