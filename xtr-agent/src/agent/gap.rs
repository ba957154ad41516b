//! For how long did nothing come to us when a mapping moved to another peer?
//!
//! What we send is never without a way (`handover`). What comes back ends at the old peer at some
//! time, and begins at the new one at another: the counters of both say when, looked at every few
//! milliseconds from the arming on. A little later the map server is told, by a name in the record that
//! a Map-Request may carry (M, RFC 9301 5.2; RFC 9735).

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Gap, PublicKey, RequestFlags, Timestamp};

use super::limits::{
    ECHO_BYTES, GAP_LOOKS, GAP_POLL, GAP_POLL_LATER, GAP_WATCHED, HANDOVERS, HANDSHAKE_BYTES,
    KEEPALIVE,
};
use super::{Action, Actions, Agent, PeerStats, Timer};

/// What comes of a mapping that moves.
#[derive(Debug)]
struct Watched {
    /// The peers that it comes from: the old one, then the new one.
    peers: [PublicKey; 2],
    /// Bytes that each had sent us at the last look.
    counted: [Option<u64>; 2],
    since: Timestamp,
    /// When something came last.
    heard: Option<Timestamp>,
    longest: Duration,
    moved: Option<Timestamp>,
    /// Whether anything has come from the new peer since then.
    has_come: bool,
}

impl Watched {
    const fn new(now: Timestamp, peers: [PublicKey; 2]) -> Self {
        Self {
            peers,
            counted: [None; 2],
            since: now,
            heard: None,
            longest: Duration::ZERO,
            moved: None,
            has_come: false,
        }
    }

    /// Takes in the counters of a peer.
    fn look(&mut self, peer: &PeerStats) {
        for ((key, counted), is_new) in self.peers.iter().zip(&mut self.counted).zip([false, true])
        {
            // What the old peer sends from then on is not let in.
            if *key != peer.key || self.moved.is_some() && !is_new {
                continue;
            }
            let Some(before) = counted.replace(peer.rx_bytes) else {
                continue;
            };
            let came = peer.rx_bytes.saturating_sub(before);
            if came <= KEEPALIVE || HANDSHAKE_BYTES.contains(&came) || came == ECHO_BYTES {
                // That was WireGuard itself, or the answer to an echo of ours.
                continue;
            }
            let heard = self.heard.replace(peer.read_at).unwrap_or(peer.read_at);
            self.longest = self.longest.max(peer.read_at - heard);
            self.has_come |= self.moved.is_some();
        }
    }

    /// What is said of it; nobody can tell where nothing has come since.
    fn gap(&self) -> Gap {
        match self.has_come {
            true => Gap::Longest(self.longest),
            false => Gap::Unknown,
        }
    }
}

/// Mappings that move, and those that have moved a moment ago.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    watched: BTreeMap<IpNet, Watched>,
    /// What the map server is being told.
    told: BTreeMap<IpNet, Gap>,
}

impl Gaps {
    /// What a question about `prefix` says.
    pub(super) fn of(&self, prefix: &IpNet) -> Option<Gap> {
        self.told.get(prefix).copied()
    }

    /// The map server has answered a question about `prefix`, or nobody asks it any more.
    pub(super) fn forget(&mut self, prefix: &IpNet) {
        self.told.remove(prefix);
    }

    /// `prefix` does not move after all.
    pub(super) fn ends(&mut self, prefix: &IpNet) {
        self.watched.remove(prefix);
    }

    /// Takes in counters.
    pub(super) fn look(&mut self, stats: &[PeerStats]) {
        for watched in self.watched.values_mut() {
            stats.iter().for_each(|peer| watched.look(peer));
        }
    }
}

impl Agent {
    /// Begins to look at what comes of `prefix`, which is to move from one peer to another.
    pub(super) fn watch_gap(&mut self, now: Timestamp, prefix: IpNet, peers: [PublicKey; 2]) {
        let is_other = |watched: &Watched| watched.peers != peers || watched.moved.is_some();
        let watched = &mut self.gaps.watched;
        if watched.get(&prefix).is_some_and(|it| !is_other(it)) || watched.len() >= HANDOVERS {
            return;
        }
        watched.insert(prefix, Watched::new(now, peers));
        self.deadlines.set(Timer::Gaps, now);
    }

    /// `prefix` has moved. One that was not armed is looked at from now on.
    pub(super) fn gap_moved(&mut self, now: Timestamp, prefix: IpNet, peers: [PublicKey; 2]) {
        if !self.failover.has_alternatives(&prefix) {
            // Nobody has moved it: it has another key.
            return self.gaps.ends(&prefix);
        }
        self.watch_gap(now, prefix, peers);
        if let Some(watched) = self.gaps.watched.get_mut(&prefix) {
            watched.moved = Some(now);
            watched.heard.get_or_insert(now);
        }
    }

    /// Wants the counters of all that move, and tells the map server of what has moved.
    pub(super) fn gaps_due(&mut self, now: Timestamp, actions: &mut Actions) {
        let is_over = |watched: &Watched| {
            let moved = watched.moved;
            moved.is_some_and(|moved| now - moved >= GAP_WATCHED)
        };
        let over = self
            .gaps
            .watched
            .extract_if(.., |_, watched| is_over(watched));
        let over: Vec<_> = over.map(|(prefix, it)| (prefix, it.gap())).collect();
        for (prefix, gap) in over {
            if self.cache.get(&prefix).is_some() {
                self.gaps.told.insert(prefix, gap);
                self.ask_again(now, prefix, RequestFlags::default(), actions);
            }
        }
        let watched = self.gaps.watched.values();
        let Some(latest) = watched.clone().map(|watched| watched.since).max() else {
            return;
        };
        let mut keys: Vec<_> = watched.flat_map(|watched| watched.peers).collect();
        keys.sort_unstable();
        keys.dedup();
        actions.push(Action::ReadPeerStats(keys));
        let interval = match now - latest < GAP_LOOKS {
            true => GAP_POLL,
            false => GAP_POLL_LATER,
        };
        let next = now + self.look_interval(interval);
        self.deadlines.set(Timer::Gaps, next);
    }
}
