//! An address to listen on, and why that may fail.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::rules::Check;

/// The text of a mistake that says what is expected of an address.
pub(crate) const EXPECTED: &str = "\"HOST:PORT\", \"unix:/path\" or \"fd:NAME\"";

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A TCP address and port; port 0 lets the kernel choose one.
    Tcp(SocketAddr),
    /// A unix stream socket at an absolute path.
    Unix(PathBuf),
    /// A descriptor that systemd passes under this name (`FileDescriptorName=` of a `.socket` unit).
    Inherited(String),
}

/// As it is written in the config.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

impl Address {
    /// Its listener's name in the service manager's descriptor store; none if the manager has it from a `.socket`
    /// unit. A name is of printable ASCII without `:` (`sd_pid_notify_with_fds(3)`), so all else stands there in hex.
    pub(crate) fn stored_as(&self) -> Option<String> {
        if let Self::Inherited(_) = self {
            return None;
        }
        let mut name = STORED.to_owned();
        for byte in self.to_string().bytes() {
            match byte {
                b':' | b'%' | ..b' ' | 0x7f.. => _ = write!(name, "%{byte:02X}"),
                printable => name.push(printable.into()),
            }
        }
        Some(name)
    }

    /// True if only this machine can reach it. False for a `.socket` unit's socket: only the unit knows.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) | Self::Inherited(_) => true,
        }
    }

    /// The name that its listener is passed under.
    pub(crate) fn passed_as(&self) -> String {
        match self {
            Self::Inherited(name) => name.clone(),
            Self::Tcp(_) | Self::Unix(_) => self.stored_as().unwrap_or_default(),
        }
    }
}

/// Checks the `listen` of a section: each address by itself.
pub(crate) fn check_each(addresses: &[Address], check: &mut Check) {
    for (index, address) in addresses.iter().enumerate() {
        let key = format!("listen[{index}]");
        match address {
            Address::Tcp(_) => {}
            Address::Unix(path) => check_socket_path(path, &key, "listen", EXPECTED, check),
            Address::Inherited(name) => check_name(name, &key, check),
        }
    }
}

/// Checks the path of a unix socket, which is the value at `key`, in the file that of `name`.
pub(crate) fn check_socket_path(path: &Path, key: &str, name: &str, expected: &str, check: &mut Check) {
    let bytes = path.as_os_str().as_encoded_bytes();
    if !path.is_absolute() {
        check
            .note(key, format!("`{name}` is not an absolute path"), expected)
            .help("write it from the root: \"unix:/run/...\"");
    } else if bytes.len() > 107 {
        // `sun_path` has 108 bytes, the last of them zero (unix(7)).
        let what = format!("`{name}` is {} bytes long, and a socket's path at most 107", bytes.len());
        check.note(key, what, expected);
    } else if bytes.ends_with(b"/") || path.to_string_lossy().contains(char::is_control) {
        check.note(key, format!("`{name}` is not the path of a socket"), expected);
    }
}

/// Checks the name of a descriptor, as systemd.socket(5) has it.
fn check_name(name: &str, key: &str, check: &mut Check) {
    let valid = (1..=255).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
    if !valid {
        check
            .note(key, "`listen` is not the name of a descriptor", EXPECTED)
            .help("it is the FileDescriptorName= of the .socket unit, or the unit's own name");
    }
}

/// Checks that nothing listens twice on one address, nor on every address of a port and on one of them. Port 0 is
/// another one each time. The sections' keys come with their addresses.
pub(crate) fn check_apart(sections: &[(&str, &[Address])], check: &mut Check) {
    let all = || {
        let entries = sections.iter().flat_map(|(key, addresses)| {
            addresses
                .iter()
                .enumerate()
                .map(move |(index, address)| (format!("{key}.listen[{index}]"), address))
        });
        entries.filter(|(_, address)| !matches!(address, Address::Tcp(address) if address.port() == 0))
    };
    let mut twice = |key: &str, address: &Address, first: &str| {
        check
            .note(key, format!("{address} is listened on twice"), "another address")
            .also(first, "it is listened on here");
    };
    let mut taken: HashMap<&Address, String> = HashMap::new();
    for (key, address) in all() {
        match taken.get(address) {
            Some(first) => twice(&key, address, first),
            None => _ = taken.insert(address, key),
        }
    }
    for (key, address) in all() {
        let Address::Tcp(one) = address else { continue };
        let every = match one.ip() {
            ip if ip.is_unspecified() => continue,
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        if let Some(first) = taken.get(&Address::Tcp(SocketAddr::new(every, one.port()))) {
            twice(&key, address, first);
        }
    }
}

/// The beginning of the names of stored listeners.
pub(crate) const STORED: &str = "listen=";

/// The reason why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Something else listens there.
    #[error(
        "cannot listen on {0}: the address is in use; stop what listens there (`ss -ltnxp` names it) or choose another"
    )]
    InUse(Address),
    /// The predecessor still listens on an address that overlaps with this one.
    #[error(
        "cannot listen on {0} while the running process listens on {1}: the two overlap, and a reload needs both at once; restart instead"
    )]
    Overlapping(Address, Address),
    /// The address needs a right that the daemon does not have.
    #[error(
        "cannot listen on {0}: permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE (the drop-in privileged-ports.conf) or steadfast.socket, a socket's folder must be writable"
    )]
    Denied(Address),
    /// At the socket's path is something that is not a socket.
    #[error("cannot listen on {0}: there is a file that is not a socket; remove it or choose another path")]
    NotASocket(Address),
    /// systemd passed no descriptor of that name.
    #[error(
        "cannot listen on {0}: systemd passed {passed}; start the .socket unit whose FileDescriptorName= it is",
        passed = if .1.is_empty() { "no socket".into() } else { format!("only {}", .1.join(", ")) }
    )]
    NotPassed(Address, Vec<String>),
    /// The descriptor is not a listening stream socket.
    #[error("cannot listen on {0}: the descriptor is not a listening TCP or unix stream socket")]
    NotListening(Address),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(Address, #[source] io::Error),
}

impl BindError {
    pub(super) fn new(address: &Address, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address.clone()),
            io::ErrorKind::PermissionDenied => Self::Denied(address.clone()),
            _ => Self::Other(address.clone(), error),
        }
    }

    /// True if a later attempt may succeed without a change of the config.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::InUse(_) | Self::Denied(_) | Self::Other(..) => true,
            Self::Overlapping(..) | Self::NotASocket(_) | Self::NotPassed(..) | Self::NotListening(_) => {
                false
            }
        }
    }

    /// The same error, or [`BindError::Overlapping`] if the address overlaps with a listener that a running predecessor
    /// still holds and this config gives up.
    pub(crate) fn beside<'a>(self, given_up: impl IntoIterator<Item = &'a Address>) -> Self {
        let port = |address: &Address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Inherited(_) => None,
        };
        let Self::InUse(address) = self else { return self };
        match given_up.into_iter().find(|other| port(other).is_some() && port(other) == port(&address)) {
            Some(other) => Self::Overlapping(address, other.clone()),
            None => Self::InUse(address),
        }
    }
}

#[cfg(test)]
mod tests {
    //! A listener's name in the store.

    use super::*;

    #[test]
    fn a_name_in_the_store_is_one_that_systemd_takes() {
        for (address, name) in [
            (Address::Tcp(([127, 0, 0, 1], 80).into()), "listen=127.0.0.1%3A80"),
            (Address::Unix("/run/a b.sock".into()), "listen=unix%3A/run/a b.sock"),
            (Address::Unix("/run/ü%.sock".into()), "listen=unix%3A/run/%C3%BC%25.sock"),
        ] {
            assert_eq!(address.stored_as().as_deref(), Some(name));
        }
        assert_eq!(Address::Inherited("web".into()).stored_as(), None);
    }
}
