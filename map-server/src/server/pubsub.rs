//! Who may ask to be told about changes, and what is the answer? (RFC 9437)
//!
//! A subscription is a Map-Request with the N bit and the xTR-ID. It comes through the control
//! tunnel: that is the security association which RFC 9437 §7.1 asks for. It is answered by a
//! Map-Notify with the nonce of the request, which waits for the owners as a Map-Reply does.

use std::collections::BTreeSet;

use lisp_proto::{Action as NegativeAction, EidPrefix, MapRequest, Nonce, Record, Timestamp};

use super::actions::{Actions, Event};
use super::contacts::Contact;
use super::counters::DropReason;
use super::held::{Answer, PendingReply};
use super::mappings::Found;
use super::notify::{NotifyKey, Purpose, Telling};
use super::pairing::Paired;
use super::publish::{parcels, withdrawal};
use super::resolve::negative;
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, limits};
use crate::store_event::{StoreEvent, XtrIds};

/// Why a subscription is not accepted.
enum Refusal {
    /// It is not answered.
    Dropped(DropReason),
    /// It is answered by a negative Map-Reply (RFC 9437 §5).
    Denied(NegativeAction, DropReason),
}

impl MapServer {
    /// Handles a Map-Request that subscribes, or unsubscribes, to the prefixes of `reply`.
    pub(super) fn pubsub(
        &mut self,
        now: Timestamp,
        request: &MapRequest<'_>,
        ids: XtrIds,
        reply: PendingReply,
        actions: &mut Actions,
    ) {
        let ends = reply.answer == Answer::Unsubscribed;
        let accepted = self.subscriber(&reply, ids).and_then(|subscriber| {
            if !ends {
                self.check_subscription(now, subscriber, &reply.eids)?;
            }
            let fresh = self
                .state
                .replay
                .check_subscription(subscriber, ids, reply.nonce);
            fresh.map_err(Refusal::Dropped)?;
            Ok(subscriber)
        });
        let subscriber = match accepted {
            Ok(subscriber) => subscriber,
            Err(Refusal::Dropped(reason)) => return actions.count(reason),
            Err(Refusal::Denied(action, reason)) => {
                actions.count(reason);
                return self.deny(&reply, action, actions);
            }
        };
        self.note_subscription(subscriber, ids, reply.nonce, actions);
        if self.state.notifier.count_from(subscriber, reply.nonce) {
            // What it could not tell from something old it can now.
            self.hurry(now, Registrant::any(subscriber), actions);
        }
        if ends {
            return self.unsubscribe(now, subscriber, &reply, actions);
        }
        for eid in &reply.eids {
            self.watch(now, subscriber, *eid, actions);
            self.note_client_inside(*eid, subscriber, actions);
        }
        let paired = match request.source_eid() {
            Some((iid, address)) => {
                let source = EidPrefix::host(iid, address);
                let mut eids = reply.eids.clone();
                eids.retain(|eid| eid.iid() == iid);
                let owners = self.owners_inside(subscriber, &eids);
                self.tell_owners(now, subscriber, source, owners, actions)
            }
            None => Paired::default(),
        };
        if !request.flags.no_reply {
            self.answer_when_told(now, reply, paired, actions);
        }
    }

    /// Returns who subscribes, if it may call itself `ids`.
    fn subscriber(&self, reply: &PendingReply, ids: XtrIds) -> Result<XtrIndex, Refusal> {
        let unknown = |reason| Refusal::Denied(NegativeAction::AuthFailure, reason);
        let Some(subscriber) = reply.requester else {
            return Err(unknown(DropReason::SubscriberUnknown));
        };
        let named = self.sites.site(subscriber).may_be(ids)
            && self.state.mappings.registers_as(subscriber, ids);
        match named {
            true => Ok(subscriber),
            false => Err(unknown(DropReason::WrongXtrId)),
        }
    }

    /// Decides whether `subscriber` may be told about `eids`.
    fn check_subscription(
        &self,
        now: Timestamp,
        subscriber: XtrIndex,
        eids: &[EidPrefix],
    ) -> Result<(), Refusal> {
        let mappings = &self.state.mappings;
        let most = limits::ENTRIES_PER_SUBSCRIPTION;
        let asked_for = self.state.subscribers.asked_for(subscriber, eids);
        let too_many = asked_for + eids.len() > limits::PREFIXES_SUBSCRIBED;
        let too_wide = |eid: &EidPrefix| mappings.strictly_inside(*eid).nth(most).is_some();
        let stranger = |eid: &EidPrefix| !mappings.has_registered(subscriber, eid.iid());
        if eids.iter().any(stranger) || too_many || eids.iter().any(too_wide) {
            let reason = DropReason::SubscriptionRefused;
            return Err(Refusal::Denied(NegativeAction::PolicyDenied, reason));
        }
        let unregistered = |eid: &EidPrefix| matches!(mappings.find(eid), Found::Unregistered(_));
        if now < self.quiet_until && eids.iter().any(unregistered) {
            return Err(Refusal::Dropped(DropReason::TooEarly));
        }
        Ok(())
    }

    /// Refuses, and ends what was accepted earlier unless somebody else pretends to be the xTR.
    fn deny(&mut self, reply: &PendingReply, action: NegativeAction, actions: &mut Actions) {
        let mut records = Vec::new();
        for eid in &reply.eids {
            if let Some(subscriber) = reply.requester {
                self.state.subscribers.unask(eid, subscriber);
            }
            records.push(negative(*eid, action, limits::TTL_UNREGISTERED));
        }
        self.send_records(reply, records, actions);
    }

    fn note_subscription(
        &mut self,
        subscriber: XtrIndex,
        ids: XtrIds,
        nonce: Nonce,
        actions: &mut Actions,
    ) {
        let registrant = Registrant {
            xtr: subscriber,
            ids: Some(ids),
        };
        self.state.replay.advance_subscription(registrant, nonce);
        let xtr = self.sites.site(subscriber).name.clone();
        let ids = registrant.ids;
        actions.persist(StoreEvent::SubscribeNonce { xtr, ids, nonce });
    }

    /// Makes sure that `subscriber` will be told about `asked`.
    fn watch(
        &mut self,
        now: Timestamp,
        subscriber: XtrIndex,
        asked: EidPrefix,
        actions: &mut Actions,
    ) {
        let hole = self.hole(&asked);
        let lifetime = match hole {
            Some(_) => limits::SUBSCRIPTION_TO_NOTHING,
            None => limits::SUBSCRIPTION_LIFETIME,
        };
        let watched = hole.unwrap_or(asked);
        let subscribers = &mut self.state.subscribers;
        if subscribers.ask(asked, watched, subscriber, now + lifetime) {
            actions.count(DropReason::SubscriptionOverflow);
        }
        let xtr = self.sites.site(subscriber).name.clone();
        actions.event(Event::Subscribed { xtr, eid: asked });
    }

    /// Makes `subscriber` a client of all that is shared in what it asks to be told about.
    fn note_client_inside(
        &mut self,
        asked: EidPrefix,
        subscriber: XtrIndex,
        actions: &mut Actions,
    ) {
        self.note_client(asked, subscriber, actions);
        let inside = self.state.mappings.strictly_inside(asked);
        let shared = inside.filter_map(|found| match found {
            Found::Registered(mapping) if mapping.is_merged() => Some(mapping.eid()),
            Found::Registered(_) | Found::Unregistered(_) | Found::Unknown => None,
        });
        for eid in shared.collect::<Vec<_>>() {
            self.note_client(eid, subscriber, actions);
        }
    }

    /// Returns the prefix around `asked` in which nobody has registered anything; `None` if
    /// somebody has.
    fn hole(&self, asked: &EidPrefix) -> Option<EidPrefix> {
        let mappings = &self.state.mappings;
        if let Found::Registered(_) = mappings.find(asked) {
            return None;
        }
        let mut inside = mappings.strictly_inside(*asked);
        if inside.any(|found| matches!(found, Found::Registered(_))) {
            return None;
        }
        // Where something is configured inside, there is no larger hole to speak of.
        Some(self.answered_region(asked, 0).unwrap_or(*asked))
    }

    /// Lists the agents whose mappings the answer to a subscription will contain.
    fn owners_inside(&self, subscriber: XtrIndex, eids: &[EidPrefix]) -> BTreeSet<XtrIndex> {
        let mappings = &self.state.mappings;
        let mut owners = BTreeSet::new();
        for eid in eids {
            let found = std::iter::once(mappings.find(eid)).chain(mappings.strictly_inside(*eid));
            for found in found.take(limits::ENTRIES_PER_SUBSCRIPTION) {
                owners.extend(self.owners_to_tell(&found, subscriber));
            }
        }
        owners
    }

    /// Answers a subscription with what is known now.
    pub(super) fn send_subscribed(
        &mut self,
        now: Timestamp,
        reply: &PendingReply,
        actions: &mut Actions,
    ) {
        let Some(subscriber) = reply.requester else {
            return;
        };
        let mut records: Vec<Record> = Vec::new();
        for eid in &reply.eids {
            if !self.state.subscribers.asks(subscriber, eid) {
                continue;
            }
            for record in self.describe_inside(eid, subscriber) {
                if !records.iter().any(|known| known.eid == record.eid) {
                    records.push(record);
                }
            }
        }
        self.tell_of_answer(reply.requester, &records, actions);
        let mut parcels = parcels(records).into_iter();
        if let Some(first) = parcels.next() {
            self.answer_in_order(now, subscriber, reply, first, actions);
        }
        for parcel in parcels {
            self.tell(now, now, subscriber, parcel, actions);
        }
    }

    /// Answers a subscription; once more with a fresh nonce if that of the request is not above all
    /// that is on its way to the subscriber, which would otherwise seem newer than the answer.
    fn answer_in_order(
        &mut self,
        now: Timestamp,
        subscriber: XtrIndex,
        reply: &PendingReply,
        records: Vec<Record>,
        actions: &mut Actions,
    ) {
        let receiver = Registrant::any(subscriber);
        let in_order = self.state.notifier.is_next(subscriber, reply.nonce);
        let purpose = Purpose::Answer(reply.nonce);
        self.answer_by_notify(now, subscriber, reply, purpose, records.clone(), actions);
        if !in_order {
            let again = Telling {
                receiver,
                to: None,
                purpose: Purpose::News,
                records,
                handoff: None,
            };
            self.begin(now, now, again, actions);
        }
    }

    /// Returns the record that answers for `asked`, then those of the prefixes inside it. The
    /// first one is cut to what was asked for: the subscriber hears of no other changes.
    fn describe_inside(&self, asked: &EidPrefix, subscriber: XtrIndex) -> Vec<Record> {
        let mappings = &self.state.mappings;
        let eid = self.hole(asked).unwrap_or(*asked);
        let receiver = Some(subscriber);
        let mut records = vec![self.describe(mappings.find(asked), eid, receiver)];
        let inside = mappings.strictly_inside(*asked);
        for found in inside.take(limits::ENTRIES_PER_SUBSCRIPTION) {
            let eid = match found {
                Found::Registered(mapping) => mapping.eid(),
                Found::Unregistered(eid) => eid,
                Found::Unknown => continue,
            };
            let record = self.describe(found, eid, receiver);
            // What leads nowhere needs no mention where nothing around it leads anywhere.
            let around = records.iter().rev().find(|around| around.eid.covers(&eid));
            let is_hole = around.is_some_and(|around| around.locators.is_empty());
            if !record.locators.is_empty() || !is_hole {
                records.push(record);
            }
        }
        records
    }

    /// Ends subscriptions; who has none is answered all the same.
    fn unsubscribe(
        &mut self,
        now: Timestamp,
        subscriber: XtrIndex,
        reply: &PendingReply,
        actions: &mut Actions,
    ) {
        for eid in &reply.eids {
            self.state.subscribers.unask(eid, subscriber);
            let xtr = self.sites.site(subscriber).name.clone();
            actions.event(Event::Unsubscribed { xtr, eid: *eid });
        }
        self.forget_news(now, subscriber, actions);
        let records = reply.eids.iter().map(|eid| withdrawal(*eid)).collect();
        let purpose = Purpose::Receipt(reply.nonce);
        let key = self.answer_by_notify(now, subscriber, reply, purpose, records, actions);
        let mappings = &self.state.mappings;
        let is_left = |eid: &EidPrefix| !mappings.has_registered(subscriber, eid.iid());
        if reply.eids.iter().all(is_left) {
            // It is about to leave, and may be gone before it has acknowledged.
            self.state.notifier.remove(&key);
        }
    }

    /// Sends a Map-Notify in answer to a Map-Request to where that came from.
    fn answer_by_notify(
        &mut self,
        now: Timestamp,
        subscriber: XtrIndex,
        reply: &PendingReply,
        purpose: Purpose,
        records: Vec<Record>,
        actions: &mut Actions,
    ) -> NotifyKey {
        let known = self.state.contacts.of(subscriber);
        let telling = Telling {
            receiver: Registrant::any(subscriber),
            to: Some(Contact {
                source: reply.dst,
                full_tag: known.is_some_and(|contact| contact.full_tag),
            }),
            purpose,
            records,
            handoff: None,
        };
        self.begin(now, now, telling, actions)
    }
}

#[cfg(test)]
mod tests;
