//! Who is told what, and in which order?
//!
//! A tunnel comes up only when both ends know each other, so the server never merely answers: it
//! pairs two registrations. The far end is told first, because a WireGuard responder ignores
//! initiators it does not know, and the initiator would try again only after 5 s.

use std::collections::BTreeSet;

use lisp_proto::{
    Action as NegativeAction, EidPrefix, MapNotify, NotifyParams, Record, Timestamp, Ttl,
    encode_map_notify,
};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::held::HeldKey;
use super::mappings::{Change, Found};
use super::notify::{Due, NotifyKey};
use super::register::authenticate;
use super::sites::XtrIndex;
use super::{MapServer, Origin, limits};

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
            awaited.push(self.tell(now, owner, own.clone(), actions));
        }
        awaited
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
        for (subscriber, record) in news {
            let mapping = self.state.mappings.exact(&eid);
            if !mapping.is_some_and(|mapping| mapping.is_registered_by(subscriber)) {
                self.tell(now, subscriber, record, actions);
            }
        }
    }

    /// Sends `record` to `receiver` until it is acknowledged, unless that is being done already.
    fn tell(
        &mut self,
        now: Timestamp,
        receiver: XtrIndex,
        record: Record,
        actions: &mut Actions,
    ) -> NotifyKey {
        let eid = record.eid;
        let key = NotifyKey { receiver, eid };
        let notifier = &mut self.state.notifier;
        if notifier
            .outstanding(&key)
            .is_some_and(|outstanding| outstanding.record == record)
        {
            return key;
        }
        notifier.start(now, key, record);
        self.transmit(now, &key, actions);
        let to = self.sites.site(receiver).name.clone();
        actions.event(Event::Push { to, eid });
        if let Some(dropped) = self.state.notifier.overflow() {
            actions.count(DropReason::NotifyOverflow);
            self.release(&dropped.waiting, actions);
        }
        key
    }

    /// Sends a Map-Notify that awaits its acknowledgement, for the first time or again.
    fn transmit(&mut self, now: Timestamp, key: &NotifyKey, actions: &mut Actions) {
        let site = self.sites.site(key.receiver);
        let known = self.state.contacts.of(key.receiver);
        let default = || {
            let source = self.sites.default_contact(key.receiver)?;
            Some(Contact {
                source,
                full_tag: false,
            })
        };
        let Some(contact) = known.or_else(default) else {
            return;
        };
        let Some((nonce, record)) = self.state.notifier.transmit(now, key, &mut self.rng) else {
            return;
        };
        let params = NotifyParams {
            nonce,
            records: std::slice::from_ref(record),
        };
        self.scratch.clear();
        let encoded = encode_map_notify(
            &params,
            site.notify_auth(contact.full_tag),
            &mut self.scratch,
        );
        if let Some(nonce) = self.state.notifier.reserve(key.receiver) {
            let xtr = site.name.clone();
            actions.persist(crate::store_event::StoreEvent::NotifyFloor { xtr, nonce });
        }
        match encoded {
            Ok(()) => actions.send(contact.source, Via::Tunnel, &self.scratch),
            Err(_) => actions.count(DropReason::TooLarge),
        }
    }

    /// Handles a Map-Notify-Ack: the receiver knows now, so whoever waited for that is answered.
    pub(super) fn acknowledged(
        &mut self,
        origin: Origin,
        datagram: &[u8],
        ack: &MapNotify<'_>,
        actions: &mut Actions,
    ) {
        let Some(receiver) = self.sites.enrolled(origin.via, origin.src.ip()) else {
            return actions.count(DropReason::UnknownSource);
        };
        let Some(key) = self.state.notifier.awaited(receiver, ack.nonce) else {
            return actions.count(DropReason::UnexpectedAck);
        };
        let site = self.sites.site(receiver);
        if let Err(reason) = authenticate(&site.auth, &ack.auth, datagram) {
            return actions.count(reason);
        }
        let from = site.name.clone();
        actions.event(Event::PushAcked { from, eid: key.eid });
        if let Some(done) = self.state.notifier.remove(&key) {
            self.release(&done.waiting, actions);
        }
    }

    /// Sends again what was not acknowledged, and gives up what never will be.
    pub(super) fn retransmit(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(due) = self.state.notifier.pop_due(now) {
            match due {
                Due::Again(key) => self.transmit(now, &key, actions),
                Due::GivenUp(outstanding) => {
                    actions.count(DropReason::NotifyGivenUp);
                    self.release(&outstanding.waiting, actions);
                }
            }
        }
    }

    /// Answers those who have waited long enough for the owner.
    pub(super) fn release_overdue(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(reply) = self.state.held.pop_due(now) {
            actions.count(DropReason::HoldExpired);
            self.send_reply(&reply, actions);
        }
    }

    /// Forgets what `xtr` was to be told once it has no registration left: it is gone.
    pub(super) fn tidy(&mut self, xtr: XtrIndex, actions: &mut Actions) {
        if self.state.mappings.has_registered(xtr) {
            return;
        }
        self.state.subscribers.leave_all(xtr);
        for key in self.state.notifier.of_receiver(xtr) {
            if let Some(pointless) = self.state.notifier.remove(&key) {
                self.release(&pointless.waiting, actions);
            }
        }
    }

    fn release(&mut self, waiting: &[HeldKey], actions: &mut Actions) {
        for key in waiting {
            if let Some(reply) = self.state.held.acknowledge(key) {
                self.send_reply(&reply, actions);
            }
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
