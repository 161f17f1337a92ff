//! The http child: the listeners of `[http]` and `[https]` with the config's routes and the caller's `Router`.
//!
//! Its loop waits on each listener, on the sweep over the connections, and on being told to stop; then it drains.
//! Meanwhile the root waits on the mailbox for a predecessor's connections. Connections are tracked tasks, not
//! subsystems: they outlive a restart of this child.

pub(crate) mod https;
pub(crate) mod routes;

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::https::{Resumption, Tls};
use self::routes::edge::{Edge, HTTPS_PORT};
use self::routes::{Route, Routes};
use super::child::{BoundChild, Child, Context, Run};
use crate::event;
use crate::handover::parcel::{MAX_BODY, Parcel};
use crate::rules::Check;
use crate::server::Server;
use crate::server::address::{self, Address, BindError};
use crate::server::departures::{Departures, Note};
use crate::server::limits::{Limits, Trusted};
use crate::server::listener::{self, Listener};
use crate::server::threads::IoThreads;
use crate::systemd::activation::Inherited;

/// Its name in the tree.
pub(crate) const NAME: &str = "http";

/// `[http]` and `[[route]]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The addresses to listen on; `127.0.0.1:8080` by default. There may be none beside `[https]`.
    pub listen: Vec<Address>,
    /// The number of threads that connections live on; `None`, the default, is one for each core. A daemon that runs in
    /// a caller's runtime has none of its own.
    pub threads: Option<usize>,
    /// The limits of what clients may take.
    pub limits: Limits,
    /// True if a client may speak HTTP/2 without having asked if it is spoken (RFC 9113, section 3.3); false by default.
    pub h2c: bool,
    /// The peers whose `X-Forwarded-*` and `Forwarded` are passed on; none by default.
    pub trusted_proxies: Trusted,
    /// Sends requests that come without TLS to the same place with it: 308, for all but a CA's for a token below
    /// `/.well-known/acme-challenge/` (RFC 8555, section 8.3). Off by default; needs `[https]`.
    pub redirect_to_https: bool,
    /// The routes that answer; none by default.
    pub routes: Vec<Route>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Address::Tcp(([127, 0, 0, 1], 8080).into())],
            threads: None,
            limits: Limits::default(),
            h2c: false,
            trusted_proxies: Trusted::default(),
            redirect_to_https: false,
            routes: Vec::new(),
        }
    }
}

/// The numbers of connections or requests that a limit may allow: a descriptor is a C `int`, so there can never be
/// more.
pub(crate) const COUNTS: RangeInclusive<u64> = 1..=i32::MAX as u64;
/// The numbers of I/O threads that there may be: more than any machine has cores for are a slip of the pen.
pub(crate) const THREADS: RangeInclusive<u64> = 1..=1024;
/// The sizes in bytes that the limit of a head may have: hyper's buffers have a least size, and a head of many
/// megabytes is an attack.
const HEADER_LIMITS: RangeInclusive<usize> = 8 << 10..=1 << 20;
// Within a head a connection leaves with all that was read of it: hyper's buffer, which may grow to twice the limit, and what
// TLS holds.
const _: () = assert!(2 * *HEADER_LIMITS.end() + (1 << 20) <= MAX_BODY);
/// The text of a mistake that says what is expected of the limit of a head.
pub(crate) const HEADER_LIMIT: &str = "a size from \"8KiB\" to \"1MiB\"";

impl Config {
    /// Checks `[http]`, all but the routes.
    pub(super) fn check(&self, check: &mut Check) {
        address::check_each(&self.listen, check);
        if let Some(threads) = self.threads {
            check.number("threads", threads as u64, THREADS);
        }
        let limits = &self.limits;
        check.number("max_connections", limits.max_connections as u64, COUNTS);
        check.number("connections_per_client", limits.connections_per_client as u64, COUNTS);
        check.number("requests_per_connection", limits.requests_per_connection, COUNTS);
        check.timeout("header_timeout", limits.header_timeout);
        if limits.header_limit < *HEADER_LIMITS.start() {
            check.note("header_limit", "`header_limit` is too small", HEADER_LIMIT);
        } else if limits.header_limit > *HEADER_LIMITS.end() {
            check.note("header_limit", "`header_limit` is too large", HEADER_LIMIT);
        }
        check.timeout("keepalive_timeout", limits.keepalive_timeout);
        check.timeout("read_timeout", limits.read_timeout);
        check.timeout("write_timeout", limits.write_timeout);
        check.timeout("min_rate_grace", limits.min_rate_grace);
        check.timeout_or_never("tunnel_idle_timeout", limits.tunnel_idle_timeout);
    }

    /// Checks each `[[route]]`.
    pub(super) fn check_routes(&self, check: &mut Check) {
        routes::check::check_routes(&self.routes, check);
    }

    /// Everything that it listens on.
    pub(super) fn sockets(&self) -> Vec<Address> {
        self.listen.clone()
    }
}

/// The child, bound.
#[derive(Clone, Debug)]
pub(super) struct Http {
    server: Server,
    /// What clients of `[https]` resume with; none without that.
    resumption: Option<Resumption>,
    daemon: Context,
    linger: Duration,
    closed: CancellationToken,
}

impl Http {
    /// Binds every listener of the config, and those of `[https]` if there is that.
    pub(super) fn bind(
        config: &Config,
        https: Option<(&https::Config, Tls)>,
        linger: Duration,
        routes: Routes,
        io: IoThreads,
        daemon: &Context,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let mut listeners = listener::bind_all(&config.listen, inherited)?;
        let hsts = https.as_ref().and_then(|(https, _)| https.hsts.clone());
        let resumption = https.as_ref().map(|_| Resumption::new());
        let (routes, acceptor) = match https.zip(resumption.as_ref()) {
            None => (routes, None),
            Some(((https, tls), resumption)) => {
                let handshakes = &daemon.observer.registry.totals().handshakes;
                handshakes.follow(Arc::clone(tls.certificates()));
                let acceptor = tls.acceptor(resumption);
                let over_tls = listener::bind_all(&https.listen, inherited)?;
                let addresses: Vec<_> = over_tls.iter().map(Listener::address).collect();
                let port = https::redirect_to(&addresses).map_or(HTTPS_PORT, |address| address.port());
                listeners.extend(over_tls.into_iter().map(|listener| listener.secured(acceptor.clone())));
                (routes.behind(Edge::new(https, config.redirect_to_https.then_some(port))), Some(acceptor))
            }
        };
        let registry = Arc::clone(&daemon.observer.registry);
        let server = Server::new(listeners, routes, registry, config.limits.clone());
        let server = server
            .on(io)
            .over(acceptor)
            .speaking_h2c(config.h2c)
            .trusting(config.trusted_proxies.clone())
            .with_hsts(hsts)
            .with_departures(Departures::new(Arc::clone(&daemon.handover)));
        Ok(Self { server, resumption, daemon: daemon.clone(), linger, closed: CancellationToken::new() })
    }

    /// Its accept loops and connections.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Takes over what a predecessor has left in the mailbox: its connections, and what it has counted.
    pub(super) fn take_over(&self) {
        let ledger = self.daemon.metrics.ledger();
        if let Some(mailbox) = self.daemon.handover.mailbox()
            && let Err(error) = self.server.take_over(mailbox, |note| match note {
                Note::Counts(note) => ledger.inherit(note),
                Note::Tickets(keys) => {
                    if let Some(resumption) = &self.resumption {
                        resumption.inherit(keys);
                    }
                }
                Note::NotUnderstood => ledger.not_understood(),
            })
        {
            tracing::error!(
                message_id = event::MAILBOX_FAILED,
                %error,
                "cannot read the mailbox: connections of an earlier process are lost"
            );
        }
        ledger.looked();
    }

    /// Serves until it is told to stop, then drains. Until every child is ready, clients wait in the backlog.
    async fn serve(&self, child: &Child) {
        child.doing("waiting for the others to be ready");
        let serve = async {
            self.daemon.observer.lifecycle.serving().await;
            child.doing("accepting connections");
            self.server.serve().await;
        };
        tokio::select! {
            () = serve => {}
            () = child.stopping() => {}
        }
        child.doing("draining connections");
        self.finish().await;
    }

    /// Stops listening, and returns when every connection is closed or carried. If it is dropped, another call goes
    /// on from there: the connections are not the child's.
    pub(super) async fn finish(&self) {
        self.server.close(self.daemon.handover.keeps_listeners()).await;
        self.closed.cancel();
        self.daemon.told.cancelled().await;
        if let Some(resumption) = self.resumption.as_ref().filter(|_| self.daemon.handover.keeps_listeners())
        {
            // Best effort: without it a client that comes again shakes hands in full.
            let _ = self.daemon.handover.put(&mut vec![Parcel::Tickets(resumption.keys())]);
        }
        self.server.carry(self.linger).await;
    }

    /// Wipes the keys of tickets that are too old, also where no client comes in whose handshake it would be done.
    async fn keep_tickets_tidy(&self) -> Infallible {
        match &self.resumption {
            Some(resumption) => resumption.keep_tidy().await,
            None => std::future::pending().await,
        }
    }

    /// Takes over the connections that come through the mailbox while a predecessor drains.
    pub(super) async fn keep_taking_over(&self) -> Infallible {
        let Some(mailbox) = self.daemon.handover.mailbox() else { return std::future::pending().await };
        loop {
            if let Err(error) = mailbox.filled().await {
                tracing::error!(
                    message_id = event::MAILBOX_FAILED,
                    %error,
                    "the mailbox failed: connections of an earlier process are lost"
                );
                return std::future::pending().await;
            }
            self.take_over();
        }
    }
}

impl BoundChild for Http {
    fn name(&self) -> &str {
        NAME
    }

    fn run(&self, child: Child) -> Run {
        let http = self.clone();
        Box::pin(async move {
            tokio::select! {
                () = http.serve(&child) => Ok(()),
                never = http.keep_tickets_tidy() => match never {},
            }
        })
    }

    fn servers(&self) -> Vec<&Server> {
        vec![&self.server]
    }

    fn closed(&self) -> Option<&CancellationToken> {
        Some(&self.closed)
    }
}
