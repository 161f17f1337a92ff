//! The config as it is meant: made of the children's own.

use std::sync::Arc;

use super::http::https;
use super::{admin, http, shutdown, supervisor};
use crate::rules::{Check, Violation, Violations};
use crate::server::address::{self, Address};
use crate::{handover, logging};

/// The section of the listeners over TLS.
pub(crate) const HTTPS: &str = "https";

/// The place that a config came from. It makes no difference to what the config means.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// Its name, such as the file's path; empty for a config that was made in code.
    pub(crate) name: String,
    /// What stood there.
    pub(crate) text: Arc<str>,
    /// The reason why it is the last good config and not the one that is there now.
    pub(crate) stale: Option<Stale>,
}

impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The reason why the config that is there now is not used.
#[derive(Clone, Debug)]
pub(crate) struct Stale {
    /// On one line.
    pub(crate) in_short: String,
    /// All of it.
    pub(crate) said: String,
}

/// Makes [`Config`] of its sections: those of the children that listen, and the others.
macro_rules! sections {
    (
        listening { $($(#[$listening_doc:meta])* $listening:ident: $Listening:ty,)* }
        others { $($(#[$other_doc:meta])* $other:ident: $Other:ty,)* }
    ) => {
        /// A whole config. [`Config::default`] has every key's default and no route; each part can be changed from
        /// there. [`Daemon::bind`](crate::Daemon::bind) checks it, as [`Config::load`] checks a file.
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct Config {
            $($(#[$listening_doc])* pub $listening: $Listening,)*
            /// `[https]`; without it there is no TLS.
            pub https: Option<https::Config>,
            $($(#[$other_doc])* pub $other: $Other,)*
            pub(crate) source: Source,
        }

        impl Config {
            /// The addresses of each child that listens, by its name.
            pub(crate) fn listening(&self) -> Vec<(&'static str, &[Address])> {
                vec![$((stringify!($listening), &*self.$listening.listen),)*]
            }

            /// Everything that is listened on: the addresses above, those of `[https]`, and what comes from the environment.
            pub(super) fn sockets(&self) -> Vec<Address> {
                let https = self.https.as_ref().map_or(Vec::new(), |https| https.listen.clone());
                [$(self.$listening.sockets(),)* https].concat()
            }

            fn check_sections(&self, check: &mut Check) {
                $(check.table(stringify!($listening), |check| self.$listening.check(check));)*
                if let Some(https) = &self.https {
                    check.table(HTTPS, |check| https.check(check));
                }
                $(check.table(stringify!($other), |check| self.$other.check(check));)*
            }
        }
    };
}

sections! {
    listening {
        /// `[http]` and `[[route]]`.
        http: http::Config,
        /// `[admin]`.
        admin: admin::Config,
    }
    others {
        /// `[shutdown]`.
        shutdown: shutdown::Config,
        /// `[supervision]`.
        supervision: supervisor::Config,
        /// `[handover]`.
        handover: handover::Config,
        /// `[log]`.
        log: logging::Config,
    }
}

impl Config {
    /// Finds every value that breaks a rule of its section, or a rule between sections; or what is doubtful if none does.
    pub(crate) fn check(&self) -> Result<Vec<Violation>, Violations> {
        let mut check = Check::default();
        self.check_sections(&mut check);
        self.http.check_routes(&mut check);
        if self.http.listen.is_empty() && self.https.is_none() {
            check.note("http.listen", "`listen` is empty", "at least one address");
        }
        if self.http.redirect_to_https && self.https.is_none() {
            check
                .note(
                    "http.redirect_to_https",
                    "there is no `[https]` to redirect to",
                    "false, or that section",
                )
                .help("`[https]` needs `certificates`");
        }
        if self.http.redirect_to_https && self.http.listen.is_empty() {
            check
                .warn("http.redirect_to_https", "there is nothing to redirect", "an address in `http.listen`")
                .also("http.listen", "nothing listens without TLS")
                .help("\"0.0.0.0:80\" is the port that clients ask who know of no TLS; or leave `redirect_to_https` out");
        }
        if self.http.redirect_to_https
            && let Some(https) = &self.https
            && https::redirect_to(&https.listen).is_some_and(|address| address.ip().is_loopback())
            // Its unit alone knows where that is.
            && !https.listen.iter().any(|address| matches!(address, Address::Inherited(_)))
            && self.http.listen.iter().any(|address| !address.is_local())
        {
            check
                .warn(
                    "http.redirect_to_https",
                    "clients are sent to a port that only this machine reaches",
                    "an address in `https.listen` that they reach",
                )
                .help("\"0.0.0.0:443\" is the port that clients ask; without `https.listen` it is 127.0.0.1:8443");
        }
        let mut listening = self.listening();
        listening.extend(self.https.as_ref().map(|https| (HTTPS, &*https.listen)));
        address::check_apart(&listening, &mut check);
        check.finish()
    }

    /// Reads the certificates of `[https]`, and what else it names; `None` if there is no such section, or something is
    /// wrong, which is noted.
    pub(crate) fn load_https(&self, check: &mut Check) -> Option<https::Tls> {
        let https = self.https.as_ref()?;
        let mut loaded = None;
        check.table(HTTPS, |check| loaded = https.load(check));
        loaded
    }
}

#[cfg(test)]
mod tests {
    //! The config of a program that gives none.

    use super::*;

    #[test]
    fn the_defaults_keep_every_rule() {
        assert_eq!(Config::default().check(), Ok(Vec::new()));
    }
}
