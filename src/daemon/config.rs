//! The config as it is meant: made of the children's own.

use super::{admin, http, shutdown, supervisor};
use crate::rules::{Check, Violations};
use crate::server::address;
use crate::{handover, logging};

/// A whole config. [`Config::default`] has every key's default and no route; each part can be changed from there.
/// [`Daemon::bind`](crate::Daemon::bind) checks it, as [`Config::load`] checks a file.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `[http]` and `[[route]]`.
    pub http: http::Config,
    /// `[admin]`.
    pub admin: admin::Config,
    /// `[shutdown]`.
    pub shutdown: shutdown::Config,
    /// `[supervision]`.
    pub supervision: supervisor::Config,
    /// `[handover]`.
    pub handover: handover::Config,
    /// `[log]`.
    pub log: logging::Config,
}

impl Config {
    /// Finds every value that breaks a rule of its section, or a rule between sections.
    pub(crate) fn check(&self) -> Result<(), Violations> {
        let mut check = Check::default();
        check.table("http", |check| self.http.check(check));
        self.http.check_routes(&mut check);
        check.table("admin", |check| self.admin.check(check));
        check.table("shutdown", |check| self.shutdown.check(check));
        check.table("supervision", |check| self.supervision.check(check));
        check.table("handover", |check| self.handover.check(check));
        check.table("log", |check| self.log.check(check));
        let listen = [("http.listen", &*self.http.listen), ("admin.listen", &*self.admin.listen)];
        address::check_apart(&listen, &mut check);
        check.finish()
    }
}

#[cfg(test)]
mod tests {
    //! The config of a program that gives none.

    use super::*;

    #[test]
    fn the_defaults_keep_every_rule() {
        assert_eq!(Config::default().check(), Ok(()));
    }
}
