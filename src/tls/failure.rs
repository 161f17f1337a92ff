//! Handshakes that fail: why, as it is counted and as it is logged.

use std::{fmt, io};

use rustls::PeerIncompatible;

/// Why a handshake has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client has closed the connection, or it was reset.
    ClientGone,
    /// The client's first bytes are no TLS.
    NotTls,
    /// They may be an HTTP request.
    PlainHttp,
    /// It offers no version of TLS that is allowed here.
    UnsupportedVersion,
    /// It offers no cipher suite, group or signature that is known here.
    NoSharedCipher,
    /// It offers no application protocol (ALPN) that is spoken here.
    NoApplicationProtocol,
    /// Its certificate is missing, invalid or revoked.
    ClientCertificate,
    /// It has refused ours, or something else, with an alert.
    ClientAlert,
    /// It has taken too long.
    TimedOut,
    /// It has broken the protocol.
    Protocol,
}

impl Reason {
    /// Every one of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::ClientGone,
        Self::NotTls,
        Self::PlainHttp,
        Self::UnsupportedVersion,
        Self::NoSharedCipher,
        Self::NoApplicationProtocol,
        Self::ClientCertificate,
        Self::ClientAlert,
        Self::TimedOut,
        Self::Protocol,
    ];

    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::NotTls => "not_tls",
            Self::PlainHttp => "plain_http",
            Self::UnsupportedVersion => "unsupported_version",
            Self::NoSharedCipher => "no_shared_cipher",
            Self::NoApplicationProtocol => "no_application_protocol",
            Self::ClientCertificate => "client_certificate",
            Self::ClientAlert => "client_alert",
            Self::TimedOut => "timed_out",
            Self::Protocol => "protocol",
        }
    }

    pub(super) fn of(error: &rustls::Error) -> Self {
        use rustls::Error;
        match error {
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::UnsupportedVersion,
            Error::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::NoEcPointFormatsInCommon,
            ) => Self::NoSharedCipher,
            Error::NoApplicationProtocol => Self::NoApplicationProtocol,
            Error::NoCertificatesPresented
            | Error::InvalidCertificate(_)
            // A list of revocation is not its CA's.
            | Error::InvalidCertRevocationList(_)
            | Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::ClientCertificate
            }
            Error::AlertReceived(_) => Self::ClientAlert,
            _ => Self::Protocol,
        }
    }
}

/// A handshake that has failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The reason, as it is counted.
    pub(crate) reason: Reason,
    /// The whole of it, for the log.
    pub(crate) error: String,
}

impl Failed {
    pub(super) fn new(reason: Reason, error: impl fmt::Display) -> Self {
        Self { reason, error: error.to_string() }
    }

    pub(super) fn gone(error: impl Into<io::Error>) -> Self {
        Self::new(Reason::ClientGone, error.into())
    }

    pub(super) fn too_long() -> Self {
        Self::new(Reason::Protocol, "a message that is too long")
    }
}
