//! Peers that fall silent: bytes go out, nothing comes back.
//!
//! The far end may have moved, or restarted and lost us. Asking the map server
//! again heals both: the answer says where it is now, and the map server tells
//! it of us once more. WireGuard itself then starts a new handshake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{PublicKey, RequestFlags, Timestamp};

use super::limits::{LIVENESS_POLL, SILENCE, SILENCE_BACKOFF_MAX};
use super::map_cache::{Chosen, State};
use super::{Action, Actions, Agent, PeerStats, Timer};

/// What was last seen of a peer's counters.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    rx_bytes: u64,
    tx_bytes: u64,
    /// Since when bytes go out unanswered.
    unanswered: Option<Timestamp>,
    /// How long to wait before the map server is asked; doubles each time.
    patience: Duration,
    /// When it asked for us, if nothing of it was heard since.
    asked: Option<Timestamp>,
}

/// Counters of all peers at the last look.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    watches: BTreeMap<PublicKey, Watch>,
}

impl Liveness {
    /// Compares a peer's counters with the last look; true when it has been
    /// silent for too long.
    fn silent(&mut self, now: Timestamp, peer: &PeerStats) -> bool {
        let watch = self.watches.entry(peer.key).or_default();
        let (received, sent) = (
            peer.rx_bytes != watch.rx_bytes,
            peer.tx_bytes != watch.tx_bytes,
        );
        watch.rx_bytes = peer.rx_bytes;
        watch.tx_bytes = peer.tx_bytes;
        if received || watch.patience.is_zero() {
            watch.unanswered = None;
            watch.patience = SILENCE;
            watch.asked = None;
        } else if sent && watch.unanswered.is_none() {
            watch.unanswered = Some(now);
        }
        let Some(since) = watch.unanswered else {
            return false;
        };
        if now - since < watch.patience {
            return false;
        }
        watch.unanswered = None;
        watch.patience = (watch.patience * 2).min(SILENCE_BACKOFF_MAX);
        true
    }

    /// Notes that a peer has asked for us; true when it has done so before, and has had the time
    /// to be heard.
    fn asks_in_vain(&mut self, now: Timestamp, key: &PublicKey) -> bool {
        let Some(watch) = self.watches.get_mut(key) else {
            return false;
        };
        let since = *watch.asked.get_or_insert(now);
        let in_vain = now - since >= SILENCE;
        if in_vain {
            watch.asked = None;
        }
        in_vain
    }
}

impl Agent {
    /// Starts looking at counters when the first peer is there.
    pub(super) fn watch_liveness(&mut self, now: Timestamp) {
        if self.peers.len() == 1 {
            self.deadlines.set(Timer::Liveness, now + LIVENESS_POLL);
        }
    }

    /// The map server repeats a mapping of ours, because its owner has asked for us once more.
    ///
    /// An owner that restarts has lost the session that we still have, and a NAT of ours may keep
    /// its handshakes out. If nothing is heard of it all the same, its mappings are set up anew:
    /// then we start the handshake. That takes an endpoint that we can reach; one behind a NAT of
    /// its own would lose the endpoint under which we know it.
    pub(super) fn begin_anew(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        chosen: Chosen,
        actions: &mut Actions,
    ) {
        let entry = self.cache.get(&prefix);
        let repeated = entry.is_some_and(|entry| {
            entry.chosen == Some(chosen)
                && matches!(entry.state, State::Active | State::Routing | State::Opening)
        });
        let reachable = !is_private(chosen.endpoint.ip())
            || self.config.rlocs.iter().any(|own| is_private(*own));
        if repeated && reachable && self.liveness.asks_in_vain(now, &chosen.key) {
            for prefix in self.peers.prefixes(&chosen.key) {
                self.forget(prefix, actions);
            }
        }
    }

    pub(super) fn liveness_due(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.peers.is_empty() {
            return;
        }
        self.liveness_asked = true;
        let keys = self.peers.iter().map(|peer| peer.key).collect();
        actions.push(Action::ReadPeerStats(keys));
        self.deadlines.set(Timer::Liveness, now + LIVENESS_POLL);
    }

    /// Looks at counters that were asked for by [`Self::liveness_due`].
    pub(super) fn check_liveness(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        if !std::mem::take(&mut self.liveness_asked) {
            return;
        }
        let wanted = &self.peers;
        self.liveness.watches.retain(|key, _| wanted.contains(key));
        for peer in stats {
            if !self.peers.contains(&peer.key) || !self.liveness.silent(now, peer) {
                continue;
            }
            for prefix in self.peers.prefixes(&peer.key) {
                self.ask_again(now, prefix, RequestFlags::default(), actions);
            }
        }
    }
}

/// Whether an address means something within one site only.
const fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(rx_bytes: u64, tx_bytes: u64) -> PeerStats {
        PeerStats {
            key: PublicKey([1; 32]),
            handshake_seen: true,
            rx_bytes,
            tx_bytes,
        }
    }

    #[test]
    fn silence_is_bytes_out_and_none_in_for_long_enough() {
        let mut liveness = Liveness::default();
        let mut now = Timestamp::ZERO;
        let mut look = |rx, tx| {
            now = now + LIVENESS_POLL;
            liveness.silent(now, &peer(rx, tx))
        };
        for n in 0..20 {
            assert!(!look(n, n), "both ways is fine");
        }
        for _ in 0..20 {
            assert!(!look(19, 19), "neither way is fine");
        }
        let asked: Vec<bool> = (20..40).map(|n| look(19, n)).collect();
        let first = asked.iter().position(|asked| *asked).unwrap();
        assert_eq!(first, 3, "twelve seconds after the first unanswered byte");
        let count = asked.iter().filter(|asked| **asked).count();
        assert!(
            (2..=3).contains(&count),
            "then ever less often, not {count} times"
        );
    }
}
