//! The tree that a config makes, for people to read.

use std::fmt;

use crate::daemon::Config;
use crate::daemon::http::routes::Action;
use crate::server::address::Address;

/// The tree that a config makes: a line for each child and each route.
#[derive(Debug)]
pub struct Tree<'c>(pub(super) &'c Config);

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { http, admin, .. } = self.0;
        writeln!(f, "steadfast")?;
        writeln!(f, "├── signals")?;
        writeln!(f, "├── http      {}", addresses(&http.listen))?;
        let width = http.routes.iter().map(|route| route.path.len()).max().unwrap_or(0) + 4;
        for (index, route) in http.routes.iter().enumerate() {
            let branch = if index + 1 < http.routes.len() { "├──" } else { "└──" };
            writeln!(f, "│   {branch} {:<width$}{}", route.path, Answer(&route.action))?;
        }
        writeln!(f, "├── admin     {}", addresses(&admin.listen))?;
        write!(f, "└── systemd")
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
