//! What do the ends hear for which a relay asks?
//!
//! It passes on a packet of the other end, for whom nobody asks in turn: that end still uses what it was told. Where the
//! packet goes to, relay and other end may both be forgotten, because nothing has come from there for long, and what the
//! relay passes on would be dropped without a word. So they hear of both again. If the two are to try without their
//! relay by now, of which whoever uses it has not heard yet, both hear of each other as they are.

use std::collections::BTreeSet;

use lisp_proto::{EidPrefix, InstanceId, Record, Timestamp};

use super::super::actions::Actions;
use super::super::mappings::Found;
use super::super::pairing::Paired;
use super::super::sites::XtrIndex;
use super::super::{MapServer, limits};
use super::single_owner;
use super::ways::pair;

impl MapServer {
    /// Tells those who own `eids`, as far as `via` carries their packets, about the relay and whom they reach over it.
    /// Returns who they are, and what they have to acknowledge.
    pub(in super::super) fn remind(
        &mut self,
        now: Timestamp,
        via: XtrIndex,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) -> Paired {
        let mut reminded = Paired::default();
        if self.state.relays.len() == 0 {
            return reminded;
        }
        for eid in eids {
            let Some(end) = self.only_owner(eid) else {
                continue;
            };
            if reminded.owners.contains(&end) || !self.state.relays.carries(via, end, eid.iid()) {
                continue;
            }
            let records = self.reached_over(via, end, eid.iid(), actions);
            reminded.owners.push(end);
            let awaited = self.introduce(now, now, end, records, actions);
            reminded.awaited.extend(awaited);
        }
        reminded
    }

    /// Tells the owners of `source` and of `eids` of each other, as far as they are to try without a relay, and one that
    /// they had asks: it still gets the packets of one of them.
    pub(in super::super) fn put_on_trial(
        &mut self,
        now: Timestamp,
        via: XtrIndex,
        source: &EidPrefix,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) {
        if self.state.relays.len() == 0 || !self.sites.relays().any(|relay| relay == via) {
            return;
        }
        let iid = source.iid();
        let Some(one) = self.only_owner(source).filter(|one| *one != via) else {
            return;
        };
        let others = eids.iter().filter_map(|eid| self.only_owner(eid));
        let mut others: BTreeSet<_> = others.collect();
        others.retain(|other| self.state.relays.is_on_trial(&pair(one, *other, iid)));
        for other in others {
            for (owner, receiver) in [(one, other), (other, one)] {
                let records = self.whole_records(owner, iid);
                let records = self.as_told(records, owner, receiver, actions);
                self.introduce(now, now, receiver, records, actions);
            }
        }
    }

    fn only_owner(&self, eid: &EidPrefix) -> Option<XtrIndex> {
        match self.state.mappings.find(eid) {
            Found::Registered(mapping) => single_owner(mapping),
            Found::Unregistered(_) | Found::Unknown => None,
        }
    }

    /// Returns what `via` has for itself, and what is behind it for `end`, as that is told it.
    fn reached_over(
        &mut self,
        via: XtrIndex,
        end: XtrIndex,
        iid: InstanceId,
        actions: &mut Actions,
    ) -> Vec<Record> {
        let own = self.whole_records(via, iid);
        let mut records = self.as_told(own, via, end, actions);
        records.extend(self.behind(via, end, iid, actions));
        records.truncate(limits::RECORDS_PER_ANSWER);
        records
    }

    /// Returns what those have registered whom `end` reaches over `via`, as it is told it: whoever knows a key has to know
    /// all that is behind it, or drops what comes from there.
    pub(in super::super) fn behind(
        &mut self,
        via: XtrIndex,
        end: XtrIndex,
        iid: InstanceId,
        actions: &mut Actions,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        for (one, other, _) in self.state.relays.pairs_of(via, end, iid) {
            if records.len() >= limits::RECORDS_PER_ANSWER {
                break;
            }
            let far = if one == end { other } else { one };
            let theirs = self.whole_records(far, iid);
            records.extend(self.as_told(theirs, far, end, actions));
        }
        records
    }
}
