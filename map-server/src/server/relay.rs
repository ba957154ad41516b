//! What if NATs keep two ends apart? Then a relay (an RTR) passes their packets on.
//!
//! An agent behind a NAT that gets no handshake with somebody asks as ever, with a record in its Map-Request (M, RFC
//! 9301 §5.2) that lists the locators it cannot reach (R is clear, §5.4). If the far end is behind a NAT as well, as far
//! as we see, each of the two is told the locators of a relay in the place of the other's, with a priority that says what
//! it is. The relay is told both as they are, and first. It is a proxy, whose whole business is to pass packets on, and
//! that it may do so for others is up to the operator: it reads them.
//!
//! All of that is forgotten after a while, which is short at first: a single packet that was lost looks like two NATs.
//! Then the two are told of each other as they are, try that while the relay carries their packets, and complain if it is
//! in vain; each time the relay lasts longer.
//!
//! Who complains does not choose the relay: he can only say that the one that he has is of no use.

use std::collections::BTreeSet;

use lisp_proto::{
    EidPrefix, InstanceId, Locator, MapRequest, PublicKey, Record, Rloc, Timestamp, Ttl,
};

use self::ways::{Family, Pair, pair};

use super::actions::{Actions, Event};
use super::counters::DropReason;
use super::failover::unreachable;
use super::mappings::{Found, Mapping};
use super::notify::NotifyKey;
use super::preference::score;
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::XtrName;

mod reminding;
mod rerouting;
mod ways;

pub(crate) use self::ways::Relays;

impl MapServer {
    /// Takes note of an agent that cannot reach the owners of what it asks for: if only a relay helps, they get one.
    /// The agent asks for a source of its own: a relay is told what is behind it.
    pub(super) fn heed_apart(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) {
        let (Some(record), Some((iid, source))) = (request.source_record(), request.source_eid())
        else {
            return;
        };
        let unreachable = unreachable(record);
        let source = EidPrefix::host(iid, source);
        if unreachable.is_empty() || !self.is_hidden(requester) {
            return;
        }
        let Some(own) = self.own_record(requester, &source) else {
            return;
        };
        let asked = request.eids().map(|asked| asked.eid);
        let asked = asked.filter(|eid| eid.iid() == iid);
        for eid in asked.take(limits::EIDS_PER_REQUEST) {
            if let Some((owner, theirs)) = self.owner_apart(&eid, requester, &unreachable) {
                let ends = [(requester, own.eid), (owner, theirs)];
                self.bring_together(now, ends, &unreachable, actions);
            }
        }
    }

    /// Has a relay carry the packets between the mappings of the two `ends`, the first of which has complained.
    fn bring_together(
        &mut self,
        now: Timestamp,
        [(requester, own), (owner, theirs)]: [(XtrIndex, EidPrefix); 2],
        unreachable: &BTreeSet<PublicKey>,
        actions: &mut Actions,
    ) {
        let (pair, family) = (pair(requester, owner, own.iid()), Family::of(&theirs));
        if self.is_relay_lost(&pair, &theirs, unreachable) {
            self.state.relays.lose(&pair, family);
        }
        let Some(via) = self.relay_for(&pair, family, &[own, theirs]) else {
            return;
        };
        let present = self.state.relays.via(&pair, family);
        if present == Some(via) {
            return;
        }
        if present.is_some() && !self.state.claims.allow(now, requester) {
            return actions.count(DropReason::FailoverLimited);
        }
        if !self.state.relays.set(now, pair, family, via) {
            return actions.count(DropReason::TableFull);
        }
        self.tell_relayed([requester, owner], via, actions);
        // It is one tunnel that has failed, whatever is inside.
        for other in Family::ALL {
            let present = self.state.relays.via(&pair, other);
            let is_sound = present.is_some_and(|via| !self.state.relays.is_lost(&pair, via));
            let eids = self.eids_of(&pair, other);
            if !is_sound && !eids.is_empty() && self.may_relay_all(via, &eids) {
                self.state.relays.set(now, pair, other, via);
            }
        }
    }

    fn tell_relayed(&self, ends: [XtrIndex; 2], via: XtrIndex, actions: &mut Actions) {
        let [one, other] = ends.map(|xtr| self.name(xtr));
        let via = self.name(via);
        actions.event(Event::Relayed { one, other, via });
    }

    /// Returns who alone has registered what covers `eid`, and the prefix of that, if it is behind a NAT and all that it
    /// offers there, or its relay, is `unreachable` to `requester`. Those who share a prefix take each other's place: none of
    /// them needs a relay.
    fn owner_apart(
        &self,
        eid: &EidPrefix,
        requester: XtrIndex,
        unreachable: &BTreeSet<PublicKey>,
    ) -> Option<(XtrIndex, EidPrefix)> {
        let Found::Registered(mapping) = self.state.mappings.find(eid) else {
            return None;
        };
        if self.is_shared(mapping) {
            return None;
        }
        let (owner, eid) = (single_owner(mapping)?, mapping.eid());
        let locators = mapping.offers().flat_map(|(_, locators)| locators);
        let is_apart = are_lost(locators, unreachable)
            || self.is_relay_lost(&pair(requester, owner, eid.iid()), &eid, unreachable);
        (owner != requester && is_apart && self.is_hidden(owner)).then_some((owner, eid))
    }

    /// Whether a pair has a relay, and it is `unreachable` for what goes to `eid`.
    fn is_relay_lost(
        &self,
        pair: &Pair,
        eid: &EidPrefix,
        unreachable: &BTreeSet<PublicKey>,
    ) -> bool {
        let via = self.state.relays.via(pair, Family::of(eid));
        via.is_some_and(|via| are_lost(self.relay_locators(via, eid), unreachable))
    }

    /// Whether `xtr` is behind a NAT, as far as we see.
    fn is_hidden(&self, xtr: XtrIndex) -> bool {
        let sightings = &self.state.sightings;
        let mut asked = sightings.asked_by(xtr);
        asked.any(|(_, question)| question.is_watched())
    }

    /// Returns the relay for a pair: the one that it has, or one of those that serve all `eids`. One that is drained or
    /// lost comes last. Otherwise one that serves all of both is better, and then a hash of all three names decides. When all
    /// others are lost as well, they get another chance.
    fn relay_for(&mut self, pair: &Pair, family: Family, eids: &[EidPrefix]) -> Option<XtrIndex> {
        let (first, second, _) = *pair;
        let suits = |via: &XtrIndex| {
            let is_end = *via == first || *via == second;
            !is_end && !self.is_hidden(*via) && self.may_relay_all(*via, eids)
        };
        let is_lost = |via: &XtrIndex| self.state.relays.is_lost(pair, *via);
        let is_kept = |via: &XtrIndex| !self.state.assignments.is_draining(*via);
        let present = self.state.relays.via(pair, family);
        let sound = present.filter(|via| suits(via) && is_kept(via) && !is_lost(via));
        if sound.is_some() {
            return sound;
        }
        let ends = format!("{} {}", self.name(first), self.name(second));
        let all = Family::ALL
            .map(|family| self.eids_of(pair, family))
            .concat();
        let preference = |via: &XtrIndex| {
            let is_whole = self.may_relay_all(*via, &all);
            let is_present = Some(*via) == present;
            let score = score(&ends, &self.name(*via), 1);
            (is_kept(via), is_whole, is_present, score)
        };
        let relays: Vec<_> = self.sites.relays().filter(suits).collect();
        let sound = relays.iter().filter(|via| !is_lost(via)).copied();
        let chosen = sound.max_by_key(preference);
        if chosen.is_some() {
            return chosen;
        }
        let others = relays.into_iter().filter(|via| Some(*via) != present);
        let chosen = others.max_by_key(preference);
        self.state.relays.forgive(pair, family);
        chosen
    }

    /// Lists what the ends of a pair have registered in one family.
    fn eids_of(&self, (one, other, iid): &Pair, family: Family) -> Vec<EidPrefix> {
        let mappings = &self.state.mappings;
        let of = |end| mappings.registered_by(end, *iid, limits::RECORDS_PER_XTR);
        let eids = [*one, *other].into_iter().flat_map(of);
        eids.filter(|eid| Family::of(eid) == family).collect()
    }

    fn may_relay(&self, via: XtrIndex, eid: &EidPrefix) -> bool {
        !self.relay_locators(via, eid).is_empty()
    }

    fn may_relay_all(&self, via: XtrIndex, eids: &[EidPrefix]) -> bool {
        eids.iter().all(|eid| self.may_relay(via, eid))
    }

    /// Returns the locators of a relay for what goes to `eid`: it serves a prefix around that.
    fn relay_locators(&self, via: XtrIndex, eid: &EidPrefix) -> Vec<Locator> {
        let mappings = &self.state.mappings;
        let served = mappings.registered_by(via, eid.iid(), limits::RECORDS_PER_XTR);
        let served = served.into_iter().filter(|prefix| prefix.covers(eid));
        let served = served.max_by_key(|prefix| prefix.net().prefix_len());
        let mapping = served.and_then(|prefix| mappings.exact(&prefix));
        let offers = mapping.into_iter().flat_map(|mapping| mapping.offers());
        let own = offers.filter(|(owner, _)| *owner == via);
        let usable = own.flat_map(|(_, locators)| locators).filter(|locator| {
            let is_ours = matches!(locator.rloc, Rloc::WireGuard { .. });
            is_ours && locator.priority != u8::MAX
        });
        let told = usable.map(|locator| Locator {
            priority: limits::PRIORITY_RELAY,
            local: false,
            probed: false,
            ..locator
        });
        told.collect()
    }

    /// Returns the record of `mapping` as `receiver` is told it, if it reaches the owner over a relay only.
    pub(super) fn relayed(&self, mapping: Mapping<'_>, receiver: XtrIndex) -> Option<Record> {
        if self.state.relays.len() == 0 || mapping.leads_nowhere() {
            return None;
        }
        let (owner, eid) = (single_owner(mapping)?, mapping.eid());
        let relays = &self.state.relays;
        relays.via(&pair(owner, receiver, eid.iid()), Family::of(&eid))?;
        self.relayed_from(&mapping.record(), owner, receiver)
    }

    /// Returns `record` of `owner` as `receiver` is told it.
    pub(super) fn over_relay(&self, record: Record, owner: XtrIndex, receiver: XtrIndex) -> Record {
        let relayed = self.relayed_from(&record, owner, receiver);
        relayed.unwrap_or(record)
    }

    /// Returns `record` of `owner` with the locators of the relay through which `receiver` reaches it. It is good for as
    /// long as the two use that: then they ask, and are told of each other as they are.
    fn relayed_from(&self, record: &Record, owner: XtrIndex, receiver: XtrIndex) -> Option<Record> {
        let (relays, pair) = (&self.state.relays, pair(owner, receiver, record.eid.iid()));
        let via = relays.via(&pair, Family::of(&record.eid))?;
        let locators = self.relay_locators(via, &record.eid);
        let minutes = relays.lifetime(&pair)?.as_secs() / 60;
        let minutes = u32::try_from(minutes).unwrap_or(u32::MAX);
        let ttl = Ttl::from_minutes(record.ttl.minutes().min(minutes.max(1)));
        (!locators.is_empty()).then(|| Record {
            ttl,
            locators,
            ..record.clone()
        })
    }

    /// Tells the relay of two ends, if they use one, about both; returns what it has to acknowledge before they begin.
    pub(super) fn tell_relay(
        &mut self,
        now: Timestamp,
        (one, other): (XtrIndex, XtrIndex),
        iid: InstanceId,
        actions: &mut Actions,
    ) -> Vec<NotifyKey> {
        let mut awaited = Vec::new();
        for via in self.state.relays.vias(&pair(one, other, iid)) {
            let mut records = Vec::new();
            for end in [one, other] {
                let theirs = self.whole_records(end, iid);
                records.extend(self.as_told(theirs, end, via, actions));
            }
            awaited.extend(self.introduce(now, now, via, records, actions));
        }
        awaited
    }

    /// Returns what the relays of two ends, if they use any, have registered for themselves, as `receiver` is told it:
    /// whoever knows a key has to know that as well, or drops what comes from there.
    pub(super) fn own_of_relays(
        &mut self,
        (other, receiver): (XtrIndex, XtrIndex),
        iid: InstanceId,
        actions: &mut Actions,
    ) -> Vec<Record> {
        let mut own = Vec::new();
        for via in self.state.relays.vias(&pair(other, receiver, iid)) {
            let records = self.whole_records(via, iid);
            own.extend(self.as_told(records, via, receiver, actions));
        }
        own
    }

    /// Lets pairs try without a relay after a while.
    pub(super) fn expire_relays(&mut self, now: Timestamp) {
        self.state.relays.expire(now);
    }

    fn name(&self, xtr: XtrIndex) -> XtrName {
        self.sites.site(xtr).name.clone()
    }
}

/// Returns who has registered `mapping`, if that is one only.
fn single_owner(mapping: Mapping<'_>) -> Option<XtrIndex> {
    let mut owners = mapping.owners();
    let owner = owners.next()?;
    owners.all(|other| other == owner).then_some(owner)
}

/// Whether there are `locators`, and the keys of all are `unreachable`.
fn are_lost(
    locators: impl IntoIterator<Item = Locator>,
    unreachable: &BTreeSet<PublicKey>,
) -> bool {
    let mut locators = locators.into_iter().peekable();
    locators.peek().is_some()
        && locators.all(|locator| match locator.rloc {
            Rloc::WireGuard { key, .. } => unreachable.contains(&key),
            Rloc::Plain(_) => false,
        })
}

#[cfg(test)]
mod tests;
