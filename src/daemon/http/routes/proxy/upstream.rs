//! Connecting to an upstream, which includes waiting for one that is not there yet.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::account::{Account, Happened};
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
    retry_for: Duration,
    connect_timeout: Duration,
    account: Account,
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
        Self { to, retry_for, connect_timeout, account }
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
        match &self.to {
            Upstream::Http(authority) => {
                // A literal IPv6 address has brackets in an authority, and none in a socket address.
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let socket = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
                set_tcp_options(&socket)?;
                Ok(Socket::Tcp(socket))
            }
            Upstream::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        }
    }
}

/// True if an upstream that is being restarted gives this error: nobody listens, the socket's file is not there
/// yet, the queue went down with the old listener, or it is full (`WouldBlock`, of unix sockets alone).
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, WouldBlock};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted | NotFound | WouldBlock)
}
