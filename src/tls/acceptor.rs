//! What the handshakes of a listener have in common: its configs, and by which of them the clients of a name are judged.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;

use super::handshake::Handshake;
use super::session::Session;

/// All that the handshakes of a listener have in common.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    policy: Option<Policy>,
}

/// A set of the names that clients ask for, and of none: true for those in it.
type Names = dyn Fn(Option<&str>) -> bool + Send + Sync;

/// The policy by which the clients of some names are judged.
#[derive(Clone)]
pub(super) struct Policy {
    digest: u64,
    names: Arc<Names>,
    config: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Policy {
    /// The digest of the policy for a name, or for none; 0 where nothing is asked of its clients.
    pub(super) fn digest_for(policy: Option<&Self>, name: Option<&str>) -> u64 {
        policy.filter(|policy| policy.is_for(name)).map_or(0, |policy| policy.digest)
    }

    /// True if the clients that ask for this name, or for none, are judged by it.
    pub(super) fn is_for(&self, name: Option<&str>) -> bool {
        (self.names)(name)
    }

    /// The config by which they are, if others are not.
    pub(super) fn config(&self) -> Option<&Arc<ServerConfig>> {
        self.config.as_ref()
    }
}

impl Acceptor {
    /// A config with certificates, versions and protocols. What the record layer relies on is set here.
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self { config: Arc::new(for_records(config)), policy: None }
    }

    /// The same, where clients of some names are asked for certificates: by a config of their own, which has the same
    /// certificates itself, or by that of all. The digest is that of all by which they are judged, and not 0.
    pub(crate) fn with_policy(
        mut self,
        digest: u64,
        config: Option<ServerConfig>,
        names: impl Fn(Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let config = config.map(|config| Arc::new(for_records(config)));
        self.policy = Some(Policy { digest, names: Arc::new(names), config });
        self
    }

    /// True if the client of a connection that another process has accepted was judged as this one would judge it.
    pub(crate) fn agrees_with(&self, session: &Session) -> bool {
        Policy::digest_for(self.policy.as_ref(), session.server_name()) == session.policy
    }

    /// A handshake with one client.
    pub(crate) fn begin(&self) -> Handshake {
        Handshake::new(&self.config, self.policy.clone())
    }
}

/// A config with what the record layer relies on.
fn for_records(mut config: ServerConfig) -> ServerConfig {
    config.enable_secret_extraction = true;
    // Nothing is sent or taken before the handshake has ended: a request that comes earlier could be a replayed one.
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config
}
