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
    choice: Option<Choice>,
    policy: Option<Policy>,
}

/// True for the names that clients ask for, or for none, which something is for.
type IsFor = Arc<dyn Fn(Option<&str>) -> bool + Send + Sync>;

/// The policy by which the clients of some names are judged.
#[derive(Clone)]
pub(super) struct Policy {
    digest: u64,
    is_for: IsFor,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Another config, for some of the names that clients ask for.
#[derive(Clone)]
pub(super) struct Choice {
    pub(super) config: Arc<ServerConfig>,
    is_for: IsFor,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Choice {
    /// True if the name, or none, has the other config.
    pub(super) fn is_for(&self, name: Option<&str>) -> bool {
        (self.is_for)(name)
    }
}

impl Acceptor {
    /// A config with certificates, versions and protocols. What the record layer relies on is set here.
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self { config: Arc::new(for_records(config)), choice: None, policy: None }
    }

    /// The same, but with another config for the names that are chosen: it may ask other certificates of clients. It has
    /// the same certificates itself.
    pub(crate) fn with_choice(
        mut self,
        config: ServerConfig,
        is_for: impl Fn(Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.choice = Some(Choice { config: Arc::new(for_records(config)), is_for: Arc::new(is_for) });
        self
    }

    /// The same, where clients of some names are asked for certificates; the digest is that of all by which these are judged,
    /// and not 0.
    pub(crate) fn with_policy(
        mut self,
        digest: u64,
        is_for: impl Fn(Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.policy = Some(Policy { digest, is_for: Arc::new(is_for) });
        self
    }

    /// True if the client of a connection that another process has accepted was judged as this one would judge it.
    pub(crate) fn agrees_with(&self, session: &Session) -> bool {
        policy_for(self.policy.as_ref(), session.server_name()) == session.policy
    }

    /// A handshake with one client.
    pub(crate) fn begin(&self) -> Handshake {
        Handshake::new(&self.config, self.choice.clone(), self.policy.clone())
    }
}

/// The digest of the policy for a name; 0 where nothing is asked of its clients.
pub(super) fn policy_for(policy: Option<&Policy>, name: Option<&str>) -> u64 {
    policy.filter(|policy| (policy.is_for)(name)).map_or(0, |policy| policy.digest)
}

/// A config with what the record layer relies on.
fn for_records(mut config: ServerConfig) -> ServerConfig {
    config.enable_secret_extraction = true;
    // Nothing is sent or taken before the handshake has ended: a request that comes earlier could be a replayed one.
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config
}
