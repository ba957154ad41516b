//! How large is the agent's state, and has it changed? For tests and reports.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};

use serde::Serialize;

use super::Agent;

/// How many entries the agent's tables have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Mappings, negative ones included.
    pub map_cache: usize,
    /// Peers wanted in the data plane.
    pub peers: usize,
    /// Destinations with an outstanding Map-Request.
    pub requests: usize,
    /// Packets waiting for a mapping.
    pub held: usize,
    /// Changes that the data plane has not reported back.
    pub changes: usize,
    /// Map-Notifies to be acknowledged once their changes are done.
    pub acks: usize,
    /// Mappings that are to move to another peer, or whose new peer did not answer.
    pub handovers: usize,
}

impl Agent {
    /// Counts the entries of every table.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            map_cache: self.cache.len(),
            peers: self.peers.len(),
            requests: self.resolver.len(),
            held: self.budget.used(),
            changes: self.changes.len(),
            acks: self.acks.len(),
            handovers: self.handovers.len(),
        }
    }

    /// Returns a digest of everything that only authenticated messages may change: equal digests
    /// before and after a message mean that it changed nothing. Reads the whole state.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        let tables = (&self.cache, &self.resolver, &self.peers, &self.changes);
        let wanted = (&self.routes, &self.repairs, &self.subscriptions);
        let messages = (
            &self.servers,
            &self.acks,
            &self.handovers,
            &self.nat,
            &self.apart,
            &self.locators,
        );
        // Writing into a hasher cannot fail.
        write!(digest, "{tables:?}{wanted:?}{messages:?}").map_or(0, |()| digest.0.finish())
    }
}

struct Digest(DefaultHasher);

impl std::fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
