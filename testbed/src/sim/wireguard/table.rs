//! Which key has which AllowedIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::PublicKey;
use prefix_trie::PrefixMap;

/// A cryptokey routing table: every prefix has one key.
#[derive(Debug, Default)]
pub(in crate::sim) struct CryptokeyTable {
    v4: PrefixMap<Ipv4Net, PublicKey>,
    v6: PrefixMap<Ipv6Net, PublicKey>,
    by_key: BTreeMap<PublicKey, BTreeSet<IpNet>>,
}

impl CryptokeyTable {
    /// Gives `key` exactly `prefixes`, and takes them from whoever had them.
    pub(super) fn replace(&mut self, key: PublicKey, prefixes: &[IpNet]) {
        self.remove(&key);
        for prefix in prefixes {
            let before = match prefix {
                IpNet::V4(prefix) => self.v4.insert(*prefix, key),
                IpNet::V6(prefix) => self.v6.insert(*prefix, key),
            };
            if let Some(robbed) = before.and_then(|before| self.by_key.get_mut(&before)) {
                robbed.remove(prefix);
            }
            self.by_key.entry(key).or_default().insert(*prefix);
        }
    }

    /// Takes everything from `key`.
    pub(super) fn remove(&mut self, key: &PublicKey) {
        for prefix in self.by_key.remove(key).unwrap_or_default() {
            match prefix {
                IpNet::V4(prefix) => self.v4.remove(&prefix),
                IpNet::V6(prefix) => self.v6.remove(&prefix),
            };
        }
    }

    /// The key that packets to `dst` go to.
    pub(in crate::sim) fn lookup(&self, dst: IpAddr) -> Option<PublicKey> {
        match dst {
            IpAddr::V4(dst) => self.v4.get_lpm(&dst.into()).map(|(_, key)| *key),
            IpAddr::V6(dst) => self.v6.get_lpm(&dst.into()).map(|(_, key)| *key),
        }
    }

    /// Every prefix with its key.
    pub(in crate::sim) fn iter(&self) -> impl Iterator<Item = (IpNet, PublicKey)> + '_ {
        self.by_key
            .iter()
            .flat_map(|(key, prefixes)| prefixes.iter().map(|prefix| (*prefix, *key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_moves_to_the_key_that_asks_for_it() {
        let (one, two) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let net = |text: &str| -> IpNet { text.parse().unwrap() };
        let mut table = CryptokeyTable::default();
        table.replace(one, &[net("10.0.0.0/24"), net("fd00::1/128")]);
        table.replace(two, &[net("10.0.0.0/24"), net("10.0.0.7/32")]);
        assert_eq!(table.lookup("10.0.0.1".parse().unwrap()), Some(two));
        assert_eq!(table.lookup("fd00::1".parse().unwrap()), Some(one));
        table.replace(two, &[net("10.0.0.7/32")]);
        assert_eq!(
            table.lookup("10.0.0.1".parse().unwrap()),
            None,
            "what was stolen does not come back"
        );
        assert_eq!(table.iter().count(), 2);
        table.remove(&one);
        assert_eq!(table.lookup("fd00::1".parse().unwrap()), None);
    }
}
