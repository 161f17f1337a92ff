//! The values of `[https]`. The files are read by what serves them.

use std::path::PathBuf;

use axum::http::HeaderName;

use super::{Refusal, Text};
use crate::daemon::http::https;
use crate::tls::{certificates, client};

/// Declares kinds of files, each with what is expected of it.
macro_rules! files {
    ($($(#[$doc:meta])* $name:ident $expected:expr;)*) => {$(
        $(#[$doc])*
        pub(in crate::config) struct $name;

        impl Text for $name {
            type Value = PathBuf;

            fn expected() -> String {
                $expected.to_owned()
            }

            fn parse(text: &str) -> Result<PathBuf, Refusal> {
                Ok(text.into())
            }
        }
    )*};
}

files! {
    /// A certificate and those of its issuers.
    ChainFile certificates::CHAIN;
    /// A private key.
    KeyFile certificates::KEY;
    /// The CAs of clients.
    AuthoritiesFile client::CA;
    /// Lists of certificates that are revoked.
    RevocationsFile client::CRL;
}

/// The name of a header field.
pub(in crate::config) struct FieldName;

impl Text for FieldName {
    type Value = HeaderName;

    fn expected() -> String {
        https::SUBJECT_HEADER.to_owned()
    }

    fn parse(text: &str) -> Result<HeaderName, Refusal> {
        text.parse().map_err(|_| Refusal::new("is no header's name"))
    }
}
