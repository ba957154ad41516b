//! Which entries cover a prefix, and which lie inside it?
//!
//! The one interface to longest-prefix matching. Entries are found by a hash of the whole prefix, with one
//! probe for each prefix length in use; a search tree beside it knows their order, for what needs that.

mod index;
mod plane;
mod slab;

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;

use arrayvec::ArrayVec;
use ipnet::IpNet;
use lisp_proto::{EidPrefix, InstanceId};

use self::index::Index;
use self::plane::{OrderKey, Plane};
pub(crate) use self::slab::{Slab, SlotId};

/// More entries than this inside one are not counted: the order tells how many there are.
const COUNTED_INSIDE: u32 = 64;
/// Lookups that the processor prepares for at the same time.
const EXPECTED: usize = 64;
/// With fewer entries than this, they all are in the processor's caches.
const CACHED: usize = 8_192;
/// Stands for more than [`COUNTED_INSIDE`].
const UNCOUNTED: u32 = u32::MAX;

/// A map from EID-prefixes to values, with longest-prefix matching: what the server finds mappings with.
#[derive(Clone)]
pub struct PrefixTable<T> {
    slots: Slab<Entry<T>>,
    index: Index,
    v4: BTreeMap<InstanceId, Plane<5>>,
    v6: BTreeMap<InstanceId, Plane<17>>,
}

#[derive(Clone)]
struct Entry<T> {
    eid: EidPrefix,
    /// How many entries lie strictly inside, or [`UNCOUNTED`].
    inside: u32,
    value: T,
}

impl<T> PrefixTable<T> {
    /// Returns an empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: Slab::new(),
            index: Index::new(),
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
        }
    }

    /// Returns the number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Stores `value` under `eid` and returns what was there.
    pub fn insert(&mut self, eid: EidPrefix, value: T) -> Option<T> {
        if let Some(known) = self.exact_mut(&eid) {
            return Some(std::mem::replace(known, value));
        }
        self.add(eid, value);
        None
    }

    /// Stores `value` under `eid`, which has no entry yet.
    pub(crate) fn add(&mut self, eid: EidPrefix, value: T) -> SlotId {
        self.count_around(&eid, |inside| match inside {
            COUNTED_INSIDE.. => UNCOUNTED,
            few => few + 1,
        });
        let inside = if is_host(&eid) {
            0
        } else {
            self.count_inside(&eid)
        };
        let id = self.slots.insert(Entry { eid, inside, value });
        let slots = &self.slots;
        self.index
            .insert(&eid, id, |id| slots.get(id).map(|entry| entry.eid));
        match eid.net() {
            IpNet::V4(net) => self.v4.entry(eid.iid()).or_default().add(net, id),
            IpNet::V6(net) => self.v6.entry(eid.iid()).or_default().add(net, id),
        }
        id
    }

    /// Takes the entry of exactly `eid` out.
    pub fn remove(&mut self, eid: &EidPrefix) -> Option<T> {
        let slots = &self.slots;
        let id = self
            .index
            .remove(eid, |id| slots.get(id).map(|entry| entry.eid))?;
        // Instance-ids cost nothing once they are unused.
        match eid.net() {
            IpNet::V4(net) => remove_from(&mut self.v4, eid.iid(), net),
            IpNet::V6(net) => remove_from(&mut self.v6, eid.iid(), net),
        }
        let entry = self.slots.remove(id)?;
        self.count_around(eid, |inside| match inside {
            UNCOUNTED => UNCOUNTED,
            counted => counted.saturating_sub(1),
        });
        Some(entry.value)
    }

    /// Returns where the entry of exactly `eid` is, for as long as it is there.
    pub(crate) fn id_of(&self, eid: &EidPrefix) -> Option<SlotId> {
        let is_it = |id| {
            self.slots
                .get(id)
                .is_some_and(|entry: &Entry<T>| entry.eid == *eid)
        };
        self.index.find(eid, is_it)
    }

    /// Returns the entry at `id`.
    pub(crate) fn at(&self, id: SlotId) -> Option<(EidPrefix, &T)> {
        self.slots.get(id).map(|entry| (entry.eid, &entry.value))
    }

    /// Returns the entry at `id`, for changing it.
    pub(crate) fn at_mut(&mut self, id: SlotId) -> Option<&mut T> {
        self.slots.get_mut(id).map(|entry| &mut entry.value)
    }

    /// Returns the entry of exactly `eid`.
    pub(crate) fn exact(&self, eid: &EidPrefix) -> Option<&T> {
        self.entry(eid).map(|entry| &entry.value)
    }

    /// Returns the entry of exactly `eid`, for changing it.
    pub(crate) fn exact_mut(&mut self, eid: &EidPrefix) -> Option<&mut T> {
        let id = self.id_of(eid)?;
        self.at_mut(id)
    }

    /// Returns the longest entry that covers `eid`.
    #[must_use]
    pub fn longest_match(&self, eid: &EidPrefix) -> Option<(EidPrefix, &T)> {
        let (eid, value, _) = self.longest_whole(eid)?;
        Some((eid, value))
    }

    /// Returns the longest entry that covers `eid`, and whether no other is inside it.
    pub(crate) fn longest_whole(&self, eid: &EidPrefix) -> Option<(EidPrefix, &T, bool)> {
        let mut lengths = self.lengths(eid).iter();
        let found = lengths.find_map(|length| self.entry(&shorten(eid, *length)?));
        found.map(|entry| (entry.eid, &entry.value, entry.inside == 0))
    }

    /// Reads what lookups of all of `eids` will read, so that it is in the processor's caches then. Nothing here
    /// waits for what was read before for another one, so the processor reads for many at the same time. Small
    /// tables are in the caches anyway.
    pub(crate) fn expect(&self, eids: &[EidPrefix]) {
        if self.len() < CACHED {
            return;
        }
        for some in eids.chunks(EXPECTED) {
            self.read_ahead(some.iter().filter_map(|eid| {
                let mut lengths = self.lengths(eid).iter();
                lengths.find_map(|length| self.index.likely(&shorten(eid, *length)?))
            }));
        }
    }

    /// The same for those who ask for the entries of exactly `eids`: one look for each, whatever else there is.
    pub(crate) fn expect_exact(&self, eids: &[EidPrefix]) {
        if self.len() < CACHED {
            return;
        }
        for some in eids.chunks(EXPECTED) {
            self.read_ahead(some.iter().filter_map(|eid| self.index.likely(eid)));
        }
    }

    fn read_ahead(&self, likely: impl Iterator<Item = SlotId>) {
        let likely: ArrayVec<SlotId, EXPECTED> = likely.take(EXPECTED).collect();
        for id in likely {
            black_box(self.slots.get(id).map(|entry| entry.inside));
        }
    }

    /// Lists the entries that cover `eid`, itself included, shortest first.
    pub(crate) fn covering(
        &self,
        eid: &EidPrefix,
    ) -> impl Iterator<Item = (EidPrefix, &T)> + use<'_, T> {
        let eid = *eid;
        let lengths = self.lengths(&eid).iter().rev();
        lengths.filter_map(move |length| {
            let entry = self.entry(&shorten(&eid, *length)?)?;
            Some((entry.eid, &entry.value))
        })
    }

    /// Lists the entries inside `eid`, itself included, in the order of their addresses.
    pub(crate) fn inside(
        &self,
        eid: &EidPrefix,
    ) -> impl Iterator<Item = (EidPrefix, &T)> + use<'_, T> {
        let iid = eid.iid();
        let (v4, v6) = match eid.net() {
            IpNet::V4(net) => (self.v4.get(&iid).map(|plane| plane.inside(net)), None),
            IpNet::V6(net) => (None, self.v6.get(&iid).map(|plane| plane.inside(net))),
        };
        let ids = v4.into_iter().flatten().chain(v6.into_iter().flatten());
        ids.filter_map(|id| self.at(id))
    }

    /// Lists all entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (EidPrefix, &T)> {
        self.iter_after(None)
    }

    /// Lists the entries that come after `last` in the order of [`Self::iter`]; all of them if there is
    /// none.
    pub(crate) fn iter_after(
        &self,
        last: Option<EidPrefix>,
    ) -> impl Iterator<Item = (EidPrefix, &T)> {
        let iid = last.map_or(InstanceId(0), |last| last.iid());
        let (v4, v6) = match last.map(|last| last.net()) {
            None => (Some(None), None),
            Some(IpNet::V4(net)) => (Some(Some(net)), None),
            Some(IpNet::V6(net)) => (None, Some(net)),
        };
        let v4 = v4.into_iter().flat_map(move |net| {
            let planes = self.v4.range(iid..);
            planes.flat_map(move |(own, plane)| plane.after(net.filter(|_| *own == iid)))
        });
        let first_v6 = v6.map_or(InstanceId(0), |_| iid);
        let planes = self.v6.range(first_v6..);
        let v6 = planes.flat_map(move |(own, plane)| plane.after(v6.filter(|_| *own == iid)));
        v4.chain(v6).filter_map(|id| self.at(id))
    }

    /// Returns the shortest prefix that covers `asked`, is at least `shortest` bits long and has
    /// at most `most` entries inside. An entry that equals the result does not count.
    pub(crate) fn region(&self, asked: &EidPrefix, shortest: u8, most: usize) -> Option<EidPrefix> {
        if !self.has_at_most(asked, most) {
            return None;
        }
        // The longer the prefix, the less lies inside: search by halves, but first where it mostly is.
        let (mut low, mut high) = (shortest, asked.net().prefix_len());
        let widest = shorten(asked, low.min(high))?;
        if self.has_at_most(&widest, most) {
            return Some(widest);
        }
        let mut best = *asked;
        while low < high {
            let middle = low + (high - low) / 2;
            let candidate = shorten(asked, middle)?;
            if self.has_at_most(&candidate, most) {
                best = candidate;
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(best)
    }

    /// Whether at most `most` entries lie strictly inside `prefix`.
    pub(crate) fn has_at_most(&self, prefix: &EidPrefix, most: usize) -> bool {
        if is_host(prefix) {
            return true;
        }
        if let Some(Entry { inside, .. }) = self.entry(prefix)
            && *inside != UNCOUNTED
        {
            return *inside as usize <= most;
        }
        let inside = self.inside(prefix).filter(|(eid, _)| eid != prefix);
        inside.take(most.saturating_add(1)).count() <= most
    }

    fn entry(&self, eid: &EidPrefix) -> Option<&Entry<T>> {
        self.slots.get(self.id_of(eid)?)
    }

    /// Lists the prefix lengths in use that `eid` is not shorter than, the longest first.
    fn lengths(&self, eid: &EidPrefix) -> &[u8] {
        let lengths = match eid.net() {
            IpNet::V4(_) => self.v4.get(&eid.iid()).map(Plane::lengths),
            IpNet::V6(_) => self.v6.get(&eid.iid()).map(Plane::lengths),
        };
        let lengths = lengths.unwrap_or_default();
        let longer = lengths
            .iter()
            .take_while(|length| **length > eid.net().prefix_len());
        lengths.get(longer.count()..).unwrap_or_default()
    }

    fn count_inside(&self, eid: &EidPrefix) -> u32 {
        let inside = self.inside(eid).zip(0..=COUNTED_INSIDE);
        let last = inside.last();
        last.map_or(0, |(_, position)| {
            if position < COUNTED_INSIDE {
                position + 1
            } else {
                UNCOUNTED
            }
        })
    }

    /// Changes how many entries lie inside those around `eid`.
    fn count_around(&mut self, eid: &EidPrefix, change: impl Fn(u32) -> u32) {
        let lengths = self.lengths(eid).iter();
        let shorter = lengths.filter(|length| **length < eid.net().prefix_len());
        let around = shorter.filter_map(|length| self.id_of(&shorten(eid, *length)?));
        for id in around.collect::<Vec<_>>() {
            if let Some(entry) = self.slots.get_mut(id) {
                entry.inside = change(entry.inside);
            }
        }
    }
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for PrefixTable<T> {
    /// Writes what is in the table, not how it has come there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Returns the prefix of `length` bits that covers `eid`.
fn shorten(eid: &EidPrefix, length: u8) -> Option<EidPrefix> {
    if length == eid.net().prefix_len() {
        return Some(*eid);
    }
    let net = IpNet::new(eid.net().addr(), length).ok()?;
    Some(EidPrefix::new(eid.iid(), net))
}

fn is_host(eid: &EidPrefix) -> bool {
    eid.net().prefix_len() == eid.net().max_prefix_len()
}

fn remove_from<const N: usize>(
    planes: &mut BTreeMap<InstanceId, Plane<N>>,
    iid: InstanceId,
    net: impl OrderKey<N> + Copy,
) {
    if let Some(plane) = planes.get_mut(&iid) {
        plane.remove(net);
        if plane.lengths().is_empty() {
            planes.remove(&iid);
        }
    }
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
            let all: Vec<_> = table.iter().map(|(eid, value)| (eid, *value)).collect();
            let mut sorted = list.clone();
            sorted.sort_by_key(|(eid, _)| (eid.net().max_prefix_len(), *eid));
            prop_assert_eq!(&all, &sorted);
            for (position, (eid, _)) in all.iter().enumerate() {
                let rest = table.iter_after(Some(*eid)).map(|(eid, value)| (eid, *value));
                prop_assert_eq!(rest.collect::<Vec<_>>(), &all[position + 1..]);
            }
            for eid in asked {
                let covering: Vec<_> = table.covering(&eid).map(|(eid, value)| (eid, *value)).collect();
                let mut expected: Vec<_> = list.iter().copied().filter(|(other, _)| other.covers(&eid)).collect();
                expected.sort_by_key(|(other, _)| other.net().prefix_len());
                prop_assert_eq!(table.longest_match(&eid).map(|(eid, value)| (eid, *value)), expected.last().copied());
                prop_assert_eq!(covering, expected);
                let inside: Vec<_> = table.inside(&eid).map(|(eid, value)| (eid, *value)).collect();
                let expected: Vec<_> = list.iter().copied().filter(|(other, _)| eid.covers(other)).collect();
                prop_assert_eq!(inside, expected);
                let expected_region = (shortest.min(eid.net().prefix_len())..=eid.net().prefix_len())
                    .filter_map(|length| shorten(&eid, length))
                    .find(|region| list.iter().filter(|(other, _)| region.covers(other) && other != region).count() <= most);
                prop_assert_eq!(table.region(&eid, shortest, most), expected_region);
            }
        }
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
