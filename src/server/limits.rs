//! The limits of what a client may take.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::peer::Peer;

/// The limits of what clients may take, one by one and together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most connections that may be open at once; more wait in the backlog. 10,000 by default.
    pub max_connections: usize,
    /// The most connections that one client address may have open; more are closed at once. An IPv6 client is its
    /// /64. Loopback, unix sockets and trusted proxies are exempt. 1,024 by default.
    pub connections_per_client: usize,
    /// The most requests that a connection may make before it is closed. 10,000 by default.
    pub requests_per_connection: u64,
    /// The time that a client may take to send a request's head, and for a handshake of TLS; 10 s by default.
    pub header_timeout: Duration,
    /// The largest head of a request, in bytes; 64 KiB by default, 8 KiB at least.
    pub header_limit: usize,
    /// The time that a connection may be idle between requests; 75 s by default.
    pub keepalive_timeout: Duration,
    /// The time that a client may send nothing of a request's body that is waited for; 30 s by default.
    pub read_timeout: Duration,
    /// The time that a client may read nothing of an answer that waits for it, or of a tunnel in which it has finished
    /// sending; 60 s by default.
    pub write_timeout: Duration,
    /// The least that a client has to send of a body that is waited for, and to read of an answer that waits for it, in
    /// bytes per second; 240 by default, 0 asks for nothing.
    pub min_rate: u64,
    /// The time that a client may be waited for before `min_rate` counts; 30 s by default.
    pub min_rate_grace: Duration,
    /// The time that both sides of a tunnel may be silent; `None`, the default, is "for ever".
    pub tunnel_idle_timeout: Option<Duration>,
    /// The largest request body, in bytes; 10 MiB by default.
    pub body_limit: u64,
    /// The fate of a client that connects when `max_connections` are open; [`AtLimit::Wait`] by default.
    pub at_limit: AtLimit,
}

/// The fate of one connection too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtLimit {
    /// It waits in the backlog.
    Wait,
    /// It replaces the one that has been without a request for longest: one from another machine, if there is any.
    Evict,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            connections_per_client: 1024,
            requests_per_connection: 10_000,
            header_timeout: Duration::from_secs(10),
            header_limit: 64 << 10,
            keepalive_timeout: Duration::from_secs(75),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            min_rate: 240,
            min_rate_grace: Duration::from_secs(30),
            tunnel_idle_timeout: None,
            body_limit: 10 << 20,
            at_limit: AtLimit::Wait,
        }
    }
}

/// The peers whose `X-Forwarded-*` and `Forwarded` are passed on: proxies in front of this one. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trusted {
    /// Their addresses.
    pub networks: Vec<IpNet>,
    /// Those that come over a unix socket.
    pub unix: bool,
}

impl Trusted {
    /// True if a peer is one of them.
    #[must_use]
    pub fn contains(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(address) => {
                let address = address.ip().to_canonical();
                self.networks.iter().any(|network| network.contains(&address))
            }
            Peer::Unix => self.unix,
        }
    }
}

/// The client that a peer's connections are counted for: an address, or the /64 that an IPv6 client has for itself.
/// None for a client on this machine.
pub(crate) fn client(peer: Peer) -> Option<IpAddr> {
    let Peer::Tcp(address) = peer else { return None };
    let address = address.ip().to_canonical();
    match address {
        _ if address.is_loopback() => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
        IpAddr::V4(_) => Some(address),
    }
}

#[cfg(test)]
mod tests {
    //! The clients that a limit applies to, and the proxies that are trusted.

    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().expect("an address"))
    }

    #[test]
    fn an_ipv6_client_is_its_network_and_an_ipv4_one_its_address() {
        assert_eq!(client(peer("[2001:db8::1]:1")), client(peer("[2001:db8::ffff:2]:2")));
        assert_ne!(client(peer("[2001:db8::1]:1")), client(peer("[2001:db8:0:1::1]:1")));
        assert_ne!(client(peer("192.0.2.1:1")), client(peer("192.0.2.2:1")));
        assert_eq!(client(peer("192.0.2.1:1")), client(peer("[::ffff:192.0.2.1]:1")));
    }

    #[test]
    fn this_machine_is_not_counted() {
        for here in [peer("127.0.0.2:1"), peer("[::1]:1"), Peer::Unix] {
            assert_eq!(client(here), None);
        }
    }

    #[test]
    fn only_configured_peers_are_trusted() {
        let trusted = Trusted { networks: vec!["10.0.0.0/8".parse().expect("a network")], unix: false };
        assert!(trusted.contains(peer("10.1.2.3:4")));
        assert!(trusted.contains(peer("[::ffff:10.1.2.3]:4")));
        assert!(!trusted.contains(peer("11.1.2.3:4")));
        assert!(!trusted.contains(Peer::Unix));
        assert!(!Trusted::default().contains(peer("127.0.0.1:4")));
    }
}
