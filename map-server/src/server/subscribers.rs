//! Who wants to know about changes of a prefix, and until when?
//!
//! Whoever was told a mapping, by a Map-Reply or by a push, is told its changes for as long as its
//! TTL runs (RFC 9437 §5 calls this a subscription configured at the server).

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{Deadlines, EidPrefix, Timestamp};

use super::limits;
use super::prefix_table::PrefixTable;
use super::sites::XtrIndex;

/// All subscriptions.
#[derive(Clone, Debug)]
pub(crate) struct Subscribers {
    table: PrefixTable<BTreeSet<XtrIndex>>,
    by_xtr: BTreeMap<XtrIndex, BTreeSet<EidPrefix>>,
    expiry: Deadlines<(EidPrefix, XtrIndex)>,
    len: usize,
}

impl Subscribers {
    pub(crate) const fn new() -> Self {
        Self {
            table: PrefixTable::new(),
            by_xtr: BTreeMap::new(),
            expiry: Deadlines::new(),
            len: 0,
        }
    }

    /// Subscribes `xtr` to `eid` until `until`. Returns whether another one had to give way.
    pub(crate) fn join(&mut self, eid: EidPrefix, xtr: XtrIndex, until: Timestamp) -> bool {
        self.expiry.set((eid, xtr), until);
        if !self.by_xtr.entry(xtr).or_default().insert(eid) {
            return false;
        }
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
        if let Some((eid, xtr)) = self.expiry.pop_due(Timestamp(u64::MAX)) {
            self.leave(eid, xtr);
        }
        true
    }

    /// Returns how many subscriptions `xtr` has.
    pub(crate) fn count(&self, xtr: XtrIndex) -> usize {
        self.by_xtr.get(&xtr).map_or(0, BTreeSet::len)
    }

    /// Ends all subscriptions of `xtr`.
    pub(crate) fn leave_all(&mut self, xtr: XtrIndex) {
        for eid in self.by_xtr.get(&xtr).cloned().unwrap_or_default() {
            self.leave(eid, xtr);
        }
    }

    fn leave(&mut self, eid: EidPrefix, xtr: XtrIndex) {
        self.expiry.cancel(&(eid, xtr));
        if let Some(eids) = self.by_xtr.get_mut(&xtr) {
            self.len -= usize::from(eids.remove(&eid));
            if eids.is_empty() {
                self.by_xtr.remove(&xtr);
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
        while let Some((eid, xtr)) = self.expiry.pop_due(now) {
            self.leave(eid, xtr);
        }
    }

    /// Returns when the next subscription ends.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
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
        subscribers.leave_all(xtr(0));
        assert_eq!(subscribers.len, 1);
        assert_eq!(
            subscribers.around(&eid("fd00::1")),
            BTreeSet::from([xtr(1)])
        );
        assert_eq!(subscribers.table.len(), 1);
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
