//! How large is the server's state? For tests and reports.

use super::{MapServer, limits};

/// How many entries the server's tables have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Registered mappings and configured prefixes.
    pub mappings: usize,
    /// Subscriptions, asked for or not.
    pub subscriptions: usize,
    /// Map-Notifies that await an acknowledgement.
    pub notifies: usize,
    /// Map-Replies on hold.
    pub held: usize,
    /// Agents that use one of several owners of a prefix.
    pub assignments: usize,
    /// What owners are to forget of clients that have left them, and have not acknowledged.
    pub dismissals: usize,
    /// Clients that are being moved to another owner, or wait for it.
    pub migrations: usize,
    /// Data keys that are watched because their holders are behind NATs.
    pub sightings: usize,
    /// Pairs that use a relay.
    pub relayed: usize,
}

impl Sizes {
    /// What none of them exceeds.
    pub const LIMITS: Self = Self {
        mappings: limits::MAPPINGS,
        subscriptions: limits::SUBSCRIPTIONS,
        notifies: limits::OUTSTANDING_NOTIFIES,
        held: limits::HELD_REPLIES,
        assignments: limits::ASSIGNMENTS,
        dismissals: limits::DISMISSALS,
        migrations: limits::MIGRATIONS,
        sightings: limits::WATCHED_KEYS,
        relayed: limits::RELAYED_PAIRS,
    };

    /// The tables by name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, usize); 9] {
        [
            ("mappings", self.mappings),
            ("subscriptions", self.subscriptions),
            ("notifies", self.notifies),
            ("held replies", self.held),
            ("assignments", self.assignments),
            ("dismissals", self.dismissals),
            ("migrations", self.migrations),
            ("sightings", self.sightings),
            ("relayed pairs", self.relayed),
        ]
    }
}

impl MapServer {
    /// Counts the entries of every table.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            mappings: self.state.mappings.len(),
            subscriptions: self.state.subscribers.len(),
            notifies: self.state.notifier.len(),
            held: self.state.held.len(),
            assignments: self.state.assignments.len(),
            dismissals: self.state.dismissals.len(),
            migrations: self.state.moves.len(),
            sightings: self.state.sightings.len(),
            relayed: self.state.relays.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::bench::Bench;

    #[test]
    fn registrations_count_and_limits_hold() {
        let mut bench = Bench::new();
        let before = bench.server.sizes();
        bench.register_all();
        let after = bench.server.sizes();
        assert_eq!(before.subscriptions, 0);
        assert!(after.mappings >= before.mappings);
        for ((_, size), (_, limit)) in after.named().into_iter().zip(Sizes::LIMITS.named()) {
            assert!(size <= limit);
        }
    }
}
