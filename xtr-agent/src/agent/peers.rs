//! The desired cryptokey routing table: which key owns which AllowedIPs, and where it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;

use ipnet::IpNet;
use lisp_proto::PublicKey;

/// A peer exactly as the data plane shall have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// The peer's public key.
    pub key: PublicKey,
    /// Where it lives; `None` leaves the endpoint that the data plane has, so
    /// that a roamed one is not overwritten by an older record.
    pub endpoint: Option<SocketAddr>,
    /// All its AllowedIPs; they replace what was there.
    pub allowed_ips: Vec<IpNet>,
    /// Whether keepalives keep the way to it open through a NAT of ours.
    pub keep_open: bool,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) endpoint: SocketAddr,
    pub(super) allowed_ips: BTreeSet<IpNet>,
    /// Prefixes that it gets when it has shaken hands.
    awaited: BTreeSet<IpNet>,
    pub(super) handshake_seen: bool,
    /// The data plane has refused the change that named the endpoint: the next one names it again.
    endpoint_refused: bool,
}

impl Peer {
    /// Whether no mapping needs it.
    fn is_unwanted(&self) -> bool {
        self.allowed_ips.is_empty() && self.awaited.is_empty()
    }
}

/// Every peer that the agent wants installed, by key.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_key: BTreeMap<PublicKey, Peer>,
    /// Whether we are behind a NAT, and the ways to them are kept open.
    keep_open: bool,
}

/// What taking a prefix from a peer leaves of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remaining {
    /// The peer has other prefixes.
    Peer(PeerSpec),
    /// The peer is no longer wanted.
    Nothing,
}

impl Peers {
    /// Whether the ways to peers shall be kept open by keepalives: only through a NAT of ours. Those that there are
    /// have to be set anew.
    pub(super) const fn keep_open(&mut self, keep_open: bool) {
        self.keep_open = keep_open;
    }

    /// Whether the ways to peers are kept open by keepalives.
    pub(super) const fn are_kept_open(&self) -> bool {
        self.keep_open
    }

    /// Gives `prefix` to `key` and returns the peer as it shall now be.
    pub(super) fn install(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
        prefix: IpNet,
    ) -> PeerSpec {
        let keep_open = self.keep_open;
        let (peer, moved) = self.place(key, endpoint);
        peer.awaited.remove(&prefix);
        peer.allowed_ips.insert(prefix);
        spec(key, peer, moved, keep_open)
    }

    /// Keeps `key` ready for `prefix`, which it does not get yet, and returns the peer as it shall
    /// now be.
    pub(super) fn arm(&mut self, key: PublicKey, endpoint: SocketAddr, prefix: IpNet) -> PeerSpec {
        let keep_open = self.keep_open;
        let (peer, moved) = self.place(key, endpoint);
        peer.awaited.insert(prefix);
        spec(key, peer, moved, keep_open)
    }

    /// Notes that `key` does not get `prefix`; true when it is no longer wanted.
    pub(super) fn disarm(&mut self, key: &PublicKey, prefix: &IpNet) -> bool {
        let Some(peer) = self.by_key.get_mut(key) else {
            return false;
        };
        peer.awaited.remove(prefix);
        let unwanted = peer.is_unwanted();
        if unwanted {
            self.by_key.remove(key);
        }
        unwanted
    }

    /// The peer `key` at `endpoint`, and whether the data plane must be told of that.
    fn place(&mut self, key: PublicKey, endpoint: SocketAddr) -> (&mut Peer, bool) {
        let mut moved = true;
        let peer = self
            .by_key
            .entry(key)
            .and_modify(|peer| {
                moved = peer.endpoint != endpoint;
                peer.endpoint = endpoint;
            })
            .or_insert_with(|| Peer {
                endpoint,
                allowed_ips: BTreeSet::new(),
                awaited: BTreeSet::new(),
                handshake_seen: false,
                endpoint_refused: false,
            });
        (peer, moved)
    }

    /// Takes `prefix` from `key`; `None` when `key` did not have it.
    pub(super) fn remove(&mut self, key: &PublicKey, prefix: &IpNet) -> Option<Remaining> {
        let peer = self.by_key.get_mut(key)?;
        if !peer.allowed_ips.remove(prefix) {
            return None;
        }
        if peer.is_unwanted() {
            self.by_key.remove(key);
            return Some(Remaining::Nothing);
        }
        Some(Remaining::Peer(spec(*key, peer, false, self.keep_open)))
    }

    /// Notes whether the data plane took a change that named the endpoint of `key`.
    pub(super) fn endpoint_told(&mut self, key: &PublicKey, ok: bool) {
        if let Some(peer) = self.by_key.get_mut(key) {
            peer.endpoint_refused = !ok;
        }
    }

    /// From now on the mappings of `key` say that it is at `endpoint`.
    pub(super) fn lives_at(&mut self, key: &PublicKey, endpoint: SocketAddr) {
        if let Some(peer) = self.by_key.get_mut(key) {
            peer.endpoint = endpoint;
        }
    }

    /// Where `key` lives, as far as its mappings tell.
    pub(super) fn endpoint(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.by_key.get(key).map(|peer| peer.endpoint)
    }

    /// The prefixes of `key`.
    pub(super) fn prefixes(&self, key: &PublicKey) -> Vec<IpNet> {
        let peer = self.by_key.get(key);
        peer.map_or_else(Vec::new, |peer| peer.allowed_ips.iter().copied().collect())
    }

    /// The peer as it shall be, wherever it may have roamed to.
    pub(super) fn spec(&self, key: &PublicKey) -> Option<PeerSpec> {
        let peer = self.by_key.get(key)?;
        Some(spec(*key, peer, false, self.keep_open))
    }

    /// Whether `key` is wanted.
    #[must_use]
    pub(super) fn contains(&self, key: &PublicKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Notes that a handshake with `key` was seen; true the first time.
    pub(super) fn note_handshake(&mut self, key: &PublicKey) -> bool {
        self.by_key
            .get_mut(key)
            .is_some_and(|peer| !std::mem::replace(&mut peer.handshake_seen, true))
    }

    /// Whether a handshake with `key` was seen.
    #[must_use]
    pub(super) fn handshake_seen(&self, key: &PublicKey) -> bool {
        self.by_key.get(key).is_some_and(|peer| peer.handshake_seen)
    }

    /// The peer as it shall be, with an endpoint if it `is_new` to the data plane.
    pub(super) fn restored(&self, key: &PublicKey, is_new: bool) -> Option<PeerSpec> {
        let peer = self.by_key.get(key)?;
        Some(spec(*key, peer, is_new, self.keep_open))
    }

    /// The next `most` keys after `last`, from the first one on without it.
    pub(super) fn after(&self, last: Option<&PublicKey>, most: usize) -> Vec<PublicKey> {
        let from = last.map_or(Bound::Unbounded, |last| Bound::Excluded(*last));
        let keys = self.by_key.range((from, Bound::Unbounded));
        keys.map(|(key, _)| *key).take(most).collect()
    }

    /// Every peer, by key.
    pub(super) fn each(&self) -> impl Iterator<Item = (PublicKey, &Peer)> {
        self.by_key.iter().map(|(key, peer)| (*key, peer))
    }

    /// Every peer, as it shall be.
    pub(super) fn iter(&self) -> impl Iterator<Item = PeerSpec> + '_ {
        let keep_open = self.keep_open;
        let peers = self.by_key.iter();
        peers.map(move |(key, peer)| spec(*key, peer, true, keep_open))
    }

    /// How many there are.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

fn spec(key: PublicKey, peer: &Peer, with_endpoint: bool, keep_open: bool) -> PeerSpec {
    PeerSpec {
        key,
        endpoint: (with_endpoint || peer.endpoint_refused).then_some(peer.endpoint),
        allowed_ips: peer.allowed_ips.iter().copied().collect(),
        keep_open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey([1; 32]);

    #[test]
    fn allowed_ips_are_the_union_of_a_keys_prefixes() {
        let endpoint = "192.0.2.1:51820".parse().unwrap();
        let (one, two) = (
            "10.0.0.0/24".parse().unwrap(),
            "10.0.1.0/24".parse().unwrap(),
        );
        let mut peers = Peers::default();
        assert_eq!(peers.install(KEY, endpoint, one).endpoint, Some(endpoint));
        let spec = peers.install(KEY, endpoint, two);
        assert_eq!(spec.allowed_ips, vec![one, two]);
        assert_eq!(
            spec.endpoint, None,
            "an unchanged record leaves a roamed endpoint alone"
        );
        assert!(
            matches!(peers.remove(&KEY, &one), Some(Remaining::Peer(spec)) if spec.allowed_ips == vec![two])
        );
        assert_eq!(peers.remove(&KEY, &one), None);
        assert_eq!(peers.remove(&KEY, &two), Some(Remaining::Nothing));
        assert!(!peers.contains(&KEY));
    }

    #[test]
    fn an_endpoint_that_was_refused_is_named_again_until_it_is_taken() {
        let endpoint = "192.0.2.1:51820".parse().unwrap();
        let (one, two) = (
            "10.0.0.1/32".parse().unwrap(),
            "fd00::1/128".parse().unwrap(),
        );
        let mut peers = Peers::default();
        peers.install(KEY, endpoint, one);
        peers.endpoint_told(&KEY, false);
        assert_eq!(peers.install(KEY, endpoint, two).endpoint, Some(endpoint));
        assert_eq!(peers.spec(&KEY).unwrap().endpoint, Some(endpoint));
        peers.endpoint_told(&KEY, true);
        assert_eq!(peers.spec(&KEY).unwrap().endpoint, None);
    }

    #[test]
    fn a_first_handshake_is_noted_once() {
        let mut peers = Peers::default();
        peers.install(
            KEY,
            "192.0.2.1:1".parse().unwrap(),
            "10.0.0.1/32".parse().unwrap(),
        );
        assert!(peers.note_handshake(&KEY));
        assert!(!peers.note_handshake(&KEY));
        assert!(peers.handshake_seen(&KEY));
        assert!(!peers.note_handshake(&PublicKey([2; 32])));
    }
}
