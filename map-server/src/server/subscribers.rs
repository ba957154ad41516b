//! Who wants to know about changes of a prefix, and until when?
//!
//! Whoever was told a mapping, by a Map-Reply or by a push, is told its changes for as long as its
//! TTL runs (RFC 9437 §5 calls this a subscription configured at the server). Besides, an xTR may
//! ask to be told (RFC 9437 §4). None of this is stored: an xTR that relies on a subscription
//! renews it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{EidPrefix, InstanceId, Timestamp};

use super::limits;
use super::prefix_table::PrefixTable;
use super::sites::XtrIndex;

/// All subscriptions.
#[derive(Clone, Debug)]
pub(crate) struct Subscribers {
    table: PrefixTable<BTreeSet<XtrIndex>>,
    by_xtr: BTreeMap<XtrIndex, BTreeMap<EidPrefix, Terms>>,
    /// What an xTR has asked to be told about, and which prefix is watched for that.
    asked: BTreeMap<XtrIndex, BTreeMap<EidPrefix, EidPrefix>>,
    /// All of them in the order in which they end: new ones come last, so that they are found close to each other.
    expiry: BTreeSet<(Timestamp, (EidPrefix, XtrIndex))>,
    /// Those that end as soon as the subscriber knows that the owner has left.
    ending: BTreeSet<(EidPrefix, XtrIndex)>,
    len: usize,
}

/// How one lasts.
#[derive(Clone, Copy, Debug)]
struct Terms {
    until: Timestamp,
    /// Whether nobody needs it by itself: the subscriber was told besides something else.
    besides: bool,
}

impl Subscribers {
    pub(crate) fn new() -> Self {
        Self {
            table: PrefixTable::new(),
            by_xtr: BTreeMap::new(),
            asked: BTreeMap::new(),
            expiry: BTreeSet::new(),
            ending: BTreeSet::new(),
            len: 0,
        }
    }

    /// Returns how many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Subscribes `xtr` to `eid`, at least until `until`, although it needs that only because of
    /// something else. Returns whether another one had to give way.
    pub(crate) fn join_besides(&mut self, eid: EidPrefix, xtr: XtrIndex, until: Timestamp) -> bool {
        let known = self.terms(&eid, xtr);
        let besides = known.is_none_or(|terms| terms.besides);
        self.enter(eid, xtr, Terms { until, besides })
    }

    /// Subscribes `xtr` to `eid`, at least until `until`. Returns whether another one had to give
    /// way.
    pub(crate) fn join(&mut self, eid: EidPrefix, xtr: XtrIndex, until: Timestamp) -> bool {
        let besides = false;
        self.enter(eid, xtr, Terms { until, besides })
    }

    fn enter(&mut self, eid: EidPrefix, xtr: XtrIndex, terms: Terms) -> bool {
        self.ending.remove(&(eid, xtr));
        let all = self.by_xtr.entry(xtr).or_default();
        let until = terms.until;
        match all.entry(eid) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.besides = terms.besides;
                if known.until < until {
                    self.expiry.remove(&(known.until, (eid, xtr)));
                    self.expiry.insert((until, (eid, xtr)));
                    known.until = until;
                }
                return false;
            }
            Entry::Vacant(new) => new.insert(terms),
        };
        self.expiry.insert((until, (eid, xtr)));
        self.len += 1;
        match self.table.exact_mut(&eid) {
            Some(xtrs) => {
                xtrs.insert(xtr);
            }
            None => {
                self.table.insert(eid, BTreeSet::from([xtr]));
            }
        }
        if self.len <= limits::SUBSCRIPTIONS {
            return false;
        }
        if let Some((_, (eid, xtr))) = self.expiry.pop_first() {
            self.leave(eid, xtr);
        }
        true
    }

    /// Subscribes `xtr` to `watched`, because it asked to be told about `asked`. Returns whether
    /// another one had to give way.
    pub(crate) fn ask(
        &mut self,
        asked: EidPrefix,
        watched: EidPrefix,
        xtr: XtrIndex,
        until: Timestamp,
    ) -> bool {
        let before = self.asked.entry(xtr).or_default().insert(asked, watched);
        if let Some(before) = before.filter(|before| *before != watched) {
            self.unwatch(before, xtr);
        }
        self.join(watched, xtr, until)
    }

    /// Ends what [`Self::ask`] has begun, if anything.
    pub(crate) fn unask(&mut self, asked: &EidPrefix, xtr: XtrIndex) {
        let watched = self.asked.get_mut(&xtr).and_then(|all| all.remove(asked));
        if let Some(watched) = watched {
            self.unwatch(watched, xtr);
        }
    }

    /// Whether `xtr` has asked to be told about `eid`.
    pub(crate) fn asks(&self, xtr: XtrIndex, eid: &EidPrefix) -> bool {
        let asked = self.asked.get(&xtr);
        asked.is_some_and(|asked| asked.contains_key(eid))
    }

    /// Whether `xtr` is subscribed to exactly `eid`.
    pub(crate) fn contains(&self, eid: &EidPrefix, xtr: XtrIndex) -> bool {
        self.terms(eid, xtr).is_some()
    }

    fn terms(&self, eid: &EidPrefix, xtr: XtrIndex) -> Option<Terms> {
        self.by_xtr.get(&xtr)?.get(eid).copied()
    }

    /// Whether `xtr`, which is subscribed to `eid`, needs that.
    fn is_needed(&self, eid: &EidPrefix, xtr: XtrIndex) -> bool {
        self.terms(eid, xtr).is_some_and(|terms| !terms.besides)
    }

    /// Whether `xtr` needs what it is told of `eid`, of a part of it or of what is around it.
    pub(crate) fn needs(&self, xtr: XtrIndex, eid: &EidPrefix) -> bool {
        let mut entries = self.table.covering(eid).chain(self.table.inside(eid));
        entries.any(|(it, xtrs)| xtrs.contains(&xtr) && self.is_needed(&it, xtr))
    }

    /// Lists what `xtr` is subscribed to because it needs it.
    pub(crate) fn needed_by(&self, xtr: XtrIndex) -> impl Iterator<Item = &EidPrefix> {
        let all = self.by_xtr.get(&xtr).into_iter().flatten();
        let needed = all.filter(|(_, terms)| !terms.besides);
        needed.map(|(eid, _)| eid)
    }

    /// Lists what `xtr` is subscribed to of `eid`: the prefix itself, or parts of it.
    pub(crate) fn parts(&self, eid: &EidPrefix, xtr: XtrIndex) -> Vec<EidPrefix> {
        let parts = self.table.inside(eid);
        let parts = parts.filter(|(_, xtrs)| xtrs.contains(&xtr));
        parts.map(|(part, _)| part).collect()
    }

    /// Whether `xtr` is subscribed to `eid` or to a prefix around it.
    pub(crate) fn hears_of(&self, xtr: XtrIndex, eid: &EidPrefix) -> bool {
        let mut around = self.table.covering(eid);
        around.any(|(_, xtrs)| xtrs.contains(&xtr))
    }

    /// Returns how many prefixes `xtr` has asked to be told about, not counting `besides`.
    pub(crate) fn asked_for(&self, xtr: XtrIndex, besides: &[EidPrefix]) -> usize {
        let asked = self.asked.get(&xtr).into_iter().flatten();
        asked.filter(|(asked, _)| !besides.contains(asked)).count()
    }

    /// Ends a subscription unless something else that was asked for needs it.
    fn unwatch(&mut self, watched: EidPrefix, xtr: XtrIndex) {
        let others = self.asked.get(&xtr);
        if !others.is_some_and(|others| others.values().any(|other| *other == watched)) {
            self.leave(watched, xtr);
        }
    }

    /// Returns how many subscriptions `xtr` has.
    pub(crate) fn count(&self, xtr: XtrIndex) -> usize {
        self.by_xtr.get(&xtr).map_or(0, BTreeMap::len)
    }

    /// Lists what `xtr` is subscribed to.
    pub(crate) fn of(&self, xtr: XtrIndex) -> impl Iterator<Item = &EidPrefix> {
        self.by_xtr.get(&xtr).into_iter().flat_map(BTreeMap::keys)
    }

    /// Ends all subscriptions of `xtr` in one instance.
    pub(crate) fn leave_all(&mut self, xtr: XtrIndex, iid: InstanceId) {
        let theirs = self.of(xtr).filter(|eid| eid.iid() == iid);
        for eid in theirs.copied().collect::<Vec<_>>() {
            self.leave(eid, xtr);
        }
    }

    /// Ends the subscriptions of `xtr` to `eid` and to prefixes around it.
    pub(crate) fn leave_around(&mut self, eid: &EidPrefix, xtr: XtrIndex) {
        let around = self.table.covering(eid);
        let around = around.filter(|(_, xtrs)| xtrs.contains(&xtr));
        let eids: Vec<_> = around.map(|(eid, _)| eid).collect();
        for eid in eids {
            self.leave(eid, xtr);
        }
    }

    /// Ends the subscriptions of `xtr` to `eid` and to parts of it, but for those it has asked for.
    pub(crate) fn leave_inside(&mut self, eid: &EidPrefix, xtr: XtrIndex) {
        let asked = self.asked.get(&xtr);
        let is_asked = |part: &EidPrefix| {
            asked.is_some_and(|asked| asked.values().any(|watched| watched == part))
        };
        let mut parts = self.parts(eid, xtr);
        parts.retain(|part| !is_asked(part));
        for part in parts {
            self.leave(part, xtr);
        }
    }

    /// Lets the subscriptions to `eid` and to parts of it end when their subscribers know that it is
    /// withdrawn, unless they have asked to be told or begin again before.
    pub(crate) fn end_when_told(&mut self, eid: EidPrefix) {
        for (part, xtrs) in self.table.inside(&eid) {
            let told = xtrs.iter().filter(|xtr| {
                let asked = self.asked.get(xtr).into_iter().flatten();
                !asked.into_iter().any(|(_, watched)| *watched == part)
            });
            self.ending.extend(told.map(|xtr| (part, *xtr)));
        }
    }

    /// Takes in that `xtr` knows what was to be told last about `eid`.
    pub(crate) fn told(&mut self, eid: EidPrefix, xtr: XtrIndex) {
        if self.ending.contains(&(eid, xtr)) {
            self.leave(eid, xtr);
        }
    }

    fn leave(&mut self, eid: EidPrefix, xtr: XtrIndex) {
        self.ending.remove(&(eid, xtr));
        if let Some(eids) = self.by_xtr.get_mut(&xtr) {
            if let Some(terms) = eids.remove(&eid) {
                self.expiry.remove(&(terms.until, (eid, xtr)));
                self.len -= 1;
            }
            if eids.is_empty() {
                self.by_xtr.remove(&xtr);
            }
        }
        if let Some(asked) = self.asked.get_mut(&xtr) {
            asked.retain(|_, watched| *watched != eid);
            if asked.is_empty() {
                self.asked.remove(&xtr);
            }
        }
        if let Some(xtrs) = self.table.exact_mut(&eid) {
            xtrs.remove(&xtr);
            if xtrs.is_empty() {
                self.table.remove(&eid);
            }
        }
    }

    /// Lists those subscribed to `eid` or to a prefix around it.
    pub(crate) fn around(&self, eid: &EidPrefix) -> BTreeSet<XtrIndex> {
        self.table
            .covering(eid)
            .flat_map(|(_, xtrs)| xtrs)
            .copied()
            .collect()
    }

    /// Lists the subscribed prefixes strictly inside `eid`, with their subscribers.
    pub(crate) fn strictly_inside(
        &self,
        eid: EidPrefix,
    ) -> impl Iterator<Item = (EidPrefix, &BTreeSet<XtrIndex>)> {
        self.table
            .inside(&eid)
            .filter(move |(inner, _)| *inner != eid)
    }

    /// Ends the subscriptions whose time is over.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        while let Some((until, (eid, xtr))) = self.expiry.first().copied()
            && until <= now
        {
            self.expiry.pop_first();
            self.leave(eid, xtr);
        }
    }

    /// Returns when the next subscription ends.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.first().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sites::tests::xtr;

    #[test]
    fn subscribers_of_a_wide_prefix_hear_of_what_is_inside() {
        let mut subscribers = Subscribers::new();
        subscribers.join(eid("10.0.0.0/8"), xtr(0), Timestamp(9));
        subscribers.join(eid("10.1.0.0/16"), xtr(1), Timestamp(9));
        assert_eq!(
            subscribers.around(&eid("10.1.2.3")),
            BTreeSet::from([xtr(0), xtr(1)])
        );
        assert_eq!(
            subscribers.around(&eid("10.0.0.0/8")),
            BTreeSet::from([xtr(0)])
        );
        let inside: Vec<_> = subscribers.strictly_inside(eid("10.0.0.0/8")).collect();
        assert_eq!(inside, [(eid("10.1.0.0/16"), &BTreeSet::from([xtr(1)]))]);
    }

    #[test]
    fn a_subscription_ends_with_its_time_unless_renewed() {
        let mut subscribers = Subscribers::new();
        subscribers.join(eid("10.0.0.0/8"), xtr(0), Timestamp(5));
        subscribers.join(eid("10.0.0.0/8"), xtr(0), Timestamp(7));
        assert_eq!(subscribers.next_deadline(), Some(Timestamp(7)));
        subscribers.expire(Timestamp(6));
        assert_eq!(subscribers.around(&eid("10.0.0.1")).len(), 1);
        subscribers.expire(Timestamp(7));
        assert_eq!(
            (subscribers.around(&eid("10.0.0.1")).len(), subscribers.len),
            (0, 0)
        );
    }

    #[test]
    fn an_xtr_that_leaves_takes_all_its_subscriptions_with_it() {
        let mut subscribers = Subscribers::new();
        subscribers.join(eid("10.0.0.0/8"), xtr(0), Timestamp(5));
        subscribers.join(eid("fd00::/8"), xtr(0), Timestamp(5));
        subscribers.join(eid("fd00::/8"), xtr(1), Timestamp(5));
        subscribers.join(eid("[7]fd00::/8"), xtr(0), Timestamp(5));
        subscribers.leave_all(xtr(0), InstanceId(7));
        assert_eq!(subscribers.len, 3, "what it does in other instances stays");
        subscribers.leave_all(xtr(0), InstanceId(0));
        assert_eq!(subscribers.len, 1);
        assert_eq!(
            subscribers.around(&eid("fd00::1")),
            BTreeSet::from([xtr(1)])
        );
        assert_eq!(subscribers.table.len(), 1);
    }

    #[test]
    fn a_subscription_lasts_as_long_as_the_longest_reason_for_it() {
        let mut subscribers = Subscribers::new();
        subscribers.ask(eid("10.0.0.1"), eid("10.0.0.1"), xtr(0), Timestamp(9));
        subscribers.join(eid("10.0.0.1"), xtr(0), Timestamp(5));
        assert_eq!(subscribers.next_deadline(), Some(Timestamp(9)));
        subscribers.unask(&eid("10.0.0.1"), xtr(0));
        assert_eq!((subscribers.next_deadline(), subscribers.len), (None, 0));
    }

    #[test]
    fn what_two_questions_have_in_common_is_watched_until_both_are_withdrawn() {
        let mut subscribers = Subscribers::new();
        let hole = eid("10.0.0.0/24");
        for asked in ["10.0.0.1", "10.0.0.2"] {
            subscribers.ask(eid(asked), hole, xtr(0), Timestamp(9));
        }
        assert_eq!(subscribers.asked_for(xtr(0), &[eid("10.0.0.2")]), 1);
        subscribers.unask(&eid("10.0.0.1"), xtr(0));
        assert_eq!(subscribers.around(&hole).len(), 1);
        subscribers.ask(eid("10.0.0.2"), eid("10.0.0.2"), xtr(0), Timestamp(9));
        assert_eq!(
            subscribers.around(&hole).len(),
            0,
            "it is watched more closely"
        );
        assert_eq!(subscribers.around(&eid("10.0.0.2")).len(), 1);
        subscribers.expire(Timestamp(9));
        assert_eq!(subscribers.asked_for(xtr(0), &[]), 0);
    }

    #[test]
    fn leaving_what_is_around_a_prefix_leaves_the_rest() {
        let mut subscribers = Subscribers::new();
        for prefix in ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16"] {
            subscribers.join(eid(prefix), xtr(0), Timestamp(9));
            subscribers.join(eid(prefix), xtr(1), Timestamp(9));
        }
        subscribers.leave_around(&eid("10.1.2.3"), xtr(0));
        assert_eq!(
            (subscribers.count(xtr(0)), subscribers.count(xtr(1))),
            (1, 3)
        );
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
