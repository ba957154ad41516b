//! How does news reach an xTR, and what happens when it has?
//!
//! Unsolicited Map-Notifies are sent, repeated, and acknowledged here; `notify.rs` keeps the books.

use lisp_proto::{MapNotify, NotifyParams, Record, Timestamp, encode_map_notify};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::held::HeldKey;
use super::notify::{NotifyKey, Started};
use super::register::authenticate;
use super::sites::XtrIndex;
use super::{MapServer, Origin, limits};
use crate::store_event::StoreEvent;

impl MapServer {
    /// Sends `records` to `receiver`, from `at` on, until they are acknowledged; unless that is being
    /// done already. They must fit one Map-Notify.
    pub(super) fn tell(
        &mut self,
        now: Timestamp,
        at: Timestamp,
        receiver: XtrIndex,
        records: Vec<Record>,
        actions: &mut Actions,
    ) -> NotifyKey {
        if let Some(key) = self.state.notifier.telling(receiver, &records) {
            return key;
        }
        let eids: Vec<_> = records.iter().map(|record| record.eid).collect();
        let Started { key, waiting_on } = self.state.notifier.start(receiver, records);
        for held in &waiting_on {
            self.state.held.expect_more(held);
        }
        if at > now {
            self.state.notifier.defer(&key, at);
        } else {
            self.transmit(now, &key, actions);
        }
        for eid in eids {
            let to = self.sites.site(receiver).name.clone();
            actions.event(Event::Push { to, eid });
        }
        if let Some(dropped) = self.state.notifier.overflow() {
            actions.count(DropReason::NotifyOverflow);
            self.release(now, &dropped.waiting, actions);
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
        let Some((nonce, records)) = self.state.notifier.transmit(now, key, &mut self.rng) else {
            return;
        };
        let params = NotifyParams { nonce, records };
        self.scratch.clear();
        let encoded = encode_map_notify(
            &params,
            site.notify_auth(contact.full_tag),
            &mut self.scratch,
        );
        if let Some(nonce) = self.state.notifier.reserve(key.receiver) {
            let xtr = site.name.clone();
            actions.persist(StoreEvent::NotifyFloor { xtr, nonce });
        }
        match encoded {
            Ok(()) => actions.send(contact.source, Via::Tunnel, &self.scratch),
            Err(_) => actions.count(DropReason::TooLarge),
        }
    }

    /// Handles a Map-Notify-Ack: the receiver knows now, so whoever waited for that is answered.
    pub(super) fn acknowledged(
        &mut self,
        now: Timestamp,
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
        let Some(done) = self.state.notifier.remove(&key) else {
            return;
        };
        for record in &done.records {
            let (from, eid) = (from.clone(), record.eid);
            actions.event(Event::PushAcked { from, eid });
        }
        self.release(now, &done.waiting, actions);
        for next in &done.next {
            if self.state.notifier.is_deferred(next) {
                self.transmit(now, next, actions);
            }
        }
    }

    /// Sends again what was not acknowledged.
    pub(super) fn retransmit(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(key) = self.state.notifier.pop_due(now) {
            self.transmit(now, &key, actions);
        }
    }

    /// Sends again at once what `receiver` has missed: it was just heard, so its path works.
    pub(super) fn hurry(&mut self, now: Timestamp, receiver: XtrIndex, actions: &mut Actions) {
        let missed = self.state.notifier.of_receiver(receiver).into_iter();
        for key in missed.take(limits::NOTIFIES_AT_ONCE as usize) {
            if self.state.notifier.hurry(&key) {
                self.transmit(now, &key, actions);
            }
        }
    }

    /// Answers those who have waited long enough for the owner.
    pub(super) fn release_overdue(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(reply) = self.state.held.pop_due(now) {
            actions.count(DropReason::HoldExpired);
            self.send_reply(now, &reply, actions);
        }
    }

    /// Forgets what `xtr` was to be told once it has no registration left: it is gone.
    pub(super) fn tidy(&mut self, now: Timestamp, xtr: XtrIndex, actions: &mut Actions) {
        if self.state.mappings.has_registered(xtr) {
            return;
        }
        self.state.subscribers.leave_all(xtr);
        for key in self.state.notifier.of_receiver(xtr) {
            if let Some(pointless) = self.state.notifier.remove(&key) {
                actions.count(DropReason::NotifyGivenUp);
                self.release(now, &pointless.waiting, actions);
            }
        }
    }

    fn release(&mut self, now: Timestamp, waiting: &[HeldKey], actions: &mut Actions) {
        for key in waiting {
            if let Some(reply) = self.state.held.acknowledge(key) {
                self.send_reply(now, &reply, actions);
            }
        }
    }
}
