//! Who hears what has become of a mapping?
//!
//! Subscribers do (RFC 9437 §6). Who has just begun to register is told of them before, and they
//! hear of all its prefixes: the two are a pair from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lisp_proto::{
    Action as NegativeAction, EidPrefix, InstanceId, Nonce, Record, ReplyParams, Timestamp, Ttl,
    encode_map_reply,
};

use super::actions::{Actions, Via};
use super::contacts::Contact;
use super::mappings::{Change, Found};
use super::notify::{NotifyKey, Purpose, Telling};
use super::resolve::without_keys;
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, limits};

/// What has become of the mapping of one prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    pub(super) eid: EidPrefix,
    pub(super) change: Change,
    /// Who has just begun to register it.
    pub(super) newcomer: Option<XtrIndex>,
}

/// What everybody is told, at most one record per prefix.
pub(super) type News = BTreeMap<XtrIndex, BTreeMap<EidPrefix, Record>>;

impl MapServer {
    /// Tells the subscribers what has become of mappings, and those who share them, except `by`
    /// who has changed them: that one is answered.
    pub(super) fn publish(
        &mut self,
        now: Timestamp,
        by: Option<Registrant>,
        changes: &[Changed],
        actions: &mut Actions,
    ) {
        let rehomed = self.rehome(changes, actions);
        let changes: Vec<_> = changes
            .iter()
            .filter(|changed| changed.change != Change::None)
            .collect();
        if changes.is_empty() && rehomed.is_empty() {
            // A mere refresh, as nearly always.
            return;
        }
        if !changes.is_empty() {
            self.check_moves(now, actions);
        }
        let mut news = News::new();
        for changed in &changes {
            self.gather(changed.eid, &mut news);
        }
        let relayed = self.gather_relayed(now, &changes, &mut news, actions);
        for one in rehomed.iter().filter(|one| one.to.is_some()) {
            let records = self.news_for(one.eid, one.client);
            let known = news.entry(one.client).or_default();
            known.extend(records.into_iter().map(|record| (record.eid, record)));
        }
        self.tell_sharers(now, by, &changes, actions);
        let mut introduced = BTreeMap::new();
        for (newcomer, iid) in self.newcomers(&changes) {
            introduced.extend(self.welcome(now, newcomer, iid, &mut news, actions));
        }
        let mut first = relayed;
        first.extend(self.hand_over(now, &rehomed, actions));
        self.spread(now, news, &first, &introduced, actions);
        for one in &rehomed {
            self.dismiss(now, one.ties(), true, actions);
        }
    }

    /// Tells everybody the `news`, when what is said to far ends `first`, or to those to whom they are `introduced`, is
    /// acknowledged.
    pub(super) fn spread(
        &mut self,
        now: Timestamp,
        news: News,
        first: &BTreeMap<XtrIndex, NotifyKey>,
        introduced: &BTreeMap<XtrIndex, NotifyKey>,
        actions: &mut Actions,
    ) {
        let mut told = 0;
        for (subscriber, records) in news {
            // The far end first: its acknowledgement usually takes less than this.
            let (first, hold) = match (first.get(&subscriber), introduced.get(&subscriber)) {
                (Some(first), _) => (Some(first), self.options.reply_hold),
                (None, Some(first)) => (Some(first), limits::NOTIFY_INTERVAL),
                (None, None) => (None, Duration::ZERO),
            };
            for eid in records.keys() {
                self.note_client(*eid, subscriber, actions);
            }
            for parcel in parcels(records.into_values().collect()) {
                let late = u32::saturating_sub(told, limits::NOTIFIES_AT_ONCE);
                told = told.saturating_add(1);
                let at = now + hold + limits::NOTIFY_SPACING * late;
                let next = self.tell(now, at, subscriber, parcel, actions);
                if let Some(first) = first {
                    self.state.notifier.follow(first, next);
                }
            }
        }
    }

    /// Adds what has become of `eid` to the news of all its subscribers.
    fn gather(&self, eid: EidPrefix, news: &mut News) {
        let mapping = self.state.mappings.exact(&eid);
        let mut add = |subscriber: XtrIndex, record: Record| {
            if mapping.is_some_and(|mapping| mapping.is_registered_by(subscriber)) {
                return;
            }
            let records = news.entry(subscriber).or_default();
            records.insert(record.eid, record);
        };
        for subscriber in self.state.subscribers.around(&eid) {
            add(subscriber, self.whole(eid, subscriber));
        }
        for (part, subscribers) in self.state.subscribers.strictly_inside(eid) {
            for subscriber in subscribers {
                let Some(record) = self.part_of(&eid, part, *subscriber) else {
                    break;
                };
                add(*subscriber, record);
            }
        }
    }

    /// Returns what `subscriber` is told of the mapping of `eid`.
    pub(super) fn news_for(&self, eid: EidPrefix, subscriber: XtrIndex) -> Vec<Record> {
        let mut records = BTreeMap::new();
        for theirs in self.state.subscribers.of(subscriber) {
            let record = if theirs.covers(&eid) {
                Some(self.whole(eid, subscriber))
            } else if eid.covers(theirs) {
                self.part_of(&eid, *theirs, subscriber)
            } else {
                None
            };
            records.extend(record.map(|record| (record.eid, record)));
        }
        records.into_values().collect()
    }

    /// Returns the mapping of `eid` as `subscriber` is told it.
    fn whole(&self, eid: EidPrefix, subscriber: XtrIndex) -> Record {
        let mapping = self.state.mappings.exact(&eid);
        mapping.map_or_else(
            || withdrawal(eid),
            |mapping| self.record_for(mapping, Some(subscriber)),
        )
    }

    /// Returns what covers `part` now that the mapping of `eid` around it has changed, as
    /// `subscriber` is told it; `None` if that is not `eid`.
    fn part_of(&self, eid: &EidPrefix, part: EidPrefix, subscriber: XtrIndex) -> Option<Record> {
        match self.state.mappings.find(&part) {
            Found::Registered(mapping) if eid.covers(&mapping.eid()) && mapping.eid() != *eid => {
                None
            }
            Found::Unregistered(boundary) if eid.covers(&boundary) && boundary != *eid => None,
            Found::Registered(mapping) => Some(Record {
                eid: part,
                ..self.record_for(mapping, Some(subscriber))
            }),
            Found::Unregistered(_) | Found::Unknown => Some(withdrawal(part)),
        }
    }

    /// Tells those who share a mapping by the merge bit how it reads now (RFC 9301 §5.7).
    fn tell_sharers(
        &mut self,
        now: Timestamp,
        by: Option<Registrant>,
        changes: &[&Changed],
        actions: &mut Actions,
    ) {
        let mut news: BTreeMap<Registrant, (Contact, Vec<Record>)> = BTreeMap::new();
        for changed in changes {
            let Some(mapping) = self.state.mappings.exact(&changed.eid) else {
                continue;
            };
            for (sharer, contact) in mapping.sharers() {
                if Some(sharer) == by {
                    continue;
                }
                let mut record = mapping.record();
                if self.sites.via(sharer.xtr) == Via::Plain {
                    without_keys(&mut record);
                }
                let (to, records) = news.entry(sharer).or_insert((contact, Vec::new()));
                *to = contact;
                records.push(record);
            }
        }
        for (receiver, (to, records)) in news {
            for records in parcels(records) {
                let telling = Telling {
                    receiver,
                    to: Some(to),
                    purpose: Purpose::News,
                    records,
                    handoff: None,
                };
                self.begin(now, now, telling, actions);
            }
        }
    }

    /// Lists the agents that have begun to register something that leads somewhere.
    fn newcomers(&self, changes: &[&Changed]) -> BTreeSet<(XtrIndex, InstanceId)> {
        let found = changes.iter().filter_map(|changed| {
            let newcomer = changed.newcomer.filter(|xtr| self.is_agent(*xtr))?;
            let mapping = self.state.mappings.exact(&changed.eid)?;
            let reachable = !mapping.leads_nowhere();
            reachable.then_some((newcomer, changed.eid.iid()))
        });
        found.collect()
    }

    /// Tells `newcomer` of those who will hear of it, and of those it has heard of before it registered,
    /// and adds all its prefixes to what they hear.
    /// Returns what it has to acknowledge about whom.
    fn welcome(
        &mut self,
        now: Timestamp,
        newcomer: XtrIndex,
        iid: InstanceId,
        news: &mut News,
        actions: &mut Actions,
    ) -> BTreeMap<XtrIndex, NotifyKey> {
        let own = self.whole_records(newcomer, iid);
        let concerned = news.iter().filter(|(partner, records)| {
            let mut eids = records.keys().filter(|eid| eid.iid() == iid);
            eids.any(|eid| self.serves(newcomer, eid, **partner))
        });
        let mut partners: BTreeSet<_> = concerned.map(|(partner, _)| *partner).collect();
        for record in &own {
            let mut around = self.state.subscribers.around(&record.eid);
            around.retain(|partner| self.serves(newcomer, &record.eid, *partner));
            partners.extend(around);
        }
        partners.extend(self.known_to(newcomer, iid));
        partners.remove(&newcomer);
        let mut about = Vec::new();
        for partner in partners.into_iter().take(limits::INTRODUCTIONS) {
            let theirs = self.whole_records(partner, iid);
            if theirs.is_empty() {
                continue;
            }
            let theirs = self.as_told(theirs, partner, newcomer, actions);
            about.extend(theirs.into_iter().map(|record| (partner, record)));
            for record in self.as_told(own.clone(), newcomer, partner, actions) {
                self.subscribe_besides(now, record.eid, partner, record.ttl, actions);
                let known = news.entry(partner).or_default();
                known.entry(record.eid).or_insert(record);
            }
        }
        self.present(now, newcomer, about, actions)
    }
}

/// Divides `records` into as few parts as possible that each fit a Map-Notify of modest size and
/// have one instance-id: each instance of an agent acknowledges what it has installed itself.
pub(super) fn parcels(records: Vec<Record>) -> Vec<Vec<Record>> {
    parcels_beside(records, 0)
}

/// The same with room for so many bytes more in each.
pub(super) fn parcels_beside(records: Vec<Record>, bytes: usize) -> Vec<Vec<Record>> {
    let mut parcels: Vec<Vec<Record>> = Vec::new();
    let mut room = 0;
    for record in records {
        let len = encoded_len(&record);
        match parcels.last_mut() {
            Some(parcel)
                if len <= room
                    && parcel.len() < limits::RECORDS_PER_NOTIFY
                    && parcel
                        .last()
                        .is_some_and(|last| last.eid.iid() == record.eid.iid()) =>
            {
                parcel.push(record);
            }
            Some(_) | None => {
                room = (limits::NOTIFY_LEN - limits::NOTIFY_HEADER_LEN).saturating_sub(bytes);
                parcels.push(vec![record]);
            }
        }
        room = room.saturating_sub(len);
    }
    parcels
}

/// Returns the length of `record` in a message, in bytes.
fn encoded_len(record: &Record) -> usize {
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce: Nonce(0),
        records: std::slice::from_ref(record),
    };
    let mut encoded = Vec::new();
    match encode_map_reply(&params, &mut encoded) {
        Ok(()) => encoded.len().saturating_sub(limits::REPLY_HEADER_LEN),
        // It fits no message, and is refused when it is sent.
        Err(_) => usize::MAX,
    }
}

/// Takes `eid` out of use at the receiver.
pub(super) const fn withdrawal(eid: EidPrefix) -> Record {
    Record {
        eid,
        ttl: Ttl::WITHDRAW,
        action: NegativeAction::NoAction,
        authoritative: false,
        locators: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
