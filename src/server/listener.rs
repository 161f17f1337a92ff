//! Listeners: sockets that were bound here, or inherited.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::address::{Address, BindError, STORED};
use super::peer::Peer;
use crate::event;
use crate::systemd::activation::Inherited;
use crate::tls::Acceptor;

/// The most connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// The silence on a TCP connection after which its peer is asked whether it is there, the wait for an answer, and the
/// number of questions without one that end it: two minutes for a peer that vanished.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_PROBES: u32 = 4;

/// The wait before the next attempt to bind; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A predecessor's listener that the config does not name any more.
#[derive(Debug)]
pub(crate) struct RemovedListener {
    /// Its name in the store.
    pub(crate) name: String,
    /// Its address; none for a `.socket` unit's.
    pub(crate) address: Option<Address>,
}

impl RemovedListener {
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
        if let Some(address) = &self.address {
            unlink(address);
        }
    }
}

/// Removes an address's path, if it has one.
fn unlink(address: &Address) {
    if let Address::Unix(path) = address {
        // Best effort: the path may be gone already.
        let _ = std::fs::remove_file(path);
    }
}

/// A bound and listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    /// As it is in the config.
    configured: Address,
    /// TCP or unix. A stream only to tokio, which watches any socket: its own listener types cannot tell that a
    /// connection waits without accepting it.
    socket: TcpStream,
    /// True if the service manager, or a predecessor, passed it.
    inherited: bool,
    /// True while this process has made the socket's path and no other holds the socket: the drop removes the path.
    owns_path: AtomicBool,
    /// True if only root and this process's own user may connect.
    private: bool,
    /// What accepts TLS on its connections; none for plain ones.
    tls: Option<Acceptor>,
}

impl Listener {
    /// Takes an address's inherited descriptors, or binds it. Must run inside the runtime.
    ///
    /// # Errors
    /// [`BindError`]; what had been bound before is closed again by its drop, and what was inherited stays as it was.
    pub(crate) fn bind(address: &Address, inherited: &mut Inherited) -> Result<Vec<Self>, BindError> {
        Self::bind_with(address, inherited, false)
    }

    /// The same for a path where only root and this process's own user may connect.
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
        let mut descriptors = match address {
            // A port that the kernel chooses may be in the config several times: each has a socket of its own.
            Address::Tcp(_) => inherited.take_first(&address.passed_as()).into_iter().collect(),
            Address::Unix(_) | Address::Inherited(_) => inherited.take(&address.passed_as()),
        };
        // A socket whose path is gone is out of everybody's reach.
        if matches!(address, Address::Unix(path) if !path.exists()) {
            descriptors.clear();
        }
        if !descriptors.is_empty() {
            return descriptors.into_iter().map(|fd| Self::adopt(address, fd, private)).collect();
        }
        let patience = inherited.patience();
        let socket = until_possible(patience, || match address {
            Address::Tcp(tcp) => Self::bind_tcp(address, *tcp, patience.is_some()),
            Address::Unix(path) => Self::bind_unix(address, path, private),
            Address::Inherited(_) => Err(BindError::NotPassed(address.clone(), inherited.names().to_vec())),
        })?;
        Ok(vec![Self::new(address, socket, private, false)?])
    }

    fn new(address: &Address, socket: RawSocket, private: bool, inherited: bool) -> Result<Self, BindError> {
        let socket = TcpStream::from_std(OwnedFd::from(socket).into());
        Ok(Self {
            configured: address.clone(),
            socket: socket.map_err(|e| BindError::new(address, e))?,
            inherited,
            owns_path: AtomicBool::new(!inherited),
            private,
            tls: None,
        })
    }

    /// The same, for connections that begin with a handshake of TLS.
    pub(crate) fn secured(mut self, tls: Acceptor) -> Self {
        self.tls = Some(tls);
        self
    }

    /// What accepts TLS on its connections; none for plain ones.
    pub(super) fn tls(&self) -> Option<&Acceptor> {
        self.tls.as_ref()
    }

    /// `early`: the address may be one that the machine gets later. It can be listened on all the same (`IP_FREEBIND`,
    /// ip(7)), so that nobody who asks at another address waits for it.
    fn bind_tcp(address: &Address, tcp: SocketAddr, early: bool) -> Result<RawSocket, BindError> {
        let bind = |free: bool| {
            let socket = RawSocket::new(Domain::for_address(tcp), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            // Without it a port could not be bound again while old connections are in TIME_WAIT.
            socket.set_reuse_address(true)?;
            if tcp.is_ipv6() {
                // "[::]:80" is IPv6 alone, so that "0.0.0.0:80" can stand beside it.
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(free)?;
            } else {
                socket.set_freebind_v4(free)?;
            }
            set_tcp_options(&socket)?;
            socket.bind(&tcp.into())?;
            socket.listen(BACKLOG)?;
            Ok::<_, io::Error>(socket)
        };
        match bind(false) {
            Err(error) if early && error.kind() == io::ErrorKind::AddrNotAvailable => {
                tracing::warn!(
                    message_id = event::ADDRESS_ABSENT,
                    %address,
                    "{address} is not an address of this machine: it is served once it is"
                );
                bind(true)
            }
            outcome => outcome,
        }
        .map_err(|error| BindError::new(address, error))
    }

    fn bind_unix(address: &Address, path: &Path, private: bool) -> Result<RawSocket, BindError> {
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
            Ok(socket)
        };
        bind().map_err(wrong)
    }

    fn adopt(address: &Address, descriptor: OwnedFd, private: bool) -> Result<Self, BindError> {
        let wrong = |e| BindError::new(address, e);
        let socket = RawSocket::from(descriptor);
        if !socket.is_listener().unwrap_or(false) || socket.r#type().map_err(wrong)? != Type::STREAM {
            return Err(BindError::NotListening(address.clone()));
        }
        socket.set_nonblocking(true).map_err(wrong)?;
        let local = socket.local_addr().map_err(wrong)?;
        if local.as_socket().is_some() {
            set_tcp_options(&socket).map_err(wrong)?;
        } else if !local.is_unix() {
            return Err(BindError::NotListening(address.clone()));
        }
        Self::new(address, socket, private, true)
    }

    /// Its address, with the port that the kernel chose.
    #[must_use]
    pub(crate) fn address(&self) -> Address {
        let local = SockRef::from(&self.socket).local_addr().ok().and_then(|local| local.as_socket());
        local.map_or_else(|| self.configured.clone(), Address::Tcp)
    }

    /// Its address as the config has it.
    pub(crate) fn configured(&self) -> &Address {
        &self.configured
    }

    /// True if it was passed to this process rather than bound by it.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Notes that another process has the socket, too: the drop leaves the path.
    pub(crate) fn leave(&self) {
        self.owns_path.store(false, Relaxed);
    }

    /// Removes the path, whoever made it: no process listens there any more.
    pub(super) fn unlink(&self) {
        self.leave();
        unlink(&self.configured);
    }

    /// Waits until there is a connection, then for `permit`, and accepts it. None if it has gone meanwhile, or its
    /// client may not connect.
    pub(super) async fn accept<P>(
        &self,
        permit: impl Future<Output = P>,
    ) -> io::Result<Option<(OwnedFd, Peer, P)>> {
        // A listener that waits for a client must hold no permit: one less would be left for the other listeners.
        self.socket.readable().await?;
        let permit = permit.await;
        match self.socket.try_io(Interest::READABLE, || self.accept_now()) {
            Ok(accepted) => Ok(accepted.map(|(socket, peer)| (socket, peer, permit))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Accepts a connection. None if its client may not connect.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, by the kernel's account. tokio's own `accept` would also say so to give other
    /// tasks a turn, or because it has not seen the connection yet.
    pub(super) fn accept_now(&self) -> io::Result<Option<(OwnedFd, Peer)>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, peer) = rustix::net::acceptfrom_with(&self.socket, flags)?;
        if let Some(Ok(peer)) = peer.map(SocketAddr::try_from) {
            return Ok(Some((socket, Peer::Tcp(peer))));
        }
        if self.private && !is_ours(&socket)? {
            return Ok(None);
        }
        Ok(Some((socket, Peer::Unix)))
    }
}

/// The options of every TCP socket, towards clients and upstreams alike. What is accepted has its listener's. The last
/// packet of a message does not wait for the peer's ACK, and a peer that vanished is noticed.
pub(crate) fn set_tcp_options(socket: &impl AsFd) -> io::Result<()> {
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_TIME)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_PROBES);
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keep_alive)
}

/// True if a client is root or of this process's own user. The path's mode says so already; this holds also where
/// somebody has changed that.
///
/// Asked by tokio: rustix takes a peer outside of this process's PID namespace, whose number is 0 here, for an error.
fn is_ours(socket: &OwnedFd) -> io::Result<bool> {
    let user = UnixStream::from_std(socket.try_clone()?.into())?.peer_cred()?.uid();
    Ok(user == 0 || user == rustix::process::geteuid().as_raw())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Removes the path if this process alone has made it, such as after a start that fails. An inherited socket's path
/// stays: another process may be listening there.
impl Drop for Listener {
    fn drop(&mut self) {
        if self.owns_path.load(Relaxed) {
            self.unlink();
        }
    }
}

/// Tries again while it may still become possible and the start's time is not over. It blocks the thread: nothing runs
/// yet.
fn until_possible<T>(
    patience: Option<Instant>,
    mut bind: impl FnMut() -> Result<T, BindError>,
) -> Result<T, BindError> {
    let mut pause = FIRST_PAUSE;
    loop {
        match bind() {
            Err(error)
                if error.may_pass() && patience.is_some_and(|until| Instant::now() + pause < until) =>
            {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Binds addresses in their order; all of them or none.
pub(crate) fn bind_all(addresses: &[Address], inherited: &mut Inherited) -> Result<Vec<Listener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        listeners.extend(Listener::bind(address, inherited)?);
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    //! Options that an accepted connection has from its listener.

    use super::*;

    #[tokio::test]
    async fn a_client_that_vanished_is_noticed_by_keep_alive_whoever_bound_the_listener() {
        let address = Address::Tcp(([127, 0, 0, 1], 0).into());
        let bound = Listener::bind(&address, &mut Inherited::default()).expect("a port is free").remove(0);
        // An earlier version may have bound it.
        let foreign = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let adopted = Listener::adopt(&address, foreign.into(), false).expect("it listens");
        for listener in [bound, adopted] {
            let Address::Tcp(at) = listener.address() else { panic!("{listener:?}") };
            let _client = TcpStream::connect(at).await.expect("it listens");
            let accepted = listener.accept(std::future::ready(())).await.expect("a client is there");
            let Some((accepted, Peer::Tcp(_), ())) = accepted else {
                panic!("of a TCP listener");
            };
            let accepted = SockRef::from(&accepted);
            assert!(accepted.keepalive().expect("an option"));
            let times = (accepted.tcp_keepalive_time(), accepted.tcp_keepalive_interval());
            let times = (times.0.expect("an option"), times.1.expect("an option"));
            assert_eq!(times, (Duration::from_secs(60), Duration::from_secs(15)));
            assert_eq!(accepted.tcp_keepalive_retries().expect("an option"), 4);
            assert!(accepted.tcp_nodelay().expect("an option"));
        }
    }
}
