//! Map-Notifies: acknowledgements of our own registrations, and what we are told unasked (RFC 9437 5).

use ipnet::IpNet;
use lisp_proto::{
    Action as MapAction, EidPrefix, Handoff, MapNotify, Nonce, NotifyParams, Record, RequestFlags,
    Timestamp, encode_map_notify_ack, verify,
};

use super::answer::around;
use super::control::DEFAULT_PORT;
use super::event::{Cause, DropReason, Event};
use super::limits::RECORDS_PER_MESSAGE;
use super::map_cache::{Chosen, Purpose, State};
use super::replay::Seen;
use super::{Action, Actions, Agent, Config};

/// A Map-Notify that is acknowledged once all its mappings are in the data plane.
#[derive(Debug)]
pub(super) struct PendingAck {
    records: Vec<Record>,
    changes: usize,
}

impl Agent {
    pub(super) fn map_notify(
        &mut self,
        now: Timestamp,
        index: usize,
        notify: &MapNotify<'_>,
        bytes: &[u8],
        actions: &mut Actions,
    ) {
        let (Some(map_server), Some(server)) = (
            self.config.map_servers.get(index),
            self.servers.get_mut(index),
        ) else {
            return;
        };
        if verify(&map_server.key, bytes).is_err() {
            actions.count(DropReason::BadAuthentication);
            return;
        }
        server.heard(now);
        let nonce = notify.nonce;
        if is_about(&self.config, server.registration.leaving(), notify) {
            if server.registration.acknowledge(nonce, now) {
                self.registered(now, index, notify, actions);
                return;
            }
            if (self.config.first_nonce..self.register_nonce).contains(&nonce) {
                // It acknowledges a Map-Register, late or once more. Taken for a
                // push it would move the window past the nonces of all pushes.
                actions.count(DropReason::StaleNotify);
                return;
            }
        }
        let Some(records) = records_of(notify) else {
            actions.count(DropReason::TooManyRecords);
            return;
        };
        let answer = self.subscriptions.answered(index, nonce, &records);
        let seen = server.notifies.accept(nonce);
        if seen == Seen::New {
            server.counts_on();
        }
        for record in records.iter().filter(|record| is_over(record)) {
            self.no_longer_told(now, index, record.eid.net(), actions);
        }
        match seen {
            Seen::TooOld if answer.is_none() => {
                actions.count(DropReason::StaleNotify);
                self.count_on(now, index, nonce);
            }
            // Our acknowledgement was lost, unless it is still to be sent.
            Seen::Before if answer.is_none() && self.acks.contains_key(&(index, nonce)) => {
                actions.count(DropReason::StaleNotify);
            }
            Seen::Before if answer.is_none() => {
                self.acknowledge(index, nonce, &records, actions);
            }
            // News may have had the nonce of an answer before.
            Seen::New | Seen::TooOld | Seen::Before => {
                if let Some(prefix) = answer {
                    self.subscribed(now, index, prefix, &records, actions);
                }
                let handoff = notify.handoff();
                self.notified(now, (index, nonce), (records, handoff), answer, actions);
            }
        }
    }

    /// Takes in the mappings of a Map-Notify: the far ends of tunnels to come,
    /// changes to mappings we hold, or the answer to the subscription to
    /// `answer`.
    fn notified(
        &mut self,
        now: Timestamp,
        ack: (usize, Nonce),
        (records, handoff): (Vec<Record>, Option<Handoff>),
        answer: Option<IpNet>,
        actions: &mut Actions,
    ) {
        let (mut changes, mut put_off) = (0, false);
        for record in &records {
            let Some(prefixes) = self.concerned(record, &records, answer) else {
                continue;
            };
            let region = record.eid.net();
            let server = self.servers.get_mut(ack.0);
            if !server.is_some_and(|server| server.notifies.is_latest(region, ack.1)) {
                actions.count(DropReason::StaleNotify);
                continue;
            }
            if answer.is_none() {
                self.carry(now, record, handoff, actions);
                changes += self.await_carrying(&region, ack);
            }
            for prefix in prefixes {
                let before = self.next_change;
                let record = Record {
                    eid: self.eid(prefix),
                    ..record.clone()
                };
                self.told(now, &record, region, answer, actions);
                changes += self.await_changes(before, prefix, ack);
                match self.await_handover(&prefix, ack) {
                    Some(moves) => changes += moves,
                    None => put_off = true,
                }
            }
            if answer.is_none() && record.ttl.is_withdrawal() {
                self.subscribe_soon(now, ack.0, &region);
            }
        }
        if put_off {
            self.leave_unacknowledged(ack);
        } else if changes == 0 {
            self.acknowledge(ack.0, ack.1, &records, actions);
        } else {
            self.acks.insert(ack, PendingAck { records, changes });
        }
    }

    /// The prefixes that `record`, one of `records`, says something about: its
    /// own, and the parts of it that we hold because somebody else has the
    /// rest. `None` when it is no business of ours.
    fn concerned(
        &self,
        record: &Record,
        records: &[Record],
        answer: Option<IpNet>,
    ) -> Option<Vec<IpNet>> {
        let region = record.eid.net();
        if is_over(record) {
            // That says nothing about the mapping.
            return None;
        }
        if self.stopping || record.eid.iid() != self.config.iid || !self.in_overlay(&region) {
            return None;
        }
        if self.config.registers(&record.eid) {
            // A part of ours in the answer to a subscription to more, or another proxy of what we serve.
            return None;
        }
        let own = match answer {
            Some(asked) if region.contains(&asked) => {
                around(&self.eid(asked), record.eid, records).net()
            }
            Some(asked) if !asked.contains(&region) => return None,
            Some(_) | None => region,
        };
        let mut prefixes = self.cache.parts(&region);
        prefixes.retain(|part| *part != own);
        prefixes.push(own);
        Some(prefixes)
    }

    /// Takes in one mapping that we are told; `region` is what is registered.
    fn told(
        &mut self,
        now: Timestamp,
        record: &Record,
        region: IpNet,
        answer: Option<IpNet>,
        actions: &mut Actions,
    ) {
        let prefix = record.eid.net();
        let chosen = self.choose(record, &prefix);
        match chosen.filter(|_| !record.ttl.is_withdrawal()) {
            Some(chosen) => {
                let Chosen { key, endpoint } = chosen;
                let eid = record.eid;
                actions.event(Event::Push { eid, key, endpoint });
                let dozing = self.cache.get_mut(&prefix);
                let dozing = dozing.filter(|entry| entry.state == State::Dozing);
                if dozing.is_some() {
                    self.told_of_dozing(now, record, region, chosen, actions);
                } else if answer.is_some() {
                    self.positive(now, record, region, chosen, Cause::Reply, actions);
                    self.release_resolved(now, prefix, actions);
                } else {
                    self.begin_anew(now, prefix, chosen, actions);
                    self.positive(now, record, region, chosen, Cause::Push, actions);
                }
            }
            None => {
                if !record.locators.is_empty() && chosen.is_none() {
                    actions.count(DropReason::NoUsableLocator);
                }
                match answer {
                    Some(asked) if !record.ttl.is_withdrawal() => {
                        // Nobody serves what was asked for, or a part of it.
                        let gone = if prefix.contains(&asked) {
                            asked
                        } else {
                            prefix
                        };
                        self.negative(now, record, Purpose::Refresh(gone), actions);
                    }
                    Some(_) | None => self.withdrawn(now, prefix, actions),
                }
            }
        }
    }

    /// The far end of an idle mapping is about to use it, or has changed. It may have forgotten us
    /// in the meantime, so the peer starts from nothing, as its own does.
    fn told_of_dozing(
        &mut self,
        now: Timestamp,
        record: &Record,
        region: IpNet,
        chosen: Chosen,
        actions: &mut Actions,
    ) {
        let before = self.cache.get(&record.eid.net());
        let before = before.and_then(|entry| entry.chosen);
        let can_only_begin_itself = self.can_only_begin_itself(&record.eid.net(), &chosen.key);
        let is_same = before.is_some_and(|before| before.key == chosen.key);
        if is_same && (can_only_begin_itself || self.carries_for_others(&chosen.key)) {
            // If it has not forgotten us there is a session, which it, or others behind a relay, would miss.
            self.wake(now, chosen.key, true, actions);
            self.positive(now, record, region, chosen, Cause::Push, actions);
            return;
        }
        let prefixes = before.map(|before| self.peers.prefixes(&before.key));
        // Packets that wait for other prefixes of the peer are asked for anew.
        let mut waiting = Vec::new();
        for prefix in prefixes.into_iter().flatten() {
            let entry = self.cache.get_mut(&prefix);
            if let Some(entry) = entry.filter(|entry| entry.state == State::Dozing) {
                waiting.extend(entry.held.take(&mut self.budget));
                self.forget(prefix, actions);
            }
        }
        self.positive(now, record, region, chosen, Cause::Push, actions);
        for packet in waiting {
            self.tun_packet(now, &packet, actions);
        }
    }

    /// The map server will not tell us what becomes of `region`, and may have said what we have
    /// missed: asks for what we hold of it.
    fn no_longer_told(
        &mut self,
        now: Timestamp,
        index: usize,
        region: IpNet,
        actions: &mut Actions,
    ) {
        self.subscribe_soon(now, index, &region);
        let mut held = self.cache.parts(&region);
        held.push(region);
        for prefix in held {
            let entry = self.cache.get(&prefix);
            let mapped = entry.is_some_and(|entry| entry.chosen.is_some());
            if mapped && !self.resolver.is_refreshing(&prefix) {
                self.ask_again(now, prefix, RequestFlags::default(), actions);
            }
        }
    }

    /// The mapping is gone: whoever asks next gets a fresh answer.
    fn withdrawn(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(entry) = self.cache.get(&prefix) else {
            return;
        };
        if matches!(entry.state, State::Negative(_)) || entry.held.is_empty() {
            self.forget(prefix, actions);
            return;
        }
        self.forget_and_ask_again(now, prefix, actions);
    }

    /// Counts down the changes that a Map-Notify led to; after the last one
    /// the map server may tell the other end that we are ready.
    pub(super) fn change_done(&mut self, ack: (usize, Nonce), ok: bool, actions: &mut Actions) {
        let Some(pending) = self.acks.get_mut(&ack) else {
            return;
        };
        if !ok {
            return self.leave_unacknowledged(ack);
        }
        pending.changes = pending.changes.saturating_sub(1);
        if pending.changes == 0
            && let Some(pending) = self.acks.remove(&ack)
        {
            self.acknowledge(ack.0, ack.1, &pending.records, actions);
        }
    }

    /// The Map-Notify is not acknowledged: the map server repeats itself, and we retry.
    pub(super) fn leave_unacknowledged(&mut self, ack: (usize, Nonce)) {
        self.acks.remove(&ack);
        self.handovers.forget_ack(ack);
        self.carrying.forget_ack(ack);
        for pending in self.changes.values_mut() {
            pending.acks.retain(|waiting| *waiting != ack);
        }
        if let Some(server) = self.servers.get_mut(ack.0) {
            server.notifies.forget(ack.1);
        }
    }

    pub(super) fn acknowledge(
        &mut self,
        index: usize,
        nonce: Nonce,
        records: &[Record],
        actions: &mut Actions,
    ) {
        let Some(server) = self.config.map_servers.get(index) else {
            return;
        };
        let mut bytes = Vec::new();
        let params = NotifyParams {
            nonce,
            records,
            handoff: self.carrying.said_of(records),
        };
        if encode_map_notify_ack(&params, &server.key, &mut bytes).is_ok() {
            let dst = server.address;
            actions.push(Action::Send {
                dst,
                bytes: bytes.into(),
            });
        }
    }
}

/// Returns what `notify` says about mappings; `None` if that is more than one message may say.
fn records_of(notify: &MapNotify<'_>) -> Option<Vec<Record>> {
    let records = notify.records();
    let records: Vec<_> = records
        .filter_map(|record| record.to_record(DEFAULT_PORT))
        .take(RECORDS_PER_MESSAGE + 1)
        .collect();
    (records.len() <= RECORDS_PER_MESSAGE).then_some(records)
}

/// Whether `notify` names nothing but what we register ourselves, or withdraw: a push may happen to
/// carry the nonce of a Map-Register.
fn is_about(own: &Config, leaving: &[IpNet], notify: &MapNotify<'_>) -> bool {
    let registered = |eid: EidPrefix| {
        let leaves = |prefix: &IpNet| prefix.contains(&eid.net());
        own.registers(&eid) || eid.iid() == own.iid && leaving.iter().any(leaves)
    };
    notify
        .records()
        .all(|record| record.eid().is_some_and(registered))
}

/// Whether `record` says that the map server has ended our subscription, because it has heard no
/// acknowledgement for too long (RFC 9437 5).
fn is_over(record: &Record) -> bool {
    record.locators.is_empty() && record.action == MapAction::AuthFailure
}
