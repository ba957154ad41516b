//! When does a map server look where its peers are, and what does it hear then? As the daemon's shell does it.

use std::net::SocketAddr;

use lisp_proto::{PublicKey, Timestamp};

use super::wireguard;

/// A map server's look at the peers of its control interface.
#[derive(Debug)]
pub(super) struct Lookout {
    rules: map_server::Lookout,
    /// Whether there is a reason to look.
    called: bool,
}

impl Lookout {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            rules: map_server::Lookout::new(now),
            called: false,
        }
    }

    /// The holder of `key` is watched from now on, or no longer.
    pub(super) fn note(&mut self, now: Timestamp, key: PublicKey, watch: bool) {
        self.rules.note(now, key, watch);
    }

    /// There is a reason to look soon.
    pub(super) const fn call(&mut self) {
        self.called = true;
    }

    /// When the next look is.
    pub(super) fn next(&self) -> Timestamp {
        if self.called || self.rules.is_searching() {
            return self.rules.earliest();
        }
        self.rules.latest()
    }

    /// A look has found `peers`; returns those that are elsewhere than before.
    pub(super) fn found(
        &mut self,
        now: Timestamp,
        peers: impl Iterator<Item = wireguard::Sight>,
    ) -> Vec<(PublicKey, SocketAddr)> {
        // Whoever looks anyhow does not hear that he is called.
        self.called &= self.rules.is_searching();
        let sights = peers.map(|peer| map_server::Sight {
            key: peer.key,
            endpoint: peer.endpoint,
            shaken: peer.shaken,
            received: peer.received,
        });
        self.rules.found((now, now), sights)
    }
}
