//! Who is told what, and in which order?
//!
//! A tunnel comes up only when both ends know each other, so the server never merely answers: it
//! pairs two registrations. The far end is told first, because a WireGuard responder ignores
//! initiators it does not know, and the initiator would try again only after 5 s.

use std::collections::BTreeSet;
use std::time::Duration;

use lisp_proto::{EidPrefix, InstanceId, Record, Timestamp, Ttl};

use super::actions::{Actions, Via};
use super::counters::DropReason;
use super::held::{Answer, PendingReply};
use super::mappings::Found;
use super::notify::NotifyKey;
use super::publish::parcels;
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::ReplyAfter;

/// Those who are told of a requester.
#[derive(Clone, Debug, Default)]
pub(super) struct Paired {
    /// Owners of what was asked for.
    pub(super) owners: Vec<XtrIndex>,
    /// What they still have to acknowledge.
    pub(super) awaited: Vec<NotifyKey>,
}

impl MapServer {
    /// Tells the owners of `eids` about the mappings of `requester`, that of `source` first, and
    /// makes both sides subscribers of each other.
    ///
    /// Whoever knows a key knows all its prefixes: WireGuard drops what comes from the others
    /// without a word. Only what the requester has registered is passed on, never what its message
    /// claims.
    pub(super) fn pair(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        source: EidPrefix,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) -> Paired {
        // Who is in one instance is no far end of anybody in another.
        let eids: Vec<_> = eids
            .iter()
            .filter(|eid| eid.iid() == source.iid())
            .copied()
            .collect();
        self.watch_denied(now, requester, &eids, actions);
        let mut reminded = self.remind(now, requester, &eids, actions);
        if self.own_record(requester, &source).is_none() {
            self.put_on_trial(now, requester, &source, &eids, actions);
            self.pair_later(now, requester, &eids, actions);
            return reminded;
        }
        let mut owners = BTreeSet::new();
        for eid in &eids {
            let found = self.state.mappings.find(eid);
            let theirs = self.owners_to_tell(&found, requester);
            let Found::Registered(mapping) = found else {
                continue;
            };
            if theirs.is_empty() && mapping.is_registered_by(requester) {
                continue;
            }
            let ttl = mapping.ttl();
            owners.extend(theirs);
            let region = self.answered_region(eid, limits::RECORDS_PER_REPLY - 1);
            if let Some(region) = region {
                self.subscribe(now, region, requester, ttl, actions);
            }
        }
        let mut paired = self.tell_owners(now, requester, source, owners, actions);
        paired.awaited.append(&mut reminded.awaited);
        paired
    }

    /// Takes note of what an agent is told that has registered nothing, so that the owners hear of it
    /// when it registers: their keys may be in use by then, and what they send be dropped there.
    fn pair_later(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) {
        let mappings = &self.state.mappings;
        let known = |eid: &EidPrefix| mappings.has_registered(requester, eid.iid());
        if !self.is_agent(requester) || eids.iter().any(known) {
            return;
        }
        for eid in eids {
            let found = self.state.mappings.find(eid);
            let Found::Registered(mapping) = found else {
                continue;
            };
            let ttl = mapping.ttl();
            let region = self.answered_region(eid, limits::RECORDS_PER_REPLY - 1);
            if let Some(region) = region {
                self.subscribe(now, region, requester, ttl, actions);
            }
        }
    }

    /// Lists the agents whose mappings of one instance `xtr` was told of, and still believes.
    pub(super) fn known_to(&self, xtr: XtrIndex, iid: InstanceId) -> Vec<XtrIndex> {
        let told = self.state.subscribers.of(xtr);
        let told = told.filter(|eid| eid.iid() == iid);
        let owners = told.flat_map(|eid| {
            let found = self.state.mappings.find(eid);
            self.owners_to_tell(&found, xtr)
        });
        owners.collect()
    }

    /// Lists the agents that registered what was found, unless it leads nowhere or to `requester`; of
    /// those who share it the one that `requester` uses.
    pub(super) fn owners_to_tell(&self, found: &Found<'_>, requester: XtrIndex) -> Vec<XtrIndex> {
        let Found::Registered(mapping) = found else {
            return Vec::new();
        };
        if mapping.is_registered_by(requester) || mapping.leads_nowhere() {
            return Vec::new();
        }
        if let Some(owner) = self.owner_of(*mapping, requester) {
            return vec![owner];
        }
        let owners = mapping.owners().filter(|owner| self.is_agent(*owner));
        owners.collect()
    }

    /// Tells `owners` what `requester` has registered, if that contains `source`.
    pub(super) fn tell_owners(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        source: EidPrefix,
        owners: BTreeSet<XtrIndex>,
        actions: &mut Actions,
    ) -> Paired {
        let Some(own) = self.own_record(requester, &source) else {
            return Paired::default();
        };
        let mut records = self.whole_records(requester, source.iid());
        records.retain(|record| !record.eid.covers(&source));
        records.insert(0, own);
        let mut awaited = Vec::with_capacity(owners.len());
        for (position, owner) in (0..).zip(&owners) {
            let late = u32::saturating_sub(position, limits::NOTIFIES_AT_ONCE);
            let at = now + limits::NOTIFY_SPACING * late;
            let mut records = self.as_told(records.clone(), requester, *owner, actions);
            records.extend(self.own_of_relays((requester, *owner), source.iid(), actions));
            let relay = self.tell_relay(now, (requester, *owner), source.iid(), actions);
            let waits = !relay.is_empty() && self.options.reply_after == ReplyAfter::Ack;
            let at = if waits {
                now + self.options.reply_hold
            } else {
                at
            };
            let told = self.introduce(now, at, *owner, records, actions);
            for next in &told {
                if let Some(first) = relay.last() {
                    self.state.notifier.follow(first, *next);
                }
            }
            awaited.extend(told);
        }
        let owners = owners.into_iter().collect();
        Paired { owners, awaited }
    }

    /// Tells the requester of `reply` all that those have registered that were told of it, if that is
    /// more than it asked for: no pair is left half installed when the answer is lost.
    pub(super) fn accompany(
        &mut self,
        now: Timestamp,
        reply: &PendingReply,
        actions: &mut Actions,
    ) {
        let (Some(requester), Some(asked)) = (reply.requester, reply.eids.first()) else {
            return;
        };
        // What gives way to this might be waited for.
        if self.state.notifier.is_full() {
            return;
        }
        // Nobody acknowledges a Map-Reply, so what it says is said again with the rest.
        let may_be_lost = reply.answer == Answer::Told;
        let covers = |record: &Record, asked: &EidPrefix| match reply.answer {
            Answer::Told => record.eid.covers(asked),
            Answer::Subscribed | Answer::Unsubscribed => asked.covers(&record.eid),
        };
        let is_new = |record: &Record| !reply.eids.iter().any(|asked| covers(record, asked));
        let mut records = Vec::new();
        for owner in &reply.owners {
            let theirs = self.whole_records(*owner, asked.iid());
            let mut theirs = self.as_told(theirs, *owner, requester, actions);
            theirs.extend(self.own_of_relays((*owner, requester), asked.iid(), actions));
            theirs.extend(self.behind(*owner, requester, asked.iid(), actions));
            if theirs.iter().any(is_new) {
                theirs.retain(|record| may_be_lost || is_new(record));
                records.extend(theirs);
            }
        }
        records.truncate(limits::RECORDS_PER_ANSWER);
        self.introduce(now, now, requester, records, actions);
    }

    /// Tells `receiver` about `records`, from `at` on, and subscribes it to them; returns what it has to
    /// acknowledge.
    pub(super) fn introduce(
        &mut self,
        now: Timestamp,
        at: Timestamp,
        receiver: XtrIndex,
        records: Vec<Record>,
        actions: &mut Actions,
    ) -> Vec<NotifyKey> {
        for record in &records {
            self.subscribe_besides(now, record.eid, receiver, record.ttl, actions);
        }
        let mut awaited = Vec::new();
        for parcel in parcels(records) {
            awaited.push(self.tell(now, at, receiver, parcel, actions));
        }
        awaited
    }

    /// Returns the mappings of `xtr` that lead somewhere and inside of which nobody has registered
    /// anything else.
    pub(super) fn whole_records(&self, xtr: XtrIndex, iid: InstanceId) -> Vec<Record> {
        let mappings = &self.state.mappings;
        let eids = mappings.registered_by(xtr, iid, limits::RECORDS_PER_XTR);
        let records = eids.into_iter().filter_map(|eid| {
            let whole = mappings.region(&eid, eid.net().prefix_len(), 0) == Some(eid);
            let record = mappings.exact(&eid)?.record();
            (whole && !record.locators.is_empty()).then(|| record.clone())
        });
        records.collect()
    }

    /// Whether `xtr` can be told anything: it has a control tunnel.
    pub(super) fn is_agent(&self, xtr: XtrIndex) -> bool {
        self.sites.via(xtr) == Via::Tunnel
    }

    /// Subscribes `requester` to those of `eids` that are configured but lead nowhere, so that it
    /// hears of a registration before its negative answer is too old.
    fn watch_denied(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) {
        for eid in eids {
            if !self.state.mappings.has_registered(requester, eid.iid()) {
                continue;
            }
            let ttl = match self.state.mappings.find(eid) {
                Found::Unregistered(_) => limits::TTL_UNREGISTERED,
                Found::Registered(mapping) if mapping.leads_nowhere() => mapping.ttl(),
                Found::Registered(_) | Found::Unknown => continue,
            };
            if self.state.subscribers.count(requester) >= limits::SUBSCRIPTIONS_WHEN_DENIED {
                return actions.count(DropReason::SubscriptionOverflow);
            }
            let region = self.answered_region(eid, limits::RECORDS_PER_REPLY - 1);
            if let Some(region) = region {
                self.subscribe(now, region, requester, ttl, actions);
            }
        }
    }

    /// Returns the mapping of `source` if `requester` has registered it, cut to a prefix in which
    /// nobody has registered anything else.
    pub(super) fn own_record(&self, requester: XtrIndex, source: &EidPrefix) -> Option<Record> {
        let Found::Registered(mapping) = self.state.mappings.find(source) else {
            return None;
        };
        let record = mapping.record();
        if !mapping.is_registered_by(requester) || record.locators.is_empty() {
            return None;
        }
        let eid = self
            .state
            .mappings
            .region(source, record.eid.net().prefix_len(), 0)?;
        Some(Record { eid, ..record })
    }

    /// Subscribes `xtr` to `eid`, which it has asked for, for as long as the answer is good.
    fn subscribe(
        &mut self,
        now: Timestamp,
        eid: EidPrefix,
        xtr: XtrIndex,
        ttl: Ttl,
        actions: &mut Actions,
    ) {
        self.note_client(eid, xtr, actions);
        if self.state.subscribers.join(eid, xtr, now + lifetime(ttl)) {
            actions.count(DropReason::SubscriptionOverflow);
        }
    }

    /// Subscribes `xtr` to `eid`, of which it is told because of something else.
    pub(super) fn subscribe_besides(
        &mut self,
        now: Timestamp,
        eid: EidPrefix,
        xtr: XtrIndex,
        ttl: Ttl,
        actions: &mut Actions,
    ) {
        let subscribers = &mut self.state.subscribers;
        if subscribers.join_besides(eid, xtr, now + lifetime(ttl)) {
            actions.count(DropReason::SubscriptionOverflow);
        }
    }
}

/// Returns how long a subscription to a record lasts.
fn lifetime(ttl: Ttl) -> Duration {
    ttl.duration().unwrap_or(limits::SUBSCRIPTION_LIFETIME)
}

#[cfg(test)]
mod tests;
