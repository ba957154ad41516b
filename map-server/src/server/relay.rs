//! What if NATs keep two ends apart? Then a relay (an RTR) passes their packets on.
//!
//! An agent behind a NAT that gets no handshake with somebody asks as ever, with a record in its Map-Request (M, RFC
//! 9301 §5.2) that lists the locators it cannot reach (R is clear, §5.4). If the far end is behind a NAT as well, as far
//! as we see, each of the two is told the locators of a relay in the place of the other's, with a priority that says what
//! it is. The relay is told both as they are, and first. It is a proxy, whose whole business is to pass packets on, and
//! that it may do so for others is up to the operator: it reads them.
//!
//! All of that is forgotten after a while. Then the two are told of each other as they are, try that while the relay
//! carries their packets, and complain if it is in vain.

use std::collections::BTreeMap;

use lisp_proto::{
    Deadlines, EidPrefix, InstanceId, Locator, MapRequest, PublicKey, Record, RecordView, Rloc,
    Timestamp,
};

use super::actions::{Actions, Event};
use super::counters::DropReason;
use super::mappings::{Found, Mapping};
use super::notify::NotifyKey;
use super::preference::score;
use super::publish::{Changed, News};
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::XtrName;

/// Two ends in one instance, in the order of their indices.
type Pair = (XtrIndex, XtrIndex, InstanceId);

/// Which pairs use which relay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays {
    pairs: BTreeMap<Pair, XtrIndex>,
    /// How many pairs each end is part of.
    ends: BTreeMap<XtrIndex, usize>,
    expiry: Deadlines<Pair>,
}

impl Relays {
    /// Returns how many pairs use one.
    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns when the next pair is to try without.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    /// Returns what carries the packets of the two.
    fn via(&self, one: XtrIndex, other: XtrIndex, iid: InstanceId) -> Option<XtrIndex> {
        if self.pairs.is_empty() {
            return None;
        }
        self.pairs.get(&pair(one, other, iid)).copied()
    }

    /// Has `via` carry them until `until`; false if there are too many others.
    fn set(&mut self, pair: Pair, via: XtrIndex, until: Timestamp) -> bool {
        let (one, other, _) = pair;
        if !self.pairs.contains_key(&pair) {
            let count = |end| self.ends.get(&end).copied().unwrap_or(0);
            let most = limits::RELAYED_PAIRS_PER_XTR;
            if self.pairs.len() >= limits::RELAYED_PAIRS
                || count(one) >= most
                || count(other) >= most
            {
                return false;
            }
            for end in [one, other] {
                *self.ends.entry(end).or_default() += 1;
            }
        }
        self.pairs.insert(pair, via);
        self.expiry.set(pair, until);
        true
    }

    fn remove(&mut self, pair: &Pair) {
        let (one, other, _) = *pair;
        if self.pairs.remove(pair).is_none() {
            return;
        }
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
    pub(super) fn carries(&self, via: XtrIndex, end: XtrIndex, iid: InstanceId) -> bool {
        let mut pairs = self.pairs.iter();
        self.ends.contains_key(&end)
            && pairs
                .any(|(pair, by)| *by == via && pair.2 == iid && (pair.0 == end || pair.1 == end))
    }

    /// Lists the pairs that `via` carries in one instance.
    fn over(&self, via: XtrIndex, iid: InstanceId) -> Vec<Pair> {
        let pairs = self.pairs.iter();
        let pairs = pairs.filter(|((_, _, it), by)| **by == via && *it == iid);
        pairs.map(|(pair, _)| *pair).collect()
    }
}

impl MapServer {
    /// Takes note of an agent that cannot reach the owners of what it asks for: if only a relay helps, they get one.
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
        for asked in request.eids().take(limits::EIDS_PER_REQUEST) {
            let eid = asked.eid;
            let Some(owner) = self.owner_apart(&eid, requester, &unreachable) else {
                continue;
            };
            let pair = pair(requester, owner, iid);
            let Some(via) = self.relay_for(pair, [&source, &eid], &unreachable) else {
                continue;
            };
            let is_known = self.state.relays.via(requester, owner, iid) == Some(via);
            let until = now + limits::RELAY_LIFETIME;
            if !self.state.relays.set(pair, via, until) {
                actions.count(DropReason::TableFull);
            } else if !is_known {
                let [one, other, via] = [requester, owner, via].map(|xtr| self.name(xtr));
                actions.event(Event::Relayed { one, other, via });
            }
        }
    }

    /// Returns who alone has registered what covers `eid`, if it is behind a NAT and all that it offers there, or its
    /// relay, is `unreachable` to `requester`.
    fn owner_apart(
        &self,
        eid: &EidPrefix,
        requester: XtrIndex,
        unreachable: &[PublicKey],
    ) -> Option<XtrIndex> {
        let Found::Registered(mapping) = self.state.mappings.find(eid) else {
            return None;
        };
        let owner = single_owner(mapping)?;
        let locators = mapping.offers().flat_map(|(_, locators)| locators);
        let relay = self.relayed(mapping, requester);
        let is_apart = are_lost(locators, unreachable)
            || relay.is_some_and(|locators| are_lost(locators, unreachable));
        (owner != requester && is_apart && self.is_hidden(owner)).then_some(owner)
    }

    /// Whether `xtr` is behind a NAT, as far as we see.
    fn is_hidden(&self, xtr: XtrIndex) -> bool {
        let sightings = &self.state.sightings;
        let mut asked = sightings.asked_by(xtr);
        asked.any(|question| question.is_watched())
    }

    /// Returns the relay for a pair: the one that it has, or one of those that serve `eids` of both, by a hash of all
    /// three names; none that is `unreachable` itself.
    fn relay_for(
        &self,
        pair: Pair,
        eids: [&EidPrefix; 2],
        unreachable: &[PublicKey],
    ) -> Option<XtrIndex> {
        let (first, second, iid) = pair;
        let suits = |via: &XtrIndex| {
            *via != first
                && *via != second
                && !self.is_hidden(*via)
                && !self.state.assignments.is_draining(*via)
                && eids.iter().all(|eid| {
                    let locators = self.relay_locators(*via, eid);
                    !locators.is_empty() && !are_lost(locators, unreachable)
                })
        };
        let present = self.state.relays.via(first, second, iid);
        if let Some(via) = present.filter(suits) {
            return Some(via);
        }
        let ends = format!("{} {}", self.name(first), self.name(second));
        let relays = self.sites.relays().filter(suits);
        relays.max_by_key(|via| score(&ends, &self.name(*via), 1))
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

    /// Returns the locators of the relay through which `receiver` reaches the owner of `mapping`, if it has to.
    pub(super) fn relayed(&self, mapping: Mapping<'_>, receiver: XtrIndex) -> Option<Vec<Locator>> {
        if self.state.relays.len() == 0 || mapping.leads_nowhere() {
            return None;
        }
        let owner = single_owner(mapping)?;
        self.relayed_from(owner, &mapping.eid(), receiver)
    }

    fn relayed_from(
        &self,
        owner: XtrIndex,
        eid: &EidPrefix,
        receiver: XtrIndex,
    ) -> Option<Vec<Locator>> {
        let via = self.state.relays.via(owner, receiver, eid.iid())?;
        let locators = self.relay_locators(via, eid);
        (!locators.is_empty()).then_some(locators)
    }

    /// Returns `record` of `owner` as `receiver` is told it.
    pub(super) fn over_relay(&self, record: Record, owner: XtrIndex, receiver: XtrIndex) -> Record {
        match self.relayed_from(owner, &record.eid, receiver) {
            Some(locators) => Record { locators, ..record },
            None => record,
        }
    }

    /// Tells the relay of two ends, if they use one, about both; returns what it has to acknowledge before they begin.
    pub(super) fn tell_relay(
        &mut self,
        now: Timestamp,
        (one, other): (XtrIndex, XtrIndex),
        iid: InstanceId,
        actions: &mut Actions,
    ) -> Vec<NotifyKey> {
        let Some(via) = self.state.relays.via(one, other, iid) else {
            return Vec::new();
        };
        let mut records = self.whole_records(one, iid);
        records.extend(self.whole_records(other, iid));
        self.introduce(now, now, via, records, actions)
    }

    /// What a relay has registered may have changed: those whose packets it carries hear of it, or have to do without.
    pub(super) fn gather_relayed(&mut self, changes: &[&Changed], news: &mut News) {
        if self.state.relays.len() == 0 {
            return;
        }
        for eid in changes.iter().map(|changed| changed.eid) {
            let relays = self.sites.relays();
            let concerned = relays.filter(|via| self.sites.may_register(*via, &eid));
            for via in concerned.collect::<Vec<_>>() {
                for pair in self.state.relays.over(via, eid.iid()) {
                    self.news_of_relay(pair, via, news);
                }
            }
        }
    }

    fn news_of_relay(&mut self, pair: Pair, via: XtrIndex, news: &mut News) {
        let (one, other, iid) = pair;
        if !self.state.mappings.has_registered(via, iid) {
            self.state.relays.remove(&pair);
        }
        for (receiver, owner) in [(one, other), (other, one)] {
            let most = limits::RECORDS_PER_XTR;
            for eid in self.state.mappings.registered_by(owner, iid, most) {
                let records = self.news_for(eid, receiver).into_iter();
                let known = news.entry(receiver).or_default();
                known.extend(records.map(|record| (record.eid, record)));
            }
        }
    }

    /// Lets pairs try without a relay after a while.
    pub(super) fn expire_relays(&mut self, now: Timestamp) {
        let relays = &mut self.state.relays;
        while let Some(pair) = relays.expiry.pop_due(now) {
            relays.remove(&pair);
        }
    }

    fn name(&self, xtr: XtrIndex) -> XtrName {
        self.sites.site(xtr).name.clone()
    }
}

fn pair(one: XtrIndex, other: XtrIndex, iid: InstanceId) -> Pair {
    (one.min(other), one.max(other), iid)
}

/// Returns who has registered `mapping`, if that is one only.
fn single_owner(mapping: Mapping<'_>) -> Option<XtrIndex> {
    let mut owners = mapping.owners();
    let owner = owners.next()?;
    owners.all(|other| other == owner).then_some(owner)
}

/// Whether the keys of all `locators` are `unreachable`.
fn are_lost(locators: impl IntoIterator<Item = Locator>, unreachable: &[PublicKey]) -> bool {
    locators.into_iter().all(|locator| match locator.rloc {
        Rloc::WireGuard { key, .. } => unreachable.contains(&key),
        Rloc::Plain(_) => false,
    })
}

/// Returns the keys of the locators that `record` says cannot be reached.
fn unreachable(record: RecordView<'_>) -> Vec<PublicKey> {
    // Ports do not matter here: whoever has the key has it everywhere.
    let record = record.to_record(0);
    let locators = record.into_iter().flat_map(|record| record.locators);
    let lost = locators.filter(|locator| !locator.reachable);
    let keys = lost.filter_map(|locator| match locator.rloc {
        Rloc::WireGuard { key, .. } => Some(key),
        Rloc::Plain(_) => None,
    });
    keys.collect()
}

#[cfg(test)]
mod tests;
