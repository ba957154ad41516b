//! Which entries cover a prefix, and which lie inside it?
//!
//! The one interface to longest-prefix matching: a trie per instance-id and address family.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{EidPrefix, InstanceId};
use prefix_trie::PrefixMap;

/// A map from EID-prefixes to values, with longest-prefix matching.
#[derive(Clone, Debug)]
pub(crate) struct PrefixTable<T> {
    v4: BTreeMap<InstanceId, PrefixMap<Ipv4Net, T>>,
    v6: BTreeMap<InstanceId, PrefixMap<Ipv6Net, T>>,
    len: usize,
}

impl<T> PrefixTable<T> {
    pub(crate) const fn new() -> Self {
        Self {
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
            len: 0,
        }
    }

    /// Returns the number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Stores `value` under `eid` and returns what was there.
    pub(crate) fn insert(&mut self, eid: EidPrefix, value: T) -> Option<T> {
        let old = match eid.net() {
            IpNet::V4(net) => self.v4.entry(eid.iid()).or_default().insert(net, value),
            IpNet::V6(net) => self.v6.entry(eid.iid()).or_default().insert(net, value),
        };
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the entry of exactly `eid` out.
    pub(crate) fn remove(&mut self, eid: &EidPrefix) -> Option<T> {
        let removed = match eid.net() {
            IpNet::V4(net) => remove_from(&mut self.v4, eid.iid(), &net),
            IpNet::V6(net) => remove_from(&mut self.v6, eid.iid(), &net),
        };
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Returns the entry of exactly `eid`.
    pub(crate) fn exact(&self, eid: &EidPrefix) -> Option<&T> {
        match eid.net() {
            IpNet::V4(net) => self.v4.get(&eid.iid())?.get(&net),
            IpNet::V6(net) => self.v6.get(&eid.iid())?.get(&net),
        }
    }

    /// Returns the entry of exactly `eid`, for changing it.
    pub(crate) fn exact_mut(&mut self, eid: &EidPrefix) -> Option<&mut T> {
        match eid.net() {
            IpNet::V4(net) => self.v4.get_mut(&eid.iid())?.get_mut(&net),
            IpNet::V6(net) => self.v6.get_mut(&eid.iid())?.get_mut(&net),
        }
    }

    /// Returns the longest entry that covers `eid`.
    pub(crate) fn longest_match(&self, eid: &EidPrefix) -> Option<(EidPrefix, &T)> {
        let iid = eid.iid();
        match eid.net() {
            IpNet::V4(net) => {
                let (net, value) = self.v4.get(&iid)?.get_lpm(&net)?;
                Some((EidPrefix::new(iid, net.into()), value))
            }
            IpNet::V6(net) => {
                let (net, value) = self.v6.get(&iid)?.get_lpm(&net)?;
                Some((EidPrefix::new(iid, net.into()), value))
            }
        }
    }

    /// Lists the entries that cover `eid`, itself included, shortest first.
    pub(crate) fn covering<'a>(
        &'a self,
        eid: &EidPrefix,
    ) -> impl Iterator<Item = (EidPrefix, &'a T)> + use<'a, T> {
        let iid = eid.iid();
        let (v4, v6) = match eid.net() {
            IpNet::V4(net) => (self.v4.get(&iid).map(|trie| trie.cover(&net)), None),
            IpNet::V6(net) => (None, self.v6.get(&iid).map(|trie| trie.cover(&net))),
        };
        join(iid, v4, v6)
    }

    /// Lists the entries inside `eid`, itself included, in the order of their addresses.
    pub(crate) fn inside<'a>(
        &'a self,
        eid: &EidPrefix,
    ) -> impl Iterator<Item = (EidPrefix, &'a T)> + use<'a, T> {
        let iid = eid.iid();
        let (v4, v6) = match eid.net() {
            IpNet::V4(net) => (self.v4.get(&iid).map(|trie| trie.children(&net)), None),
            IpNet::V6(net) => (None, self.v6.get(&iid).map(|trie| trie.children(&net))),
        };
        join(iid, v4, v6)
    }

    /// Lists all entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (EidPrefix, &T)> {
        let roots = |net: IpNet| move |iid: &InstanceId| EidPrefix::new(*iid, net);
        let v4 = self.v4.keys().map(roots(Ipv4Net::default().into()));
        let v6 = self.v6.keys().map(roots(Ipv6Net::default().into()));
        v4.chain(v6).flat_map(|root| self.inside(&root))
    }

    /// Returns the shortest prefix that covers `asked`, is at least `shortest` bits long and has
    /// at most `most` entries inside. An entry that equals the result does not count.
    pub(crate) fn region(&self, asked: &EidPrefix, shortest: u8, most: usize) -> Option<EidPrefix> {
        let fits = |prefix: &EidPrefix| {
            let inside = self.inside(prefix).filter(|(eid, _)| eid != prefix);
            inside.take(most.saturating_add(1)).count() <= most
        };
        if !fits(asked) {
            return None;
        }
        // The longer the prefix, the less lies inside: search by halves.
        let (mut low, mut high) = (shortest, asked.net().prefix_len());
        let mut best = *asked;
        while low < high {
            let middle = low + (high - low) / 2;
            let candidate = shorten(asked, middle)?;
            if fits(&candidate) {
                best = candidate;
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(best)
    }
}

/// Returns the prefix of `length` bits that covers `eid`.
fn shorten(eid: &EidPrefix, length: u8) -> Option<EidPrefix> {
    let net = IpNet::new(eid.net().addr(), length).ok()?;
    Some(EidPrefix::new(eid.iid(), net))
}

/// Gives up the trie of an instance-id with its last entry, so that instance-ids cost nothing
/// once they are unused.
fn remove_from<P: prefix_trie::Prefix, T>(
    tries: &mut BTreeMap<InstanceId, PrefixMap<P, T>>,
    iid: InstanceId,
    net: &P,
) -> Option<T> {
    let trie = tries.get_mut(&iid)?;
    let removed = trie.remove(net);
    if trie.is_empty() {
        tries.remove(&iid);
    }
    removed
}

fn join<'a, T: 'a>(
    iid: InstanceId,
    v4: Option<impl Iterator<Item = (Ipv4Net, &'a T)>>,
    v6: Option<impl Iterator<Item = (Ipv6Net, &'a T)>>,
) -> impl Iterator<Item = (EidPrefix, &'a T)> {
    let v4 = v4.into_iter().flatten();
    let v6 = v6.into_iter().flatten();
    v4.map(move |(net, value)| (EidPrefix::new(iid, net.into()), value))
        .chain(v6.map(move |(net, value)| (EidPrefix::new(iid, net.into()), value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instance_ids_and_families_do_not_mix() {
        let mut table = PrefixTable::new();
        table.insert(eid("0.0.0.0/0"), "four");
        table.insert(eid("[7]0.0.0.0/0"), "seven");
        table.insert(eid("::/0"), "six");
        assert_eq!(
            table.longest_match(&eid("10.0.0.1")),
            Some((eid("0.0.0.0/0"), &"four"))
        );
        assert_eq!(
            table.longest_match(&eid("[7]10.0.0.1")),
            Some((eid("[7]0.0.0.0/0"), &"seven"))
        );
        assert_eq!(
            table.longest_match(&eid("fd00::1")),
            Some((eid("::/0"), &"six"))
        );
        assert_eq!(table.longest_match(&eid("[8]10.0.0.1")), None);
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn the_hole_beside_one_half_is_the_other_half() {
        let mut table = PrefixTable::new();
        table.insert(eid("128.0.0.0/1"), ());
        assert_eq!(table.region(&eid("10.0.0.1"), 0, 0), Some(eid("0.0.0.0/1")));
        table.insert(eid("11.0.0.0/8"), ());
        assert_eq!(
            table.region(&eid("10.0.0.1"), 0, 0),
            Some(eid("10.0.0.0/8"))
        );
        assert_eq!(table.region(&eid("10.0.0.1"), 0, 1), Some(eid("0.0.0.0/1")));
        assert_eq!(
            table.region(&eid("10.0.0.1"), 9, 0),
            Some(eid("10.0.0.0/9"))
        );
        assert_eq!(table.region(&eid("0.0.0.0/0"), 0, 1), None);
    }

    /// Prefixes of a 6-bit address space at the top of IPv4 or IPv6, so that they often nest.
    fn nested() -> impl Strategy<Value = EidPrefix> {
        (0u8..64, 0u8..=6, any::<bool>(), 0u32..2).prop_map(|(bits, length, v6, iid)| {
            let net = if v6 {
                IpNet::new(
                    std::net::Ipv6Addr::from(u128::from(bits) << 122).into(),
                    length,
                )
            } else {
                IpNet::new(
                    std::net::Ipv4Addr::from(u32::from(bits) << 26).into(),
                    length,
                )
            };
            EidPrefix::new(InstanceId(iid), net.unwrap())
        })
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_linear_scan(
            changes in prop::collection::vec((nested(), any::<bool>()), 0..60),
            asked in prop::collection::vec(nested(), 1..20),
            shortest in 0u8..=6,
            most in 0usize..4,
        ) {
            let mut table = PrefixTable::new();
            let mut list: Vec<(EidPrefix, usize)> = Vec::new();
            for (value, (eid, keep)) in changes.into_iter().enumerate() {
                let before = list.iter().position(|(other, _)| *other == eid);
                let before = before.map(|at| list.remove(at).1);
                if keep {
                    list.push((eid, value));
                    prop_assert_eq!(table.insert(eid, value), before);
                } else {
                    prop_assert_eq!(table.remove(&eid), before);
                }
            }
            list.sort();
            prop_assert_eq!(table.len(), list.len());
            for eid in asked {
                let covering: Vec<_> = table.covering(&eid).map(|(eid, value)| (eid, *value)).collect();
                let mut expected: Vec<_> = list.iter().copied().filter(|(other, _)| other.covers(&eid)).collect();
                expected.sort_by_key(|(other, _)| other.net().prefix_len());
                prop_assert_eq!(table.longest_match(&eid).map(|(eid, value)| (eid, *value)), expected.last().copied());
                prop_assert_eq!(covering, expected);
                let inside: Vec<_> = table.inside(&eid).map(|(eid, value)| (eid, *value)).collect();
                let expected: Vec<_> = list.iter().copied().filter(|(other, _)| eid.covers(other)).collect();
                prop_assert_eq!(inside, expected);
                let expected = (shortest.min(eid.net().prefix_len())..=eid.net().prefix_len())
                    .filter_map(|length| shorten(&eid, length))
                    .find(|region| list.iter().filter(|(other, _)| region.covers(other) && other != region).count() <= most);
                prop_assert_eq!(table.region(&eid, shortest, most), expected);
            }
        }
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
