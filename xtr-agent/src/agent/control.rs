//! Datagrams from and to the map servers: registrations, replies, pushes.

use std::net::SocketAddr;

use ipnet::IpNet;
use lisp_proto::{
    EidPrefix, Locator, MapNotify, MapReply, Message, Nonce, NotifyParams, Record, RegisterFlags,
    RegisterParams, Rloc, Timestamp, decode, encode_map_notify_ack, encode_map_register, verify,
};

use super::event::{Cause, DropReason, Event};
use super::limits::RECORDS_PER_MESSAGE;
use super::map_cache::{Chosen, Purpose, State};
use super::replay::Seen;
use super::{Action, Actions, Agent, Timer};

/// The port of a WireGuard locator that does not say one.
const DEFAULT_PORT: u16 = 51820;

/// A Map-Notify that is acknowledged once all its mappings are in the data plane.
#[derive(Debug)]
pub(super) struct PendingAck {
    records: Vec<Record>,
    changes: usize,
}

impl Agent {
    pub(super) fn register_all(&mut self, now: Timestamp, actions: &mut Actions) {
        for index in 0..self.config.map_servers.len() {
            self.register(now, index, actions);
        }
    }

    /// Registers all prefixes with one map server; a TTL of 0 withdraws them.
    pub(super) fn register(&mut self, now: Timestamp, index: usize, actions: &mut Actions) {
        let records: Vec<Record> = self
            .config
            .eid_prefixes
            .iter()
            .map(|prefix| self.own_record(*prefix))
            .collect();
        let nonce = self.register_nonce;
        self.register_nonce = Nonce(nonce.0.wrapping_add(1));
        let (Some(server), Some(registration)) = (
            self.config.map_servers.get(index),
            self.registrations.get_mut(index),
        ) else {
            return;
        };
        let params = RegisterParams {
            flags: RegisterFlags {
                proxy_reply: true,
                want_notify: true,
                ..RegisterFlags::default()
            },
            nonce,
            records: &records,
            ids: self.config.ids,
        };
        let mut bytes = Vec::new();
        // The configuration bounds the number of prefixes, so that they fit.
        if encode_map_register(&params, &server.key, &mut bytes).is_ok() {
            let dst = server.address;
            actions.push(Action::Send {
                dst,
                bytes: bytes.into(),
            });
        }
        let wait = registration.sent(nonce);
        self.deadlines.set(Timer::Register(index), now + wait);
    }

    pub(super) fn own_record(&self, prefix: IpNet) -> Record {
        // A withdrawal names no locators: map servers that do not know TTL 0
        // then at least have none to hand out.
        let rlocs = if self.stopping {
            &[]
        } else {
            self.config.rlocs.as_slice()
        };
        let locators = rlocs.iter().map(|rloc| Locator {
            priority: 1,
            weight: 100,
            local: true,
            probed: false,
            reachable: true,
            rloc: if self.config.keyless {
                Rloc::Plain(*rloc)
            } else {
                Rloc::WireGuard {
                    endpoint: SocketAddr::new(*rloc, self.config.listen_port),
                    key: self.config.public_key,
                }
            },
        });
        Record {
            eid: self.eid(prefix),
            ttl: self.config.ttl,
            action: lisp_proto::Action::NoAction,
            authoritative: true,
            locators: locators.collect(),
        }
    }

    pub(super) fn datagram(
        &mut self,
        now: Timestamp,
        src: SocketAddr,
        bytes: &[u8],
        actions: &mut Actions,
    ) {
        let Ok(message) = decode(bytes) else {
            return actions.count(DropReason::Malformed);
        };
        if let Message::MapRequest(request) = &message {
            return self.map_request(now, src, request, bytes.len(), actions);
        }
        let servers = &self.config.map_servers;
        let Some(index) = servers.iter().position(|server| server.address == src) else {
            return actions.count(DropReason::NotAMapServer);
        };
        self.heard = now;
        match message {
            Message::MapReply(reply) => self.map_reply(now, &reply, actions),
            Message::MapNotify(notify) => self.map_notify(now, index, &notify, bytes, actions),
            Message::MapRequest(_)
            | Message::MapRegister(_)
            | Message::MapNotifyAck(_)
            | Message::MapReferral(_)
            | Message::InfoRequest(_)
            | Message::Ecm(_) => actions.count(DropReason::UnexpectedMessage),
        }
    }

    fn map_reply(&mut self, now: Timestamp, reply: &MapReply<'_>, actions: &mut Actions) {
        let Some(purpose) = self.resolver.answered(reply.nonce) else {
            actions.count(DropReason::UnknownNonce);
            return;
        };
        let asked = match purpose {
            Purpose::Resolve(dst) => IpNet::from(dst),
            Purpose::Refresh(prefix) => prefix,
        };
        let asked = self.eid(asked);
        let records: Vec<Record> = reply
            .records()
            .take(RECORDS_PER_MESSAGE)
            .filter_map(|record| record.to_record(DEFAULT_PORT))
            .collect();
        let covering = records.iter().filter(|record| record.eid.covers(&asked));
        let Some(record) = covering.max_by_key(|record| record.eid.net().prefix_len()) else {
            actions.count(DropReason::UnexpectedMessage);
            if let Purpose::Resolve(dst) = purpose {
                self.give_up(now, dst, actions);
            }
            return;
        };
        let record = Record {
            eid: around(&asked, record.eid, &records),
            ..record.clone()
        };
        let chosen = self.choose(&record);
        if record.locators.is_empty() || record.ttl.is_withdrawal() || chosen.is_none() {
            if !record.locators.is_empty() {
                actions.count(DropReason::NoUsableLocator);
            }
            self.negative(now, &record, purpose, actions);
            return;
        }
        if let Some(Chosen { key, endpoint }) = chosen {
            let eid = record.eid;
            actions.event(Event::MapReply { eid, key, endpoint });
            self.positive(
                now,
                &record,
                Chosen { key, endpoint },
                Cause::Reply,
                actions,
            );
            self.release_resolved(now, eid.net(), actions);
        }
    }

    fn map_notify(
        &mut self,
        now: Timestamp,
        index: usize,
        notify: &MapNotify<'_>,
        bytes: &[u8],
        actions: &mut Actions,
    ) {
        let Some(server) = self.config.map_servers.get(index) else {
            return;
        };
        if verify(&server.key, bytes).is_err() {
            actions.count(DropReason::BadAuthentication);
            return;
        }
        let registration = self.registrations.get_mut(index);
        if registration.is_some_and(|r| r.acknowledge(notify.nonce, now)) {
            self.registered(now, index, notify, actions);
            return;
        }
        if (self.config.first_nonce..self.register_nonce).contains(&notify.nonce) {
            // It acknowledges a Map-Register, late or once more. Taken for a
            // push it would move the window past the nonces of all pushes.
            actions.count(DropReason::StaleNotify);
            return;
        }
        let records: Vec<Record> = notify
            .records()
            .filter_map(|record| record.to_record(DEFAULT_PORT))
            .take(RECORDS_PER_MESSAGE + 1)
            .collect();
        if records.len() > RECORDS_PER_MESSAGE {
            actions.count(DropReason::TooManyRecords);
            return;
        }
        let Some(window) = self.windows.get_mut(index) else {
            return;
        };
        match window.accept(notify.nonce) {
            Seen::TooOld => actions.count(DropReason::StaleNotify),
            // Our acknowledgement was lost, unless it is still to be sent.
            Seen::Before if self.acks.contains_key(&(index, notify.nonce)) => {
                actions.count(DropReason::StaleNotify);
            }
            Seen::Before => self.acknowledge(index, notify.nonce, &records, actions),
            Seen::New => self.notified(now, index, notify.nonce, records, actions),
        }
    }

    fn registered(
        &mut self,
        now: Timestamp,
        index: usize,
        notify: &MapNotify<'_>,
        actions: &mut Actions,
    ) {
        if self.stopping {
            self.deadlines.cancel(&Timer::Register(index));
            return;
        }
        for record in notify.records().take(RECORDS_PER_MESSAGE) {
            if let Some(eid) = record.eid() {
                actions.event(Event::Registered { eid });
            }
        }
        let next = self.jitter(self.config.register_interval);
        self.deadlines.set(Timer::Register(index), now + next);
    }

    /// Takes in the mappings of an unsolicited Map-Notify: the far ends of
    /// tunnels to come, and changes to mappings we hold (RFC 9437 5).
    fn notified(
        &mut self,
        now: Timestamp,
        index: usize,
        nonce: Nonce,
        records: Vec<Record>,
        actions: &mut Actions,
    ) {
        let mut changes = 0;
        for record in &records {
            let prefix = record.eid.net();
            if record.eid.iid() != self.config.iid || !self.in_overlay(&prefix) {
                continue;
            }
            let older = |entry: &super::map_cache::Entry| entry.notified > Some(nonce);
            if self.cache.get(&prefix).is_some_and(older) {
                actions.count(DropReason::StaleNotify);
                continue;
            }
            let before = self.next_change;
            match self.choose(record) {
                Some(chosen) if !record.ttl.is_withdrawal() => {
                    let Chosen { key, endpoint } = chosen;
                    let eid = record.eid;
                    actions.event(Event::Push { eid, key, endpoint });
                    self.positive(now, record, chosen, Cause::Push, actions);
                }
                _ => self.withdrawn(now, prefix, actions),
            }
            if let Some(entry) = self.cache.get_mut(&prefix) {
                entry.notified = Some(nonce);
            }
            changes += self.await_changes(before, prefix, (index, nonce));
        }
        if changes == 0 {
            self.acknowledge(index, nonce, &records, actions);
        } else {
            self.acks
                .insert((index, nonce), PendingAck { records, changes });
        }
    }

    /// Counts down the changes that a Map-Notify led to; after the last one
    /// the map server may tell the other end that we are ready.
    pub(super) fn change_done(&mut self, ack: (usize, Nonce), ok: bool, actions: &mut Actions) {
        let Some(pending) = self.acks.get_mut(&ack) else {
            return;
        };
        if !ok {
            // Not acknowledged: the map server repeats itself, and we retry.
            self.acks.remove(&ack);
            if let Some(window) = self.windows.get_mut(ack.0) {
                window.forget(ack.1);
            }
            return;
        }
        pending.changes = pending.changes.saturating_sub(1);
        if pending.changes == 0
            && let Some(pending) = self.acks.remove(&ack)
        {
            self.acknowledge(ack.0, ack.1, &pending.records, actions);
        }
    }

    fn acknowledge(
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
        if encode_map_notify_ack(&NotifyParams { nonce, records }, &server.key, &mut bytes).is_ok()
        {
            let dst = server.address;
            actions.push(Action::Send {
                dst,
                bytes: bytes.into(),
            });
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

    /// The best locator we can reach: lowest priority, then highest weight
    /// (RFC 9301 5.4), of an address family that we have ourselves.
    fn choose(&self, record: &Record) -> Option<Chosen> {
        let reachable = |endpoint: &SocketAddr| {
            let family = endpoint.is_ipv4();
            self.config
                .rlocs
                .iter()
                .any(|rloc| rloc.is_ipv4() == family)
        };
        record
            .locators
            .iter()
            .filter(|locator| locator.priority != u8::MAX)
            .filter_map(|locator| match locator.rloc {
                Rloc::WireGuard { endpoint, key } => Some((locator, endpoint, key)),
                Rloc::Plain(_) => None,
            })
            .filter(|(_, endpoint, key)| reachable(endpoint) && *key != self.config.public_key)
            .min_by_key(|(locator, ..)| (locator.priority, u8::MAX - locator.weight))
            .map(|(_, endpoint, key)| Chosen { key, endpoint })
    }

    /// Whether a mapping for `prefix` is any business of ours.
    fn in_overlay(&self, prefix: &IpNet) -> bool {
        let overlaps = |net: &IpNet| net.contains(prefix) || prefix.contains(net);
        self.config.overlay.iter().any(overlaps)
    }

    /// The routes that send packets for `prefix` past the agent: never more
    /// than the overlay, whatever a mapping claims.
    pub(super) fn routes_for(&self, prefix: &IpNet) -> Vec<IpNet> {
        let overlay = &self.config.overlay;
        if overlay.iter().any(|net| net.contains(prefix)) {
            return vec![*prefix];
        }
        let inside = overlay.iter().filter(|net| prefix.contains(*net));
        inside.copied().collect()
    }

    pub(super) fn is_own(&self, eid: &EidPrefix) -> bool {
        let own = &self.config.eid_prefixes;
        own.iter().any(|prefix| prefix.contains(&eid.net()))
    }
}

/// The largest part of `covering` around `asked` in which no other of
/// `records` lies: those belong to somebody else, and are asked for when a
/// packet needs them (RFC 9301 5.5).
fn around(asked: &EidPrefix, covering: EidPrefix, records: &[Record]) -> EidPrefix {
    let others = records
        .iter()
        .map(|record| record.eid)
        .filter(|eid| *eid != covering);
    let taken = |prefix: &EidPrefix| others.clone().any(|other| prefix.covers(&other));
    let address = asked.net().addr();
    (covering.net().prefix_len()..=asked.net().prefix_len())
        .filter_map(|length| IpNet::new(address, length).ok())
        .map(|net| EidPrefix::new(asked.iid(), net))
        .find(|prefix| !taken(prefix))
        .unwrap_or(*asked)
}
