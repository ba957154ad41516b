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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lisp_proto::{
    Deadlines, EidPrefix, InstanceId, Locator, MapRequest, PublicKey, Record, Rloc, Timestamp, Ttl,
};

use super::actions::{Actions, Event};
use super::counters::DropReason;
use super::failover::unreachable;
use super::mappings::{Found, Mapping};
use super::notify::NotifyKey;
use super::preference::score;
use super::publish::{Changed, News};
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::XtrName;

/// Two ends in one instance, in the order of their indices.
type Pair = (XtrIndex, XtrIndex, InstanceId);

/// How the packets of a pair go.
#[derive(Clone, Debug)]
struct Way {
    /// Their relay; none while they try without.
    via: Option<XtrIndex>,
    /// How long they use one before they try without.
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

    /// Returns what carries the packets of the two.
    fn via(&self, one: XtrIndex, other: XtrIndex, iid: InstanceId) -> Option<XtrIndex> {
        self.way(&pair(one, other, iid))?.via
    }

    fn way(&self, pair: &Pair) -> Option<&Way> {
        if self.pairs.is_empty() {
            return None;
        }
        self.pairs.get(pair)
    }

    /// Has `via` carry the packets of a pair that cannot do without; false if there are too many others.
    fn set(&mut self, now: Timestamp, pair: Pair, via: XtrIndex) -> bool {
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
        let way = self.pairs.entry(pair).or_insert_with(|| Way {
            via: None,
            lifetime: limits::RELAY_LIFETIME_FIRST / 2,
            lost: BTreeSet::new(),
        });
        if way.via == Some(via) {
            return true;
        }
        if way.via.is_none() {
            // They have tried without, in vain.
            way.lifetime = (way.lifetime * 2).min(limits::RELAY_LIFETIME);
        }
        let before = way.via.replace(via);
        let until = now + way.lifetime;
        self.expiry.set(pair, until);
        self.index(pair, before, Some(via));
        true
    }

    /// Notes that a pair cannot use the relay that it has.
    fn lose(&mut self, pair: &Pair) {
        if let Some(way) = self.pairs.get_mut(pair) {
            way.lost.extend(way.via);
        }
    }

    /// Those that are lost get another chance, except the one in use.
    fn forgive(&mut self, pair: &Pair) {
        if let Some(way) = self.pairs.get_mut(pair) {
            let present = way.via;
            way.lost.retain(|lost| Some(*lost) == present);
        }
    }

    fn is_lost(&self, pair: &Pair, via: XtrIndex) -> bool {
        self.way(pair).is_some_and(|way| way.lost.contains(&via))
    }

    fn index(&mut self, pair: Pair, before: Option<XtrIndex>, after: Option<XtrIndex>) {
        let (one, other, iid) = pair;
        for end in [one, other] {
            if let Some(via) = before {
                self.carried.remove(&(via, iid, end, pair));
            }
            if let Some(via) = after {
                self.carried.insert((via, iid, end, pair));
            }
        }
    }

    /// The time of a pair is over: it tries without a relay, or has done so for long enough and is forgotten.
    fn end(&mut self, now: Timestamp, pair: Pair) {
        let Some(way) = self.pairs.get_mut(&pair) else {
            return;
        };
        let Some(via) = way.via.take() else {
            return self.remove(&pair);
        };
        way.lost.clear();
        let until = now + way.lifetime * limits::RELAY_REMEMBERED;
        self.expiry.set(pair, until);
        self.index(pair, Some(via), None);
    }

    fn remove(&mut self, pair: &Pair) {
        let (one, other, _) = *pair;
        let Some(way) = self.pairs.remove(pair) else {
            return;
        };
        self.index(*pair, way.via, None);
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
        let first = (via, iid, end, pair(XtrIndex::MIN, XtrIndex::MIN, iid));
        let next = self.carried.range(first..).next();
        next.is_some_and(|(by, within, of, _)| (*by, *within, *of) == (via, iid, end))
    }

    /// Lists the pairs that `via` carries in one instance.
    fn over(&self, via: XtrIndex, iid: InstanceId) -> Vec<Pair> {
        let first = (
            via,
            iid,
            XtrIndex::MIN,
            pair(XtrIndex::MIN, XtrIndex::MIN, iid),
        );
        let carried = self.carried.range(first..);
        let carried = carried.take_while(|(by, within, ..)| (*by, *within) == (via, iid));
        let once = carried.filter(|(_, _, end, pair)| *end == pair.0);
        once.map(|(.., pair)| *pair).collect()
    }
}

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
        if unreachable.is_empty()
            || !self.is_hidden(requester)
            || self.own_record(requester, &source).is_none()
        {
            return;
        }
        let asked = request.eids().map(|asked| asked.eid);
        let asked = asked.filter(|eid| eid.iid() == iid);
        for eid in asked.take(limits::EIDS_PER_REQUEST) {
            let Some(owner) = self.owner_apart(&eid, requester, &unreachable) else {
                continue;
            };
            let pair = pair(requester, owner, iid);
            if self.is_relay_lost(&pair, &eid, &unreachable) {
                self.state.relays.lose(&pair);
            }
            let Some(via) = self.relay_for(pair, [&source, &eid]) else {
                continue;
            };
            let is_known = self.state.relays.via(requester, owner, iid) == Some(via);
            if !self.state.relays.set(now, pair, via) {
                actions.count(DropReason::TableFull);
            } else if !is_known {
                let [one, other, via] = [requester, owner, via].map(|xtr| self.name(xtr));
                actions.event(Event::Relayed { one, other, via });
            }
        }
    }

    /// Returns who alone has registered what covers `eid`, if it is behind a NAT and all that it offers there, or its
    /// relay, is `unreachable` to `requester`. Those who share a prefix take each other's place: none of them needs a relay.
    fn owner_apart(
        &self,
        eid: &EidPrefix,
        requester: XtrIndex,
        unreachable: &BTreeSet<PublicKey>,
    ) -> Option<XtrIndex> {
        let Found::Registered(mapping) = self.state.mappings.find(eid) else {
            return None;
        };
        if self.is_shared(mapping) {
            return None;
        }
        let owner = single_owner(mapping)?;
        let locators = mapping.offers().flat_map(|(_, locators)| locators);
        let is_apart = are_lost(locators, unreachable)
            || self.is_relay_lost(&pair(requester, owner, eid.iid()), eid, unreachable);
        (owner != requester && is_apart && self.is_hidden(owner)).then_some(owner)
    }

    /// Whether a pair has a relay, and it is `unreachable` for what goes to `eid`.
    fn is_relay_lost(
        &self,
        pair: &Pair,
        eid: &EidPrefix,
        unreachable: &BTreeSet<PublicKey>,
    ) -> bool {
        let via = self.state.relays.way(pair).and_then(|way| way.via);
        via.is_some_and(|via| {
            let locators = self.relay_locators(via, eid);
            !locators.is_empty() && are_lost(locators, unreachable)
        })
    }

    /// Whether `xtr` is behind a NAT, as far as we see.
    fn is_hidden(&self, xtr: XtrIndex) -> bool {
        let sightings = &self.state.sightings;
        let mut asked = sightings.asked_by(xtr);
        asked.any(|(_, question)| question.is_watched())
    }

    /// Returns the relay for a pair: the one that it has, unless that is lost, or one of those that serve `eids` of both,
    /// by a hash of all three names. When all others are lost as well, they get another chance.
    fn relay_for(&mut self, pair: Pair, eids: [&EidPrefix; 2]) -> Option<XtrIndex> {
        let (first, second, iid) = pair;
        let suits = |via: &XtrIndex| {
            *via != first
                && *via != second
                && !self.is_hidden(*via)
                && !self.state.assignments.is_draining(*via)
                && eids
                    .iter()
                    .all(|eid| !self.relay_locators(*via, eid).is_empty())
        };
        let present = self.state.relays.via(first, second, iid);
        let is_lost = |via: &XtrIndex| self.state.relays.is_lost(&pair, *via);
        if let Some(via) = present.filter(suits).filter(|via| !is_lost(via)) {
            return Some(via);
        }
        let ends = format!("{} {}", self.name(first), self.name(second));
        let preference = |via: &XtrIndex| score(&ends, &self.name(*via), 1);
        let relays: Vec<_> = self.sites.relays().filter(suits).collect();
        let sound = relays.iter().filter(|via| !is_lost(via)).copied();
        let chosen = sound.max_by_key(preference);
        if chosen.is_some() {
            return chosen;
        }
        let others = relays.into_iter().filter(|via| Some(*via) != present);
        let chosen = others.max_by_key(preference);
        self.state.relays.forgive(&pair);
        chosen
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
        let owner = single_owner(mapping)?;
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
        let way = self
            .state
            .relays
            .way(&pair(owner, receiver, record.eid.iid()))?;
        let locators = self.relay_locators(way.via?, &record.eid);
        let minutes = u32::try_from(way.lifetime.as_secs() / 60).unwrap_or(u32::MAX);
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
            relays.end(now, pair);
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
fn are_lost(
    locators: impl IntoIterator<Item = Locator>,
    unreachable: &BTreeSet<PublicKey>,
) -> bool {
    locators.into_iter().all(|locator| match locator.rloc {
        Rloc::WireGuard { key, .. } => unreachable.contains(&key),
        Rloc::Plain(_) => false,
    })
}

#[cfg(test)]
mod tests;
