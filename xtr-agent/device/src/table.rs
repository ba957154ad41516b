//! What the cryptokey routing table of an interface holds, to find the smallest change.
//!
//! Replacing the AllowedIPs of a kernel peer empties them for a moment, in which its packets are
//! dropped. Knowing what is there, only a peer that loses a prefix is replaced.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use lisp_proto::PublicKey;

use crate::types::PeerSpec;

/// The rows of one interface; the interface is programmed by nobody else.
#[derive(Debug, Default)]
pub(crate) struct CryptokeyTable {
    peers: HashMap<PublicKey, Row>,
    owners: HashMap<IpNet, PublicKey>,
}

/// What happens to the AllowedIPs of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllowedIpsChange {
    /// They are as they shall be.
    Keep,
    /// Some are added, none goes.
    Add,
    /// The whole list is written.
    Replace,
}

#[derive(Debug)]
struct Row {
    allowed_ips: BTreeSet<IpNet>,
    keepalive: Option<u16>,
    /// A change failed half-way: what the interface holds is unknown.
    uncertain: bool,
}

impl CryptokeyTable {
    /// Returns what must be done to the AllowedIPs, or `None` when nothing at all is to be done.
    pub(crate) fn plan(&self, spec: &PeerSpec) -> Option<AllowedIpsChange> {
        let Some(row) = self.peers.get(&spec.key).filter(|row| !row.uncertain) else {
            return Some(AllowedIpsChange::Replace);
        };
        let wanted = wanted_prefixes(spec);
        if wanted == row.allowed_ips {
            let unchanged = spec.endpoint.is_none() && spec.keepalive == row.keepalive;
            return (!unchanged).then_some(AllowedIpsChange::Keep);
        }
        if wanted.is_superset(&row.allowed_ips) {
            return Some(AllowedIpsChange::Add);
        }
        Some(AllowedIpsChange::Replace)
    }

    /// Records that the interface now holds `spec`.
    pub(crate) fn commit(&mut self, spec: &PeerSpec) {
        self.remove(&spec.key);
        let allowed_ips = wanted_prefixes(spec);
        for prefix in &allowed_ips {
            let previous = self.owners.insert(*prefix, spec.key);
            if let Some(robbed) = previous.and_then(|key| self.peers.get_mut(&key)) {
                robbed.allowed_ips.remove(prefix);
            }
        }
        let row = Row {
            allowed_ips,
            keepalive: spec.keepalive,
            uncertain: false,
        };
        self.peers.insert(spec.key, row);
    }

    /// Lists the peers that setting `spec` changes: its own, and those that lose a prefix to it.
    pub(crate) fn touched(&self, spec: &PeerSpec) -> Vec<PublicKey> {
        let prefixes = wanted_prefixes(spec);
        let owners = prefixes.iter();
        let owners = owners.filter_map(|prefix| self.owners.get(prefix).copied());
        owners.chain([spec.key]).collect()
    }

    /// Records that a change of these peers failed: each may be there or not, with the old list or
    /// the new one.
    pub(crate) fn doubt(&mut self, touched: Vec<PublicKey>) {
        for key in touched {
            if let Some(row) = self.peers.get_mut(&key) {
                row.uncertain = true;
            }
        }
    }

    /// Records that the peer is gone.
    pub(crate) fn remove(&mut self, key: &PublicKey) {
        let Some(row) = self.peers.remove(key) else {
            return;
        };
        for prefix in row.allowed_ips {
            self.owners.remove(&prefix);
        }
    }

    /// Lists the peers that were committed and not removed, in no particular order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.keys()
    }

    /// Returns how many peers there are.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.peers.len()).unwrap_or(u32::MAX)
    }

    /// Returns the keepalive of a peer, or `None` when there is no such peer.
    pub(crate) fn keepalive(&self, key: &PublicKey) -> Option<Option<u16>> {
        self.peers.get(key).map(|row| row.keepalive)
    }
}

/// Host bits are cleared and repetitions dropped, as WireGuard does.
fn wanted_prefixes(spec: &PeerSpec) -> BTreeSet<IpNet> {
    spec.allowed_ips.iter().map(IpNet::trunc).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHA: PublicKey = PublicKey([1; 32]);
    const BETA: PublicKey = PublicKey([2; 32]);

    #[test]
    fn an_unknown_peer_is_written_whole() {
        let table = CryptokeyTable::default();
        assert_eq!(
            table.plan(&spec(ALPHA, &[])),
            Some(AllowedIpsChange::Replace)
        );
    }

    #[test]
    fn the_same_peer_again_is_no_change() {
        let table = table_with(&[spec(ALPHA, &["10.0.0.1/32"])]);
        assert_eq!(table.plan(&spec(ALPHA, &["10.0.0.1/32"])), None);
    }

    #[test]
    fn an_endpoint_is_always_written_because_the_peer_may_have_roamed() {
        let mut moved = spec(ALPHA, &["10.0.0.1/32"]);
        moved.endpoint = Some("192.0.2.1:51821".parse().unwrap());
        let table = table_with(&[moved.clone()]);
        assert_eq!(table.plan(&moved), Some(AllowedIpsChange::Keep));
    }

    #[test]
    fn a_list_that_grows_is_not_replaced() {
        let table = table_with(&[spec(ALPHA, &["10.0.0.1/32"])]);
        let grown = spec(ALPHA, &["10.0.0.1/32", "10.0.0.2/32"]);
        assert_eq!(table.plan(&grown), Some(AllowedIpsChange::Add));
    }

    #[test]
    fn a_list_that_loses_a_prefix_is_replaced() {
        let table = table_with(&[spec(ALPHA, &["10.0.0.1/32", "10.0.0.2/32"])]);
        let shrunk = spec(ALPHA, &["10.0.0.2/32"]);
        assert_eq!(table.plan(&shrunk), Some(AllowedIpsChange::Replace));
    }

    #[test]
    fn a_robbed_peer_gets_its_prefix_back_when_set_again() {
        let table = table_with(&[spec(ALPHA, &["10.0.0.1/32"]), spec(BETA, &["10.0.0.1/32"])]);
        assert_eq!(
            table.plan(&spec(ALPHA, &["10.0.0.1/32"])),
            Some(AllowedIpsChange::Add)
        );
        assert_eq!(table.plan(&spec(ALPHA, &[])), None);
    }

    #[test]
    fn removing_a_robbed_peer_leaves_the_prefix_with_its_new_owner() {
        let mut table = table_with(&[spec(ALPHA, &["10.0.0.1/32"]), spec(BETA, &["10.0.0.1/32"])]);
        table.remove(&ALPHA);
        assert_eq!(table.plan(&spec(BETA, &["10.0.0.1/32"])), None);
        assert_eq!(table.owners.len(), 1);
    }

    #[test]
    fn after_a_failure_everybody_concerned_is_written_whole() {
        let mut table = table_with(&[spec(ALPHA, &["10.0.0.1/32"])]);
        let touched = table.touched(&spec(BETA, &["10.0.0.1/32"]));
        table.doubt(touched);
        assert_eq!(
            table.plan(&spec(ALPHA, &["10.0.0.1/32"])),
            Some(AllowedIpsChange::Replace)
        );
    }

    fn spec(key: PublicKey, allowed_ips: &[&str]) -> PeerSpec {
        PeerSpec {
            key,
            endpoint: None,
            allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
            keepalive: None,
        }
    }

    fn table_with(specs: &[PeerSpec]) -> CryptokeyTable {
        let mut table = CryptokeyTable::default();
        for spec in specs {
            table.commit(spec);
        }
        table
    }
}
