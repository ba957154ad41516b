//! In which order are the entries of one instance-id and address family?

use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};

use ipnet::{Ipv4Net, Ipv6Net};

use super::slab::SlotId;

/// The entries of one instance-id and address family, in the order of their addresses; what is around
/// comes before what is inside.
#[derive(Clone, Debug)]
pub(super) struct Plane<const N: usize> {
    order: BTreeMap<[u8; N], SlotId>,
    /// Prefix lengths in use, the longest first.
    lengths: Vec<u8>,
    /// How many entries have each of them.
    counts: Vec<u32>,
}

impl<const N: usize> Default for Plane<N> {
    fn default() -> Self {
        Self {
            order: BTreeMap::new(),
            lengths: Vec::new(),
            counts: Vec::new(),
        }
    }
}

/// A prefix whose place in the order is written in `N` bytes: the address, then the length.
pub(super) trait OrderKey<const N: usize> {
    /// Returns its place.
    fn key(self) -> [u8; N];
    /// Returns the places of what is inside, itself included.
    fn inside(self) -> RangeInclusive<[u8; N]>;
    /// Returns its length in bits.
    fn length(self) -> u8;
}

impl OrderKey<5> for Ipv4Net {
    fn key(self) -> [u8; 5] {
        let [a, b, c, d] = self.addr().octets();
        [a, b, c, d, self.prefix_len()]
    }

    fn inside(self) -> RangeInclusive<[u8; 5]> {
        let [a, b, c, d] = self.broadcast().octets();
        self.key()..=[a, b, c, d, u8::MAX]
    }

    fn length(self) -> u8 {
        self.prefix_len()
    }
}

impl OrderKey<17> for Ipv6Net {
    fn key(self) -> [u8; 17] {
        ending(self.addr().octets(), self.prefix_len())
    }

    fn inside(self) -> RangeInclusive<[u8; 17]> {
        self.key()..=ending(self.broadcast().octets(), u8::MAX)
    }

    fn length(self) -> u8 {
        self.prefix_len()
    }
}

fn ending(address: [u8; 16], last: u8) -> [u8; 17] {
    let mut key = [last; 17];
    for (to, from) in key.iter_mut().zip(address) {
        *to = from;
    }
    key
}

impl<const N: usize> Plane<N> {
    /// Takes in where the entry of `net` is, which has none yet.
    pub(super) fn add(&mut self, net: impl OrderKey<N> + Copy, id: SlotId) {
        self.order.insert(net.key(), id);
        let length = net.length();
        match self.lengths.binary_search_by(|other| length.cmp(other)) {
            Ok(at) => {
                if let Some(count) = self.counts.get_mut(at) {
                    *count += 1;
                }
            }
            Err(at) => {
                self.lengths.insert(at, length);
                self.counts.insert(at, 1);
            }
        }
    }

    /// Forgets the entry of `net`, which has one.
    pub(super) fn remove(&mut self, net: impl OrderKey<N> + Copy) {
        let length = net.length();
        self.order.remove(&net.key());
        let Ok(at) = self.lengths.binary_search_by(|other| length.cmp(other)) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(at) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(at);
                self.lengths.remove(at);
            }
        }
    }

    /// Lists where the entries inside `net` are.
    pub(super) fn inside(&self, net: impl OrderKey<N>) -> impl Iterator<Item = SlotId> {
        self.order.range(net.inside()).map(|(_, id)| *id)
    }

    /// Lists where the entries are that come after `net`; all of them if there is none.
    pub(super) fn after(&self, net: Option<impl OrderKey<N>>) -> impl Iterator<Item = SlotId> {
        let after = net.map_or(Bound::Unbounded, |net| Bound::Excluded(net.key()));
        let range = self.order.range((after, Bound::Unbounded));
        range.map(|(_, id)| *id)
    }

    /// Lists the prefix lengths in use, the longest first.
    pub(super) fn lengths(&self) -> &[u8] {
        &self.lengths
    }
}
