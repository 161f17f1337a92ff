//! Connecting to an upstream, which includes waiting for one that is not there yet.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::account::{Account, Happened};
use super::lookup::{Name, by_system};
use super::{Config, Upstream};
use crate::server::listener::set_tcp_options;
use crate::server::socket::Socket;

/// The pause after the first refused attempt; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Makes connections to one upstream. While it refuses them, the attempt waits and is repeated: nothing of the
/// request has been read or sent yet, so that any request can wait here.
#[derive(Debug)]
pub(super) struct Connector {
    to: Upstream,
    place: Place,
    retry_for: Duration,
    connect_timeout: Duration,
    account: Account,
}

/// The place of an upstream, as connections are made to it.
#[derive(Debug)]
enum Place {
    Address(SocketAddr),
    Name(Name),
    Unix(PathBuf),
}

impl Place {
    fn of(upstream: &Upstream) -> Self {
        match upstream {
            Upstream::Http(authority) => {
                // A literal IPv6 address has brackets in an authority, and none in a socket address.
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let port = authority.port_u16().unwrap_or(80);
                match host.parse::<IpAddr>() {
                    Ok(ip) => Self::Address((ip, port).into()),
                    Err(_) => Self::Name(Name::new(host, port, by_system)),
                }
            }
            Upstream::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

/// The reason why there is no connection to the upstream.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It refused connections for as long as it was waited for.
    #[error("the upstream refused connections for {} s", .waited.as_secs_f32())]
    Refused {
        waited: Duration,
        #[source]
        last: io::Error,
    },
    /// One attempt took too long.
    #[error("the upstream did not accept a connection within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Anything else: no such host, no route, no permission.
    #[error("the upstream cannot be connected to")]
    Impossible(#[source] io::Error),
}

impl Connector {
    pub(super) fn new(config: &Config, account: Account) -> Self {
        let Config { to, retry_for, connect_timeout, .. } = config.clone();
        Self { place: Place::of(&to), to, retry_for, connect_timeout, account }
    }

    pub(super) async fn connect(&self) -> Result<Socket, ConnectError> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = timeout(self.connect_timeout, self.attempt()).await;
            if !matches!(attempt, Ok(Ok(_))) {
                self.account.count(Happened::ConnectFailure);
            }
            let error = match attempt {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) if is_refusal(&error) => error,
                Ok(Err(error)) => return Err(ConnectError::Impossible(error)),
                Err(_) => return Err(ConnectError::TimedOut(self.connect_timeout)),
            };
            let waited = began.elapsed();
            let left = self.retry_for.saturating_sub(waited);
            if left.is_zero() {
                return Err(ConnectError::Refused { waited, last: error });
            }
            tracing::debug!(upstream = %self.to, %error, "refused; trying again");
            sleep(pause.min(left)).await;
            self.account.count(Happened::Retry);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self) -> io::Result<Socket> {
        let socket = match &self.place {
            Place::Address(address) => TcpStream::connect(address).await?,
            // One after the other, until one is connected to.
            Place::Name(name) => TcpStream::connect(&*name.addresses().await?).await?,
            Place::Unix(path) => return Ok(Socket::Unix(UnixStream::connect(path).await?)),
        };
        set_tcp_options(&socket)?;
        Ok(Socket::Tcp(socket))
    }
}

/// True if an upstream that is being restarted gives this error: nobody listens, the socket's file is not there
/// yet, the queue went down with the old listener, or it is full (`WouldBlock`, of unix sockets alone).
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, WouldBlock};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted | NotFound | WouldBlock)
}

#[cfg(test)]
mod tests {
    //! An upstream that has a name, and a resolver that is silent.

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
    use std::thread;

    use futures_util::future::join_all;

    use super::*;

    static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
    static MAY_END: AtomicBool = AtomicBool::new(false);

    fn silent(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        LOOKUPS.fetch_add(1, Relaxed);
        while !MAY_END.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    #[tokio::test]
    async fn a_resolver_that_is_silent_takes_one_thread_however_many_requests_come() {
        let to = Upstream::Http("silent.example".parse().expect("an authority"));
        let mut config = Config::new(to);
        config.connect_timeout = Duration::from_millis(20);
        let mut connector = Connector::new(&config, Account::default());
        connector.place = Place::Name(Name::new("silent.example", 80, silent));
        for _ in 0..3 {
            for outcome in join_all((0..20).map(|_| connector.connect())).await {
                assert!(matches!(outcome, Err(ConnectError::TimedOut(_))), "{outcome:?}");
            }
        }
        while LOOKUPS.load(Relaxed) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        let lookups = LOOKUPS.load(Relaxed);
        MAY_END.store(true, Relaxed);
        assert_eq!(lookups, 1, "lookups for 60 attempts");
    }

    #[tokio::test]
    async fn an_upstream_with_a_name_is_connected_to_at_the_address_that_accepts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        // Many a machine knows it as ::1 first.
        let to = Upstream::Http(format!("localhost:{port}").parse().expect("an authority"));
        let socket = Connector::new(&Config::new(to), Account::default()).connect().await;
        assert!(matches!(socket, Ok(Socket::Tcp(_))), "{socket:?}");
    }

    #[test]
    fn an_address_is_not_looked_up() {
        for (to, is_address) in [
            ("192.0.2.1:8080", true),
            ("[2001:db8::1]", true),
            ("app.example:80", false),
            ("localhost", false),
        ] {
            let place = Place::of(&Upstream::Http(to.parse().expect("an authority")));
            assert_eq!(matches!(place, Place::Address(_)), is_address, "{to}: {place:?}");
        }
    }
}
