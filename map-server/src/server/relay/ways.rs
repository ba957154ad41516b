//! Which pairs use which relay, and for how long?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Deadlines, EidPrefix, InstanceId, Timestamp};

use super::super::limits;
use super::super::sites::XtrIndex;

/// A family of EIDs. The ends of a pair have both, and a relay may serve one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(eid: &EidPrefix) -> Self {
        match eid.net() {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// Two ends in one instance, in the order of their indices.
pub(super) type Pair = (XtrIndex, XtrIndex, InstanceId);

/// A relay for each family that has one.
type Vias = BTreeMap<Family, XtrIndex>;

/// How the packets of a pair go.
#[derive(Clone, Debug)]
struct Way {
    /// Their relays; none while they try without.
    via: Vias,
    /// How long they use them before they try without.
    lifetime: Duration,
    /// Relays that one of the two could not reach.
    lost: BTreeSet<XtrIndex>,
}

/// Which pairs use which relay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays {
    pairs: BTreeMap<Pair, Way>,
    /// How many pairs each end is part of.
    ends: BTreeMap<XtrIndex, usize>,
    /// Each pair that uses a relay, by that, and by either end.
    carried: BTreeSet<(XtrIndex, InstanceId, XtrIndex, Pair)>,
    expiry: Deadlines<Pair>,
}

impl Relays {
    /// Returns how many pairs there are that use one, or did so lately.
    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns when the next pair is to try without, or is forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    /// Returns what carries the packets of a pair in one family.
    pub(super) fn via(&self, pair: &Pair, family: Family) -> Option<XtrIndex> {
        self.way(pair)?.via.get(&family).copied()
    }

    /// Returns what carries the packets of a pair.
    pub(super) fn vias(&self, pair: &Pair) -> BTreeSet<XtrIndex> {
        let way = self.way(pair).into_iter();
        way.flat_map(|way| way.via.values().copied()).collect()
    }

    /// Whether a pair tries to do without the relay that it had.
    pub(super) fn is_on_trial(&self, pair: &Pair) -> bool {
        self.way(pair).is_some_and(|way| way.via.is_empty())
    }

    /// Returns how long a pair uses its relays.
    pub(super) fn lifetime(&self, pair: &Pair) -> Option<Duration> {
        Some(self.way(pair)?.lifetime)
    }

    fn way(&self, pair: &Pair) -> Option<&Way> {
        if self.pairs.is_empty() {
            return None;
        }
        self.pairs.get(pair)
    }

    /// Has `via` carry the packets of a pair that cannot do without, in one family; false if there are too many others.
    /// Another relay than before lasts no longer than that would have.
    pub(super) fn set(
        &mut self,
        now: Timestamp,
        pair: Pair,
        family: Family,
        via: XtrIndex,
    ) -> bool {
        if !self.pairs.contains_key(&pair) && !self.begin(pair) {
            return false;
        }
        let Some(way) = self.pairs.get_mut(&pair) else {
            return false;
        };
        let before = way.via.clone();
        if before.get(&family) == Some(&via) {
            return true;
        }
        if before.is_empty() {
            // They have tried without, in vain.
            way.lifetime = (way.lifetime * 2).min(limits::RELAY_LIFETIME);
            self.expiry.set(pair, now + way.lifetime);
        }
        way.via.insert(family, via);
        let after = way.via.clone();
        self.index(pair, &before, &after);
        true
    }

    /// Makes room for a pair; false if there is none.
    fn begin(&mut self, pair: Pair) -> bool {
        let (one, other, _) = pair;
        let count = |end| self.ends.get(&end).copied().unwrap_or(0);
        let most = limits::RELAYED_PAIRS_PER_XTR;
        if self.pairs.len() >= limits::RELAYED_PAIRS || count(one) >= most || count(other) >= most {
            return false;
        }
        for end in [one, other] {
            *self.ends.entry(end).or_default() += 1;
        }
        let way = Way {
            via: Vias::new(),
            lifetime: limits::RELAY_LIFETIME_FIRST / 2,
            lost: BTreeSet::new(),
        };
        self.pairs.insert(pair, way);
        true
    }

    /// Notes that a pair cannot use the relay that it has for one family.
    pub(super) fn lose(&mut self, pair: &Pair, family: Family) {
        if let Some(way) = self.pairs.get_mut(pair) {
            way.lost.extend(way.via.get(&family));
        }
    }

    /// Those that are lost get another chance, except the one in use for that family.
    pub(super) fn forgive(&mut self, pair: &Pair, family: Family) {
        if let Some(way) = self.pairs.get_mut(pair) {
            let present = way.via.get(&family);
            way.lost.retain(|lost| Some(lost) == present);
        }
    }

    pub(super) fn is_lost(&self, pair: &Pair, via: XtrIndex) -> bool {
        self.way(pair).is_some_and(|way| way.lost.contains(&via))
    }

    fn index(&mut self, pair: Pair, before: &Vias, after: &Vias) {
        let (one, other, iid) = pair;
        for end in [one, other] {
            for via in before.values() {
                self.carried.remove(&(*via, iid, end, pair));
            }
            for via in after.values() {
                self.carried.insert((*via, iid, end, pair));
            }
        }
    }

    /// Lets a pair do without its relay for one family; without any it is forgotten.
    pub(super) fn release(&mut self, pair: &Pair, family: Family) {
        let Some(way) = self.pairs.get_mut(pair) else {
            return;
        };
        let before = way.via.clone();
        way.via.remove(&family);
        let after = way.via.clone();
        self.index(*pair, &before, &after);
        if after.is_empty() {
            self.remove(pair);
        }
    }

    /// Lets pairs whose time is over try without a relay; those that have done so for long enough are forgotten.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(pair) = self.expiry.pop_due(now) {
            self.end(now, pair);
        }
    }

    fn end(&mut self, now: Timestamp, pair: Pair) {
        let Some(way) = self.pairs.get_mut(&pair) else {
            return;
        };
        let before = std::mem::take(&mut way.via);
        if before.is_empty() {
            return self.remove(&pair);
        }
        way.lost.clear();
        let until = now + way.lifetime * limits::RELAY_REMEMBERED;
        self.expiry.set(pair, until);
        self.index(pair, &before, &Vias::new());
    }

    fn remove(&mut self, pair: &Pair) {
        let (one, other, _) = *pair;
        let Some(way) = self.pairs.remove(pair) else {
            return;
        };
        self.index(*pair, &way.via, &Vias::new());
        self.expiry.cancel(pair);
        for end in [one, other] {
            if let Some(count) = self.ends.get_mut(&end) {
                *count -= 1;
                if *count == 0 {
                    self.ends.remove(&end);
                }
            }
        }
    }

    /// Whether `via` carries packets of `end` in one instance.
    pub(in super::super) fn carries(&self, via: XtrIndex, end: XtrIndex, iid: InstanceId) -> bool {
        self.carried_of(via, end, iid).next().is_some()
    }

    /// Lists the pairs that `end` is part of and `via` carries, in one instance.
    pub(super) fn pairs_of(&self, via: XtrIndex, end: XtrIndex, iid: InstanceId) -> Vec<Pair> {
        self.carried_of(via, end, iid).collect()
    }

    fn carried_of(
        &self,
        via: XtrIndex,
        end: XtrIndex,
        iid: InstanceId,
    ) -> impl Iterator<Item = Pair> + '_ {
        let first = (via, iid, end, pair(XtrIndex::MIN, XtrIndex::MIN, iid));
        let carried = self.carried.range(first..);
        let theirs =
            carried.take_while(move |(by, within, of, _)| (*by, *within, *of) == (via, iid, end));
        theirs.map(|(.., pair)| *pair)
    }

    /// Lists the pairs that `via` carries, in one instance or in all.
    pub(super) fn over(&self, via: XtrIndex, iid: Option<InstanceId>) -> Vec<Pair> {
        let least = iid.unwrap_or(InstanceId(0));
        let none = pair(XtrIndex::MIN, XtrIndex::MIN, least);
        let carried = self.carried.range((via, least, XtrIndex::MIN, none)..);
        let carried = carried
            .take_while(|(by, within, ..)| *by == via && iid.is_none_or(|iid| iid == *within));
        let once = carried.filter(|(_, _, end, pair)| *end == pair.0);
        once.map(|(.., pair)| *pair).collect()
    }
}

pub(super) fn pair(one: XtrIndex, other: XtrIndex, iid: InstanceId) -> Pair {
    (one.min(other), one.max(other), iid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::ZERO;

    fn nth(number: usize) -> XtrIndex {
        XtrIndex::nth(number)
    }

    #[test]
    fn there_are_no_more_pairs_than_one_may_be_part_of() {
        let mut relays = Relays::default();
        let via = nth(1);
        let pair = |other| pair(nth(0), nth(other), InstanceId(0));
        let most = limits::RELAYED_PAIRS_PER_XTR;
        for other in 2..most + 2 {
            assert!(relays.set(NOW, pair(other), Family::V4, via));
        }
        assert!(!relays.set(NOW, pair(most + 2), Family::V4, via));
        for family in Family::ALL {
            assert!(relays.set(NOW, pair(2), family, via), "it is there");
        }
        relays.remove(&pair(2));
        assert!(relays.set(NOW, pair(most + 2), Family::V4, via));
        assert_eq!(relays.len(), most);
        assert_eq!(relays.carried.len(), most * 2);
    }

    #[test]
    fn another_relay_lasts_no_longer_than_the_first_one_would_have() {
        let mut relays = Relays::default();
        let pair = pair(nth(0), nth(1), InstanceId(0));
        assert!(relays.set(NOW, pair, Family::V4, nth(2)));
        let until = relays.next_deadline();
        assert!(until.is_some());
        let later = NOW + limits::RELAY_LIFETIME_FIRST / 2;
        for (family, via) in [(Family::V4, 3), (Family::V6, 2), (Family::V6, 3)] {
            assert!(relays.set(later, pair, family, nth(via)));
            assert_eq!(relays.next_deadline(), until);
            assert_eq!(relays.lifetime(&pair), Some(limits::RELAY_LIFETIME_FIRST));
        }
    }

    #[test]
    fn each_family_has_a_relay_of_its_own_and_the_pair_goes_with_the_last() {
        let mut relays = Relays::default();
        let pair = pair(nth(0), nth(1), InstanceId(7));
        let over = |relays: &Relays| [2, 3].map(|via| relays.over(nth(via), None).len());
        relays.set(NOW, pair, Family::V4, nth(2));
        relays.set(NOW, pair, Family::V6, nth(3));
        assert_eq!(over(&relays), [1, 1]);
        assert_eq!(relays.over(nth(2), Some(InstanceId(0))), []);
        assert_eq!(relays.over(nth(2), Some(InstanceId(7))), [pair]);
        relays.set(NOW, pair, Family::V6, nth(2));
        assert_eq!(over(&relays), [1, 0]);
        relays.release(&pair, Family::V4);
        assert!(relays.carries(nth(2), nth(1), InstanceId(7)));
        relays.release(&pair, Family::V6);
        assert_eq!((over(&relays), relays.len()), ([0, 0], 0));
        assert_eq!(relays.next_deadline(), None);
    }
}
