//! Which source addresses is a peer believed? Those of its mappings, as far as the overlay goes.
//!
//! A mapping may be wider than what is looked up here: it may cover what is excluded, or all the
//! world. Its peer is believed no more than it is sent. The parts of such a mapping are not prefixes
//! that anybody has registered, so another mapping may be just as long as one of them; AllowedIPs
//! have no two owners, so the part is left to the longer mapping, and given back when that goes.

use ipnet::IpNet;
use lisp_proto::PublicKey;

use super::install::What;
use super::{Actions, Agent, Change};

impl Agent {
    /// What the peer `key` is allowed to be of `prefixes`, its mappings.
    pub(super) fn allowed(&self, key: &PublicKey, prefixes: &[IpNet]) -> Vec<IpNet> {
        let mut allowed = Vec::new();
        for prefix in prefixes {
            let parts = self.routes_for(prefix);
            if parts == [*prefix] {
                allowed.push(*prefix);
                continue;
            }
            let own = |part: &IpNet| {
                let between = lengths(part, prefix.prefix_len() + 1..part.prefix_len() + 1);
                let owners = between.filter_map(|net| self.cache.get(&net)?.chosen);
                owners.last().is_none_or(|owner| owner.key == *key)
            };
            allowed.extend(parts.into_iter().filter(own));
        }
        allowed.sort_unstable();
        allowed.dedup();
        allowed
    }

    /// The mapping of `prefix` is gone: what it had of a wider one is given back to that.
    pub(super) fn give_back(&mut self, prefix: &IpNet, actions: &mut Actions) {
        let mut overlay = self.config.overlay.iter();
        if !overlay.any(|net| prefix.contains(net)) {
            return;
        }
        let wider = lengths(prefix, 0..prefix.prefix_len());
        let owners = wider.filter_map(|net| self.cache.get(&net)?.chosen);
        if let Some(owner) = owners.last()
            && let Some(spec) = self.peers.spec(&owner.key)
        {
            let what = What::Shrinking(owner.key);
            self.change(what, Change::SetPeer(spec), actions);
        }
    }
}

/// The prefixes of these lengths that have the address of `net`.
fn lengths(net: &IpNet, lengths: std::ops::Range<u8>) -> impl Iterator<Item = IpNet> {
    let address = net.addr();
    lengths.filter_map(move |length| Some(IpNet::new(address, length).ok()?.trunc()))
}
