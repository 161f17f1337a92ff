//! Where to listen, and the sockets that do.

use std::fmt::{self, Write};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, Type};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::stream::Socket;
use crate::daemon::registry::Peer;
use crate::daemon::systemd::activation::Inherited;

/// How many connections may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// How long the service manager may take to close what it was told to.
const CLOSING: Duration = Duration::from_secs(1);

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

    /// Whether only this machine reaches it. Of a `.socket` unit's socket that is the unit's matter.
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

/// What the names of stored listeners begin with.
pub(crate) const STORED: &str = "listen=";

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else listens there.
    #[error(
        "cannot listen on {0}: the address is in use; stop what listens there (`ss -ltnxp` names it) or choose another"
    )]
    InUse(Address),
    /// The process to be relieved still listens where it may not overlap with this.
    #[error(
        "cannot listen on {0} while the running process listens on {1}: the two overlap, and a reload needs both at once; restart instead"
    )]
    Overlapping(Address, Address),
    /// The address needs a right that the daemon has not got.
    #[error(
        "cannot listen on {0}: permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE, a socket's folder must be writable"
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
    fn new(address: &Address, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address.clone()),
            io::ErrorKind::PermissionDenied => Self::Denied(address.clone()),
            _ => Self::Other(address.clone(), error),
        }
    }

    /// The same error, or what it comes from if another process still holds listeners that this one gives up.
    pub(crate) fn beside(self, given_up: &[Departed]) -> Self {
        let port = |address: &Address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Inherited(_) => None,
        };
        let Self::InUse(address) = self else { return self };
        let mut given_up = given_up.iter().filter_map(|departed| departed.address.clone());
        match given_up.find(|other| port(other).is_some() && port(other) == port(&address)) {
            Some(other) => Self::Overlapping(address, other),
            None => Self::InUse(address),
        }
    }
}

/// A listener of an earlier process that the config does not name any more.
#[derive(Debug)]
pub(crate) struct Departed {
    /// Its name in the store.
    pub(crate) name: String,
    /// Where it listened, unless that is the matter of a `.socket` unit.
    address: Option<Address>,
}

impl Departed {
    /// Closes this process's copy.
    pub(crate) fn close((name, descriptor): (String, OwnedFd)) -> Self {
        let local = RawSocket::from(descriptor).local_addr().ok().filter(|_| name.starts_with(STORED));
        let address = local.and_then(|local| {
            let path = || local.as_pathname().map(|path| Address::Unix(path.into()));
            local.as_socket().map(Address::Tcp).or_else(path)
        });
        Self { name, address }
    }

    /// Removes its path, which nobody listens on any more.
    pub(crate) fn unlink(&self) {
        if let Some(Address::Unix(path)) = &self.address {
            // It may be gone already; there is nobody to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A bound and listening socket.
#[derive(Debug)]
pub struct Listener {
    /// As it is in the config.
    configured: Address,
    socket: Accepting,
    /// The service manager, or an earlier process, passed it.
    inherited: bool,
    /// The next process listens on: its path stays.
    left: AtomicBool,
    /// Only root and this process's own user may connect.
    private: bool,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes an address's inherited descriptors, or binds it. Must run inside the runtime.
    ///
    /// # Errors
    /// [`BindError`]; what had been bound before is closed again by its drop.
    pub fn bind(address: &Address, inherited: &mut Inherited) -> Result<Vec<Self>, BindError> {
        Self::bind_with(address, inherited, false)
    }

    /// The same for a path, of which only root and this process's own user are let in.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub(crate) fn bind_private(address: &Address, inherited: &mut Inherited) -> Result<Vec<Self>, BindError> {
        Self::bind_with(address, inherited, true)
    }

    fn bind_with(
        address: &Address,
        inherited: &mut Inherited,
        private: bool,
    ) -> Result<Vec<Self>, BindError> {
        let mut descriptors = inherited.take(&address.passed_as());
        // A socket whose path is gone is out of everybody's reach.
        if matches!(address, Address::Unix(path) if !path.exists()) {
            descriptors.clear();
        }
        if !descriptors.is_empty() {
            return descriptors.into_iter().map(|fd| Self::adopt(address, fd, private)).collect();
        }
        let socket = match address {
            Address::Tcp(tcp) => {
                let patience = if inherited.is_closing() { CLOSING } else { Duration::ZERO };
                Self::bind_tcp_within(patience, *tcp).map_err(|e| BindError::new(address, e))?
            }
            Address::Unix(path) => Self::bind_unix(address, path, private)?,
            Address::Inherited(_) => {
                return Err(BindError::NotPassed(address.clone(), inherited.names().to_vec()));
            }
        };
        Ok(vec![Self::new(address, socket, private, false)])
    }

    fn new(address: &Address, socket: Accepting, private: bool, inherited: bool) -> Self {
        Self { configured: address.clone(), socket, inherited, left: AtomicBool::new(false), private }
    }

    /// Binds an address that another listener may overlap with for a moment more. Nothing runs yet that could be held
    /// up by the wait.
    fn bind_tcp_within(patience: Duration, address: SocketAddr) -> io::Result<Accepting> {
        let until = Instant::now() + patience;
        loop {
            match Self::bind_tcp(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::sleep(CLOSING / 100);
                }
                bound => return bound,
            }
        }
    }

    fn bind_tcp(address: SocketAddr) -> io::Result<Accepting> {
        let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // Without it a port could not be bound again while old connections are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // "[::]:80" is IPv6 alone, so that "0.0.0.0:80" can stand beside it.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into()).map(Accepting::Tcp)
    }

    fn bind_unix(address: &Address, path: &Path, private: bool) -> Result<Accepting, BindError> {
        let wrong = |e| BindError::new(address, e);
        match path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(wrong(e)),
            Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(address.clone())),
            // A socket nobody listens on was left behind by a process that did not end well.
            Ok(_) => match StdUnixStream::connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(wrong)?;
                }
                Err(e) => return Err(wrong(e)),
                Ok(_) => return Err(BindError::InUse(address.clone())),
            },
        }
        let bind = || {
            let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Nobody can connect before `listen`. Of a public one, whoever may enter the folder may connect, as with
            // the port of a TCP listener.
            let mode = if private { 0o600 } else { 0o666 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            socket.listen(BACKLOG)?;
            UnixListener::from_std(OwnedFd::from(socket).into())
        };
        bind().map(Accepting::Unix).map_err(wrong)
    }

    fn adopt(address: &Address, descriptor: OwnedFd, private: bool) -> Result<Self, BindError> {
        let wrong = |e| BindError::new(address, e);
        let socket = RawSocket::from(descriptor);
        if !socket.is_listener().unwrap_or(false) || socket.r#type().map_err(wrong)? != Type::STREAM {
            return Err(BindError::NotListening(address.clone()));
        }
        socket.set_nonblocking(true).map_err(wrong)?;
        let local = socket.local_addr().map_err(wrong)?;
        let socket = if local.is_unix() {
            Accepting::Unix(UnixListener::from_std(OwnedFd::from(socket).into()).map_err(wrong)?)
        } else if local.as_socket().is_some() {
            Accepting::Tcp(TcpListener::from_std(socket.into()).map_err(wrong)?)
        } else {
            return Err(BindError::NotListening(address.clone()));
        };
        Ok(Self::new(address, socket, private, true))
    }

    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> Address {
        match &self.socket {
            Accepting::Tcp(socket) => {
                socket.local_addr().map_or_else(|_| self.configured.clone(), Address::Tcp)
            }
            Accepting::Unix(_) => self.configured.clone(),
        }
    }

    /// Where the config has it.
    pub(crate) fn configured(&self) -> &Address {
        &self.configured
    }

    /// Whether it was passed to this process rather than bound by it.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// The next process listens on.
    pub(super) fn leave(&self) {
        self.left.store(true, Relaxed);
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                // An answer's last packet must not wait for the client's ACK. It fails only where the client is gone.
                let _ = socket.set_nodelay(true);
                Ok((Socket::Tcp(socket), Peer::Tcp(peer)))
            }
            Accepting::Unix(listener) => loop {
                let (socket, _) = listener.accept().await?;
                if !self.private || is_ours(&socket)? {
                    return Ok((Socket::Unix(socket), Peer::Unix));
                }
            },
        }
    }
}

/// Whether a client is root or of this process's own user. The path's mode says so already; this holds also where
/// somebody has changed that.
fn is_ours(socket: &UnixStream) -> io::Result<bool> {
    let user = socket.peer_cred()?.uid();
    Ok(user == 0 || user == rustix::process::geteuid().as_raw())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Accepting::Tcp(socket) => socket.as_fd(),
            Accepting::Unix(socket) => socket.as_fd(),
        }
    }
}

/// A socket's path goes with its last listener.
impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.configured
            && !self.left.load(Relaxed)
        {
            // It may be gone already; there is nobody left to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    //! What a listener is called in the store.

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
