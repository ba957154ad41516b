//! What do the ends hear for which a relay asks?
//!
//! It passes on a packet of the other end, for whom nobody asks in turn: that end still uses what it was told. Where the
//! packet goes to, relay and other end may both be forgotten, because nothing has come from there for long, and what the
//! relay passes on would be dropped without a word. So they hear of both again.

use lisp_proto::{EidPrefix, InstanceId, Record, Timestamp};

use super::super::actions::Actions;
use super::super::mappings::Found;
use super::super::pairing::Paired;
use super::super::sites::XtrIndex;
use super::super::{MapServer, limits};
use super::single_owner;

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
            let Found::Registered(mapping) = self.state.mappings.find(eid) else {
                continue;
            };
            let Some(end) = single_owner(mapping) else {
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
        for (one, other, _) in self.state.relays.pairs_of(via, end, iid) {
            if records.len() >= limits::RECORDS_PER_ANSWER {
                break;
            }
            let far = if one == end { other } else { one };
            let theirs = self.whole_records(far, iid);
            records.extend(self.as_told(theirs, far, end, actions));
        }
        records.truncate(limits::RECORDS_PER_ANSWER);
        records
    }
}
