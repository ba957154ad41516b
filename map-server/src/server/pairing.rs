//! Who is told what, and in which order?
//!
//! A tunnel comes up only when both ends know each other, so the server never merely answers: it
//! pairs two registrations. The far end is told first, because a WireGuard responder ignores
//! initiators it does not know, and the initiator would try again only after 5 s.

use std::collections::BTreeSet;

use lisp_proto::{Action as NegativeAction, EidPrefix, Record, Timestamp, Ttl};

use super::actions::Actions;
use super::counters::DropReason;
use super::mappings::{Change, Found, Mapping};
use super::notify::NotifyKey;
use super::sites::XtrIndex;
use super::{MapServer, limits};

impl MapServer {
    /// Tells the owners of `eids` about the mapping of `requester` for `source`, and makes both
    /// sides subscribers of each other. Returns the acknowledgements to wait for.
    ///
    /// Only what the requester has registered is passed on, never what its message claims.
    pub(super) fn pair(
        &mut self,
        now: Timestamp,
        requester: XtrIndex,
        source: EidPrefix,
        eids: &[EidPrefix],
        actions: &mut Actions,
    ) -> Vec<NotifyKey> {
        self.watch_denied(now, requester, eids, actions);
        let Some(own) = self.own_record(requester, &source) else {
            return Vec::new();
        };
        let mut owners = BTreeSet::new();
        for eid in eids {
            let Found::Registered(mapping) = self.state.mappings.find(eid) else {
                continue;
            };
            if mapping.is_registered_by(requester) || mapping.record().locators.is_empty() {
                continue;
            }
            let enrolled = |xtr: &XtrIndex| self.sites.site(*xtr).control_address.is_some();
            owners.extend(mapping.owners().filter(enrolled));
            let ttl = mapping.record().ttl;
            let region = self.answered_region(eid, limits::RECORDS_PER_REPLY - 1);
            if let Some(region) = region {
                self.subscribe(now, region, requester, ttl, actions);
            }
        }
        let mut awaited = Vec::with_capacity(owners.len());
        for owner in owners {
            self.subscribe(now, own.eid, owner, own.ttl, actions);
            awaited.push(self.tell(now, now, owner, own.clone(), actions));
        }
        awaited
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
        if !self.state.mappings.has_registered(requester) {
            return;
        }
        for eid in eids {
            let ttl = match self.state.mappings.find(eid) {
                Found::Unregistered(_) => limits::TTL_UNREGISTERED,
                Found::Registered(mapping) if mapping.record().locators.is_empty() => {
                    mapping.record().ttl
                }
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
    fn own_record(&self, requester: XtrIndex, source: &EidPrefix) -> Option<Record> {
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
        Some(Record {
            eid,
            ..record.clone()
        })
    }

    fn subscribe(
        &mut self,
        now: Timestamp,
        eid: EidPrefix,
        xtr: XtrIndex,
        ttl: Ttl,
        actions: &mut Actions,
    ) {
        let until = now + ttl.duration().unwrap_or(limits::SUBSCRIPTION_LIFETIME);
        if self.state.subscribers.join(eid, xtr, until) {
            actions.count(DropReason::SubscriptionOverflow);
        }
    }

    /// Tells the subscribers of `eid` what has become of its mapping.
    pub(super) fn publish(
        &mut self,
        now: Timestamp,
        eid: EidPrefix,
        change: Change,
        actions: &mut Actions,
    ) {
        if change == Change::None {
            return;
        }
        let mut news = Vec::new();
        let record = match self.state.mappings.exact(&eid) {
            Some(mapping) => mapping.record().clone(),
            None => withdrawal(eid),
        };
        for subscriber in self.state.subscribers.around(&eid) {
            news.push((subscriber, record.clone()));
        }
        // Subscriptions to a part of the mapping follow what covers that part now.
        for (part, subscribers) in self.state.subscribers.strictly_inside(eid) {
            let record = match self.state.mappings.find(&part) {
                Found::Registered(mapping)
                    if eid.covers(&mapping.record().eid) && mapping.record().eid != eid =>
                {
                    continue;
                }
                Found::Unregistered(boundary) if eid.covers(&boundary) && boundary != eid => {
                    continue;
                }
                Found::Registered(mapping) => Record {
                    eid: part,
                    ..mapping.record().clone()
                },
                Found::Unregistered(_) | Found::Unknown => withdrawal(part),
            };
            news.extend(
                subscribers
                    .iter()
                    .map(|subscriber| (*subscriber, record.clone())),
            );
        }
        let owners: BTreeSet<_> = self
            .state
            .mappings
            .exact(&eid)
            .into_iter()
            .flat_map(Mapping::owners)
            .collect();
        news.retain(|(subscriber, _)| !owners.contains(subscriber));
        for (position, (subscriber, record)) in (0..).zip(news) {
            let late = u32::saturating_sub(position, limits::NOTIFIES_AT_ONCE);
            let at = now + limits::NOTIFY_SPACING * late;
            self.tell(now, at, subscriber, record, actions);
        }
    }
}

/// Takes `eid` out of use at the receiver.
const fn withdrawal(eid: EidPrefix) -> Record {
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
