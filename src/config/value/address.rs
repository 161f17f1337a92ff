//! Addresses: to listen on, to trust, and to pass requests to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use axum::http::uri::Authority;
use ipnet::IpNet;

use super::{ParseError, Refusal, Text, is_number};
use crate::daemon::http::routes::{check, proxy};
use crate::server::address::{self, Address};

/// An address to listen on.
pub(in crate::config) struct Listen;

impl Text for Listen {
    type Value = Address;

    fn expected() -> String {
        address::EXPECTED.to_owned()
    }

    fn parse(text: &str) -> Result<Address, Refusal> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Address::Unix(path.into()));
        }
        if let Some(name) = text.strip_prefix("fd:") {
            return Ok(Address::Inherited(name.to_owned()));
        }
        if text.starts_with('/') {
            return Err(
                Refusal::new("is a path").help(format!("a unix socket is {:?}", format!("unix:{text}")))
            );
        }
        if let Some((_, rest)) = text.split_once("://") {
            return Err(Refusal::new("is a URL").help(format!("write {:?}", rest.trim_end_matches('/'))));
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

/// As it is written in the config: `"127.0.0.1:8080"`, `"unix:/path"`, `"fd:NAME"`. The name of a host is looked up, which
/// may take its time.
impl FromStr for Address {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        ParseError::or_value::<Listen>(text)
    }
}

/// The proxies that are trusted.
pub(in crate::config) struct Proxies;

/// One of them, or a network of them.
pub(in crate::config) enum Proxy {
    Network(IpNet),
    Unix,
}

impl Text for Proxies {
    type Value = Proxy;

    fn expected() -> String {
        "an address, a network such as \"10.0.0.0/8\", or \"unix\"".to_owned()
    }

    fn parse(text: &str) -> Result<Proxy, Refusal> {
        if text == "unix" {
            return Ok(Proxy::Unix);
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Proxy::Network).map_err(|_| Refusal::new("is no address and no network"))
    }
}

/// The server that a route's requests are passed to.
pub(in crate::config) struct Upstream;

impl Text for Upstream {
    type Value = proxy::Upstream;

    fn expected() -> String {
        check::UPSTREAM.to_owned()
    }

    fn parse(text: &str) -> Result<proxy::Upstream, Refusal> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(proxy::Upstream::Unix(path.into()));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(match text.split_once("://") {
                Some(("https", _)) => Refusal::new("asks for https, which is not supported"),
                Some((scheme, _)) => Refusal::new(format!("asks for {scheme:?}, which is not supported")),
                None if text.starts_with('/') => {
                    Refusal::new("is a path").help(format!("a unix socket is {:?}", format!("unix:{text}")))
                }
                None => Refusal::new("has no scheme").help(format!("write {:?}", format!("http://{text}"))),
            });
        };
        if let Some(path) = rest.find(['/', '?', '#']) {
            let (server, path) = rest.split_at(path);
            return Err(Refusal::new("has a path").help(format!(
                "leave out {path:?}: the request's own path is passed on, to {:?}",
                format!("http://{server}"),
            )));
        }
        host_and_port(rest)?;
        match rest.parse::<Authority>() {
            Ok(authority) => Ok(proxy::Upstream::Http(authority)),
            Err(_) => Err(Refusal::new("has no valid host")),
        }
    }
}

/// As it is written in the config: `"http://HOST:PORT"`, `"unix:/path"`.
impl FromStr for proxy::Upstream {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        ParseError::or_value::<Upstream>(text)
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
        Some(address) => address.parse().ok().map(|address| Host::Address(IpAddr::V6(address))),
        None if matches!(host, "" | "*") => {
            return Err(Refusal::new("has no host")
                .help(format!("every address of this machine is \"0.0.0.0:{port}\"")));
        }
        None => match host.parse::<Ipv4Addr>() {
            Ok(address) => Some(Host::Address(IpAddr::V4(address))),
            // A host whose last label is a number can only be an IPv4 address, and this one is wrong.
            Err(_) if host.rsplit('.').next().is_some_and(is_number) => None,
            Err(_) => host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
                .then_some(Host::Name(host)),
        },
    };
    host.map(|host| (host, port)).ok_or_else(|| Refusal::new("has no valid host"))
}

#[cfg(test)]
mod tests {
    //! A program writes an address, and reads it, as the config does.

    use super::*;

    #[test]
    fn an_address_and_an_upstream_are_read_as_they_are_printed() {
        for text in ["127.0.0.1:8080", "[::1]:0", "unix:/run/a b.sock", "fd:web"] {
            assert_eq!(text.parse::<Address>().expect("an address").to_string(), text);
        }
        for text in
            ["http://127.0.0.1:3000", "http://[::1]:3000", "http://app.internal:80", "unix:/run/app.sock"]
        {
            assert_eq!(text.parse::<proxy::Upstream>().expect("an upstream").to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_configs_own_words() {
        let address = "/run/a.sock".parse::<Address>().expect_err("a path").to_string();
        assert_eq!(
            address,
            format!(
                "\"/run/a.sock\" is a path: expected {}; a unix socket is \"unix:/run/a.sock\"",
                address::EXPECTED
            )
        );
        let upstream = "https://a:1".parse::<proxy::Upstream>().expect_err("https").to_string();
        assert_eq!(
            upstream,
            format!("\"https://a:1\" asks for https, which is not supported: expected {}", check::UPSTREAM)
        );
    }
}
