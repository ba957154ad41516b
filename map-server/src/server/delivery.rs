//! How does news reach an xTR, and what happens when it has?
//!
//! Unsolicited Map-Notifies are sent, repeated, and acknowledged here; `notify.rs` keeps the books.

use lisp_proto::{MapNotify, NotifyParams, Record, Timestamp, encode_map_notify};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::held::HeldKey;
use super::notify::{Due, NotifyKey};
use super::register::authenticate;
use super::sites::XtrIndex;
use super::{MapServer, Origin};
use crate::store_event::StoreEvent;

impl MapServer {
    /// Sends `record` to `receiver`, from `at` on, until it is acknowledged; unless that is being
    /// done already.
    pub(super) fn tell(
        &mut self,
        now: Timestamp,
        at: Timestamp,
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
        notifier.start(at, key, record);
        if at > now {
            notifier.defer(&key, at);
        } else {
            self.transmit(now, &key, actions);
        }
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
