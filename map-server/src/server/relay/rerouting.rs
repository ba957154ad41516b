//! What becomes of the pairs of a relay that is drained, or serves both ends no longer?
//!
//! Another one carries their packets, if there is one: that hears of both ends first, and they hear of it when it has
//! acknowledged that. One that is drained goes on where there is none. One that does not serve both ends leaves them to
//! themselves.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::Timestamp;

use super::super::actions::Actions;
use super::super::notify::NotifyKey;
use super::super::publish::{Changed, News};
use super::super::sites::XtrIndex;
use super::super::{MapServer, limits};
use super::ways::{Family, Pair};

impl MapServer {
    /// What a relay has registered may have changed: those whose packets it carries hear of it, get another one, or have
    /// to do without. Returns what has to be acknowledged before they are told.
    pub(in super::super) fn gather_relayed(
        &mut self,
        now: Timestamp,
        changes: &[&Changed],
        news: &mut News,
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        if self.state.relays.len() == 0 {
            return BTreeMap::new();
        }
        let mut rerouted = BTreeSet::new();
        for eid in changes.iter().map(|changed| changed.eid) {
            let relays = self.sites.relays();
            let concerned = relays.filter(|via| self.sites.may_register(*via, &eid));
            for via in concerned.collect::<Vec<_>>() {
                for pair in self.state.relays.over(via, Some(eid.iid())) {
                    if self.reroute_unserved(now, via, pair, actions) {
                        rerouted.insert(pair);
                    }
                    self.news_of_pair(pair, news);
                }
            }
        }
        self.present_ends(now, &rerouted, actions)
    }

    /// Gives the pairs of a relay that is drained to others, as far as there are any.
    pub(in super::super) fn relieve(
        &mut self,
        now: Timestamp,
        via: XtrIndex,
        actions: &mut Actions,
    ) {
        let (mut rerouted, mut news) = (BTreeSet::new(), News::new());
        for pair in self.state.relays.over(via, None) {
            let mut is_rerouted = false;
            for family in self.carried_by(via, &pair) {
                let mut eids = self.eids_of(&pair, family);
                eids.retain(|eid| self.may_relay(via, eid));
                if let Some(next) = self.relay_for(&pair, family, &eids)
                    && next != via
                {
                    self.replace(now, pair, family, next, actions);
                    is_rerouted = true;
                }
            }
            if is_rerouted {
                self.news_of_pair(pair, &mut news);
                rerouted.insert(pair);
            }
        }
        let awaited = self.present_ends(now, &rerouted, actions);
        self.spread(now, news, &awaited, &BTreeMap::new(), actions);
    }

    /// Returns how many pairs `via` carries.
    pub(in super::super) fn relayed_over(&self, via: XtrIndex) -> usize {
        self.state.relays.over(via, None).len()
    }

    /// Gives a pair another relay where `via` serves both ends no longer; returns whether there is one.
    fn reroute_unserved(
        &mut self,
        now: Timestamp,
        via: XtrIndex,
        pair: Pair,
        actions: &mut Actions,
    ) -> bool {
        let mut is_rerouted = false;
        for family in self.carried_by(via, &pair) {
            if self.may_relay_both(via, &pair, family) {
                continue;
            }
            let eids = self.eids_of(&pair, family);
            match self.relay_for(&pair, family, &eids) {
                Some(next) => {
                    self.replace(now, pair, family, next, actions);
                    is_rerouted = true;
                }
                None => self.state.relays.release(&pair, family),
            }
        }
        is_rerouted
    }

    fn carried_by(&self, via: XtrIndex, pair: &Pair) -> Vec<Family> {
        let relays = &self.state.relays;
        let carried = Family::ALL.into_iter();
        carried
            .filter(|family| relays.via(pair, *family) == Some(via))
            .collect()
    }

    /// Whether `via` serves anything of either end that has something.
    fn may_relay_both(&self, via: XtrIndex, (one, other, iid): &Pair, family: Family) -> bool {
        [*one, *other].into_iter().all(|end| {
            let eids = self.eids_of(&(end, end, *iid), family);
            eids.is_empty() || eids.iter().any(|eid| self.may_relay(via, eid))
        })
    }

    fn replace(
        &mut self,
        now: Timestamp,
        pair: Pair,
        family: Family,
        next: XtrIndex,
        actions: &mut Actions,
    ) {
        let (one, other, _) = pair;
        // There is room for a pair that there is.
        if self.state.relays.set(now, pair, family, next) {
            self.tell_relayed([one, other], next, actions);
        }
    }

    /// Adds what the two ends are told of each other.
    fn news_of_pair(&self, (one, other, iid): Pair, news: &mut News) {
        let mappings = &self.state.mappings;
        for (receiver, owner) in [(one, other), (other, one)] {
            for eid in mappings.registered_by(owner, iid, limits::RECORDS_PER_XTR) {
                let records = self.news_for(eid, receiver).into_iter();
                let known = news.entry(receiver).or_default();
                known.extend(records.map(|record| (record.eid, record)));
            }
        }
    }

    /// Tells the relays of `pairs` about their ends; returns what has to be acknowledged before each end hears of it.
    fn present_ends(
        &mut self,
        now: Timestamp,
        pairs: &BTreeSet<Pair>,
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        let mut ends: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for pair in pairs {
            let (one, other, iid) = *pair;
            for via in self.state.relays.vias(pair) {
                let theirs = ends.entry((via, iid)).or_default();
                theirs.extend([one, other]);
            }
        }
        self.present_all(now, ends, actions)
    }
}
