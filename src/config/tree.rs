//! The tree that a config makes, for people to read.

use std::fmt;

use crate::daemon::config::HTTPS;
use crate::daemon::http::routes::Action;
use crate::daemon::{Config, http};
use crate::server::address::Address;

/// The tree that a config makes: a line for each child, and for each route and host.
#[derive(Debug)]
pub struct Tree<'c>(pub(super) &'c Config);

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "steadfast")?;
        writeln!(f, "├── signals")?;
        for (child, listen) in self.0.listening() {
            if child == http::NAME {
                self.https(f)?;
            }
            writeln!(f, "├── {child:<10}{}", addresses(listen))?;
            if child == http::NAME {
                self.routes(f)?;
            }
        }
        write!(f, "└── systemd")
    }
}

impl Tree<'_> {
    /// The listeners over TLS, which are the http child's as well, and their certificates.
    fn https(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(https) = &self.0.https else { return Ok(()) };
        writeln!(f, "├── {HTTPS:<10}{}", addresses(&https.listen))?;
        for (index, files) in https.certificates.iter().enumerate() {
            let branch = if index + 1 < https.certificates.len() { "├──" } else { "└──" };
            writeln!(f, "│   {branch} {}", files.chain.display())?;
        }
        Ok(())
    }

    fn routes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.0.http.routes.iter();
        let routes: Vec<_> =
            routes.flat_map(|route| route.names().map(|name| (name, Answer(&route.action)))).collect();
        let width = routes.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 4;
        for (index, (name, answer)) in routes.iter().enumerate() {
            let branch = if index + 1 < routes.len() { "├──" } else { "└──" };
            writeln!(f, "│   {branch} {name:<width$}{answer}")?;
        }
        Ok(())
    }
}

fn addresses(listen: &[Address]) -> String {
    match listen {
        [] => "off".to_owned(),
        listen => listen.iter().map(Address::to_string).collect::<Vec<_>>().join(", "),
    }
}

struct Answer<'c>(&'c Action);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Respond(respond) => {
                write!(f, "respond {}, {} bytes", respond.status.as_u16(), respond.body.len())
            }
            Action::Status => f.write_str("status"),
            Action::Files(files) => write!(f, "files {}", files.root.display()),
            Action::Proxy(proxy) => write!(f, "proxy {}", proxy.to),
        }
    }
}
