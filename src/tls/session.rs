//! What a handshake has agreed on, and the connection keeps to its end.

use serde::{Deserialize, Serialize};

use super::keys::Suite;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// Its name, as OpenSSL has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

/// An application protocol that was negotiated (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Alpn {
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

impl Alpn {
    /// Its name (RFC 7301, section 6).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }

    /// The protocol of this name, if it is one that is spoken here.
    pub(super) fn by_name(name: &[u8]) -> Option<Self> {
        match name {
            b"http/1.1" => Some(Self::Http1),
            b"h2" => Some(Self::Http2),
            _ => None,
        }
    }
}

/// What a handshake has agreed on. It travels with the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// The suite's number. The record layer's, so it is one that is known.
    pub(super) suite: u16,
    pub(super) alpn: Option<Alpn>,
    pub(super) server_name: Option<Box<str>>,
    pub(super) client: Option<Box<str>>,
    pub(super) resumed: bool,
    /// The policy by which the client was judged; 0 where it was asked for nothing.
    pub(super) policy: u64,
}

impl Session {
    fn suite(&self) -> &'static Suite {
        Suite::by_id(self.suite).expect("a record layer has been made of it")
    }

    /// The version of TLS.
    pub(crate) fn version(&self) -> Version {
        self.suite().version
    }

    /// The suite's name at IANA.
    pub(crate) fn suite_name(&self) -> &'static str {
        self.suite().name
    }

    /// The protocol that was negotiated; none if the client asked for none.
    pub(crate) fn alpn(&self) -> Option<Alpn> {
        self.alpn
    }

    /// True if HTTP/2 was negotiated.
    pub(crate) fn is_http2(&self) -> bool {
        self.alpn == Some(Alpn::Http2)
    }

    /// The name that the client asked for (SNI, RFC 6066, section 3), in lower case.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The subject of the client's certificate, which has been verified; none if it has shown none.
    pub(crate) fn client(&self) -> Option<&str> {
        self.client.as_deref()
    }

    /// True if the client was asked for a certificate.
    pub(crate) fn is_judged(&self) -> bool {
        self.policy != 0
    }

    /// True if a ticket stood in for the server's certificate.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resumed
    }
}
