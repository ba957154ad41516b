//! How does news reach an xTR, and what happens when it has?
//!
//! Unsolicited Map-Notifies are sent, repeated, and acknowledged here; `notify.rs` keeps the books.

use lisp_proto::{
    Action as NegativeAction, Handoff, InstanceId, MapNotify, NotifyParams, Record, Timestamp,
    encode_map_notify,
};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::held::HeldKey;
use super::notify::{NotifyKey, Purpose, Started, Telling};
use super::publish::Changed;
use super::register::authenticate;
use super::resolve::negative;
use super::sites::{Registrant, XtrIndex};
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
        let known = Registrant::any(receiver);
        if let Some(key) = self.state.notifier.telling(known, &records) {
            return key;
        }
        self.tell_with(now, at, receiver, (records, None), actions)
    }

    /// The same with what is said about connections, also if the records are known.
    pub(super) fn tell_with(
        &mut self,
        now: Timestamp,
        at: Timestamp,
        receiver: XtrIndex,
        (records, handoff): (Vec<Record>, Option<Handoff>),
        actions: &mut Actions,
    ) -> NotifyKey {
        let telling = Telling {
            receiver: Registrant::any(receiver),
            to: None,
            purpose: Purpose::News,
            records,
            handoff,
        };
        self.begin(now, at, telling, actions)
    }

    /// Sends a Map-Notify, from `at` on, until it is acknowledged.
    pub(super) fn begin(
        &mut self,
        now: Timestamp,
        at: Timestamp,
        telling: Telling,
        actions: &mut Actions,
    ) -> NotifyKey {
        let site = self.sites.site(telling.receiver.xtr);
        if telling.purpose == Purpose::News {
            for record in &telling.records {
                let (to, eid) = (site.name.clone(), record.eid);
                actions.event(Event::Push { to, eid });
            }
            self.acquaint(telling.receiver.xtr, &telling.records, actions);
        }
        let Started {
            key,
            waiting_on,
            spared,
        } = self.state.notifier.start(telling);
        for held in &waiting_on {
            self.state.held.expect_more(held);
        }
        self.release(now, &spared, actions);
        if at > now {
            self.state.notifier.defer(&key, at);
        } else {
            self.transmit(now, &key, actions);
        }
        if let Some(dropped) = self.state.notifier.overflow() {
            actions.count(DropReason::NotifyOverflow);
            self.release(now, &dropped.waiting, actions);
        }
        key
    }

    /// Sends a Map-Notify that awaits its acknowledgement, for the first time or again.
    fn transmit(&mut self, now: Timestamp, key: &NotifyKey, actions: &mut Actions) {
        let xtr = key.receiver.xtr;
        let Some(contact) = self.whereto(key) else {
            return;
        };
        let via = self.sites.via(xtr);
        let peer = (via, contact.source.ip());
        let notifier = &mut self.state.notifier;
        let Some((nonce, telling)) = notifier.transmit(now, key, peer, &mut self.rng) else {
            return;
        };
        let site = self.sites.site(xtr);
        let auth = site.notify_auth(contact.full_tag);
        self.scratch.clear();
        let params = NotifyParams {
            nonce,
            records: &telling.records,
            handoff: telling.handoff,
        };
        let encoded = encode_map_notify(&params, auth, &mut self.scratch);
        if let Some(nonce) = self.state.notifier.reserve(xtr) {
            let xtr = site.name.clone();
            actions.persist(StoreEvent::NotifyFloor { xtr, nonce });
        }
        match encoded {
            Ok(()) => actions.send(contact.source, via, &self.scratch),
            Err(_) => actions.count(DropReason::TooLarge),
        }
    }

    /// Returns where a Map-Notify goes, if that is known.
    fn whereto(&self, key: &NotifyKey) -> Option<Contact> {
        let told = self.state.notifier.get(key).and_then(|it| it.telling.to);
        let known = told.or_else(|| self.state.contacts.of(key.receiver.xtr));
        known.or_else(|| {
            let source = self.sites.default_contact(key.receiver.xtr)?;
            let full_tag = false;
            Some(Contact { source, full_tag })
        })
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
        let source = origin.src.ip();
        let is_agent = self.sites.enrolled(Via::Tunnel, source).is_some();
        if is_agent != (origin.via == Via::Tunnel) {
            return actions.count(DropReason::UnknownSource);
        }
        let awaited = self.state.notifier.awaited((origin.via, source), ack.nonce);
        let Some(key) = awaited else {
            return actions.count(DropReason::UnexpectedAck);
        };
        let site = self.sites.site(key.receiver.xtr);
        if let Err(reason) = authenticate(&site.auth, &ack.auth, datagram) {
            return actions.count(reason);
        }
        let from = site.name.clone();
        let Some(done) = self.state.notifier.remove(&key) else {
            return;
        };
        for record in &done.telling.records {
            let (from, eid) = (from.clone(), record.eid);
            actions.event(Event::PushAcked { from, eid });
            if record.ttl.is_withdrawal() {
                self.state.subscribers.told(record.eid, key.receiver.xtr);
            }
        }
        let forgotten = done.telling.records.iter();
        let forgotten = forgotten.filter(|record| record.ttl.is_withdrawal());
        let forgotten = forgotten.map(|record| record.eid);
        self.dismissal_over(key.receiver.xtr, forgotten, actions);
        self.release(now, &done.waiting, actions);
        for record in &done.telling.records {
            let leavings = &mut self.state.leavings;
            leavings.acknowledged(now, key.receiver.xtr, record.eid);
        }
        let told = done.telling.records.iter().map(|record| record.eid);
        if let Some(Handoff::Left(connections)) = ack.handoff() {
            let (moves, left) = (&mut self.state.moves, key.receiver.xtr);
            moves.note_connections(left, told.clone(), connections);
        }
        self.move_on(now, key.receiver.xtr, told, actions);
        for next in &done.next {
            if self.state.notifier.is_deferred(next) {
                self.transmit(now, next, actions);
            }
        }
    }

    /// Sends again what was not acknowledged.
    pub(super) fn retransmit(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(key) = self.state.notifier.pop_due(now) {
            if self.is_hopeless(now, &key) {
                self.give_up(now, &key, actions);
            } else {
                self.transmit(now, &key, actions);
            }
        }
    }

    /// Whether a Map-Notify was sent often enough: for as long as the receiver's registration lasts
    /// without a refresh. Gear without a control tunnel may not know acknowledgements at all.
    fn is_hopeless(&self, now: Timestamp, key: &NotifyKey) -> bool {
        let xtr = key.receiver.xtr;
        let Some(outstanding) = self.state.notifier.get(key) else {
            return true;
        };
        match self.sites.via(xtr) {
            Via::Plain => outstanding.times as usize >= limits::PLAIN_NOTIFY_WAITS.len(),
            Via::Tunnel => {
                let lifetime = self.state.contacts.lifetime(xtr);
                outstanding
                    .since
                    .is_some_and(|since| now - since >= lifetime)
            }
        }
    }

    /// Gives up telling a receiver that acknowledges nothing, and ends its subscriptions to that.
    /// It is told so once (RFC 9437 §6), so that it does not rely on what it knew.
    fn give_up(&mut self, now: Timestamp, key: &NotifyKey, actions: &mut Actions) {
        actions.count(DropReason::NotifyGivenUp);
        let Some(given_up) = self.state.notifier.remove(key) else {
            return;
        };
        self.release(now, &given_up.waiting, actions);
        let xtr = key.receiver.xtr;
        if self.sites.via(xtr) == Via::Plain {
            return;
        }
        let Some(nonce) = given_up.last_nonce() else {
            return;
        };
        let mut telling = Telling {
            purpose: Purpose::Receipt(nonce),
            handoff: None,
            ..given_up.telling
        };
        for record in &mut telling.records {
            self.state.subscribers.leave_around(&record.eid, xtr);
            let action = NegativeAction::AuthFailure;
            *record = negative(record.eid, action, limits::TTL_UNREGISTERED);
        }
        let last = self.begin(now, now, telling, actions);
        self.state.notifier.remove(&last);
    }

    /// Sends again at once what `receiver` has missed: it was just heard, so its path works.
    pub(super) fn hurry(&mut self, now: Timestamp, receiver: Registrant, actions: &mut Actions) {
        if self.state.notifier.len() == 0 {
            return;
        }
        let receivers = [Registrant::any(receiver.xtr), receiver];
        let mut missed = self.state.notifier.of_xtr(receiver.xtr);
        missed.retain(|key| receivers.contains(&key.receiver));
        for key in missed.into_iter().take(limits::NOTIFIES_AT_ONCE as usize) {
            if self.state.notifier.hurry(&key) {
                self.transmit(now, &key, actions);
            }
        }
    }

    /// Answers those who have waited long enough for the owner.
    pub(super) fn release_overdue(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(reply) = self.state.held.pop_due(now) {
            actions.count(DropReason::HoldExpired);
            for owner in &reply.owners {
                self.state
                    .notifier
                    .let_go(*owner, &(reply.dst, reply.nonce));
            }
            self.send_reply(now, &reply, actions);
        }
    }

    /// Ends the pairs of an xTR that has withdrawn the last of its prefixes in an instance: it has
    /// forgotten the others, and they forget it. One whose registration has merely run out has not.
    pub(super) fn part(&mut self, xtr: XtrIndex, changes: &[Changed]) {
        for Changed { eid, .. } in changes {
            let mappings = &self.state.mappings;
            if !mappings.has_registered(xtr, eid.iid()) && mappings.exact(eid).is_none() {
                self.state.subscribers.end_when_told(*eid);
            }
        }
    }

    /// Forgets what `xtr` was to be told of an instance once it has no registration left there: it
    /// is gone.
    pub(super) fn tidy(
        &mut self,
        now: Timestamp,
        xtr: XtrIndex,
        iid: InstanceId,
        actions: &mut Actions,
    ) {
        if self.state.mappings.has_registered(xtr, iid) {
            return;
        }
        self.state.subscribers.leave_all(xtr, iid);
        for key in self.state.notifier.of_xtr(xtr) {
            let notifier = &mut self.state.notifier;
            let told = notifier.get(&key).map(|it| &it.telling.records);
            if told.is_some_and(|records| records.iter().any(|record| record.eid.iid() != iid)) {
                continue;
            }
            if let Some(pointless) = notifier.remove(&key) {
                actions.count(DropReason::NotifyGivenUp);
                self.release(now, &pointless.waiting, actions);
            }
        }
    }

    /// Stops telling `xtr` what it is not subscribed to any more.
    pub(super) fn forget_news(&mut self, now: Timestamp, xtr: XtrIndex, actions: &mut Actions) {
        for key in self.state.notifier.of_xtr(xtr) {
            let subscribers = &self.state.subscribers;
            let wanted = |telling: &Telling| {
                let mut eids = telling.records.iter().map(|record| record.eid);
                matches!(telling.purpose, Purpose::Receipt(_))
                    || eids.any(|eid| subscribers.hears_of(xtr, &eid))
            };
            let notifier = &mut self.state.notifier;
            if notifier.get(&key).is_some_and(|it| wanted(&it.telling)) {
                continue;
            }
            if let Some(unwanted) = notifier.remove(&key) {
                self.release(now, &unwanted.waiting, actions);
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
