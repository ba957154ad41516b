//! Far ends that NATs keep from us: the map server hears of them, and may name a relay (an RTR) instead.
//!
//! A question about such a prefix carries a record (M, RFC 9301 5.2) with the locator that cannot be reached (R is clear,
//! 5.4). Only who is behind a NAT complains: anybody else cannot be kept from somebody by NATs alone. A relay is one more
//! far end to us; only the priority of its locator tells what it is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{Locator, PublicKey, Record, RequestFlags, Rloc, Timestamp};

use super::failover::out_of_reach;
use super::ip_header::addresses;
use super::limits::{APART, RELAY_PRIORITY};
use super::map_cache::{Chosen, Entry, State};
use super::{Action, Actions, Agent, Timer};

/// What is known of far ends that cannot be reached.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// Whom questions about a prefix name, until one is answered.
    lost: BTreeMap<IpNet, Chosen>,
    /// Which peer is the relay of a prefix when it serves that.
    relays: BTreeMap<IpNet, PublicKey>,
    /// Which peer of a prefix is behind a NAT, as far as its mapping tells.
    hidden: BTreeMap<IpNet, PublicKey>,
}

/// Which peer of a prefix is a relay, and which is behind a NAT, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    pub(super) relay: Option<PublicKey>,
    pub(super) hidden: Option<PublicKey>,
}

impl Apart {
    /// Whether `chosen` only carries the packets of `prefix` to somebody else.
    pub(super) fn is_relay(&self, prefix: &IpNet, chosen: &Chosen) -> bool {
        self.relays.get(prefix) == Some(&chosen.key)
    }

    /// Whether `key`, which serves `prefix`, is behind a NAT: it may have to find us.
    pub(super) fn is_hidden(&self, prefix: &IpNet, key: &PublicKey) -> bool {
        self.hidden.get(prefix) == Some(key)
    }

    /// Whether any peer is behind a NAT, as far as is known.
    pub(super) fn knows_hidden(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// A map server has told of `prefix`, whether it was asked or not.
    pub(super) fn told(&mut self, prefix: &IpNet) {
        self.lost.remove(prefix);
    }

    /// Something has come from `key`: nothing keeps it from us.
    pub(super) fn heard(&mut self, key: &PublicKey) {
        self.lost.retain(|_, at| at.key != *key);
    }

    /// What is known of the ways to the peer of `prefix`.
    pub(super) fn way(&self, prefix: &IpNet) -> Way {
        Way {
            relay: self.relays.get(prefix).copied(),
            hidden: self.hidden.get(prefix).copied(),
        }
    }

    /// The same is known again.
    pub(super) fn recall(&mut self, prefix: IpNet, way: Way) {
        let Way { relay, hidden } = way;
        self.relays.extend(relay.map(|key| (prefix, key)));
        self.hidden.extend(hidden.map(|key| (prefix, key)));
    }

    /// There is no mapping of `prefix` any more.
    pub(super) fn forget(&mut self, prefix: &IpNet) {
        self.lost.remove(prefix);
        self.relays.remove(prefix);
        self.hidden.remove(prefix);
    }
}

impl Agent {
    /// A handshake for `prefix` was started: if it takes too long, a NAT may be in its way.
    pub(super) fn watch_apart(&mut self, now: Timestamp, prefix: IpNet) {
        if self.nat.is_behind() {
            let wait = APART.min(self.config.hold / 2);
            self.deadlines.set(Timer::Apart(prefix), now + wait);
        }
    }

    /// There was no handshake in time, unless that is over.
    pub(super) fn apart_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let entry = self.cache.get(&prefix);
        let entry = entry.filter(|entry| entry.state == State::Opening);
        let Some(chosen) = entry.and_then(|entry| entry.chosen) else {
            return;
        };
        if !self.peers.handshake_seen(&chosen.key) && self.is_apart(prefix, chosen) {
            self.ask_again(now, prefix, RequestFlags::default(), actions);
        }
    }

    /// The far end of `prefix` is not heard at `at`: from now on, questions say so if that may be due to a NAT. Returns
    /// whether they do.
    pub(super) fn is_apart(&mut self, prefix: IpNet, at: Chosen) -> bool {
        if self.nat.is_behind() {
            self.apart.lost.insert(prefix, at);
        }
        self.nat.is_behind()
    }

    /// Whether a peer carries packets to somebody else.
    pub(super) fn carries_for_others(&self, key: &PublicKey) -> bool {
        let prefixes = self.peers.prefixes(key);
        let mut ways = prefixes.iter().map(|prefix| self.apart.way(prefix));
        ways.any(|way| way.relay == Some(*key))
    }

    /// Asks a silent far end for an echo before it is said that it cannot be reached: a data plane that does not count
    /// keepalives cannot tell it from one that has nothing to say. False if nobody can be asked, or was in vain.
    pub(super) fn asks_for_sign(
        &mut self,
        now: Timestamp,
        key: &PublicKey,
        actions: &mut Actions,
    ) -> bool {
        if !self.config.tells_handshakes || !self.nat.is_behind() {
            return false;
        }
        let Some(echo) = self
            .echo_to(key)
            .filter(|_| self.liveness.await_sign(now, key))
        else {
            return false;
        };
        actions.push(Action::Reinject(echo));
        true
    }

    /// What a question about `asked` says of a far end that cannot be reached.
    pub(super) fn apart_record(&self, asked: &IpNet) -> Option<Record> {
        let lost = *self.apart.lost.get(asked)?;
        // Of what several serve, the map server would give us another one's: that is another matter.
        if self.failover.has_alternatives(asked) {
            return None;
        }
        let used = self.cache.get(asked).and_then(|entry| entry.chosen);
        // Of one that we have left meanwhile nobody needs to know.
        let armed = self.handovers.armed.get(asked).map(|armed| armed.word.to);
        if used != Some(lost) && armed != Some(lost) {
            return None;
        }
        Some(Record {
            locators: vec![out_of_reach(lost.key, lost.endpoint)],
            ..self.bare_record(asked)
        })
    }

    /// Takes note if `chosen` is a relay, as `record` says, or behind a NAT: then there are inner addresses of the same key,
    /// from which nobody is reached beyond that (R is clear).
    pub(super) fn note_way(&mut self, prefix: IpNet, record: &Record, chosen: Chosen) {
        let Chosen { key, endpoint } = chosen;
        let rloc = Rloc::WireGuard { endpoint, key };
        let mut locators = record.locators.iter();
        let own = locators.find(|it| it.rloc == rloc);
        let is_relay = own.is_some_and(|it| it.priority == RELAY_PRIORITY);
        mark(&mut self.apart.relays, prefix, key, is_relay);
        let is_inner = |it: &Locator| match it.rloc {
            Rloc::WireGuard { key, .. } => key == chosen.key && !it.reachable,
            Rloc::Plain(_) => false,
        };
        let is_outer = own.is_some_and(|it| it.reachable);
        let is_hidden = is_outer && record.locators.iter().any(is_inner);
        mark(&mut self.apart.hidden, prefix, key, is_hidden);
    }

    /// Takes out what waits for a handshake with the far end of `prefix`, and for nothing else, before `next` takes the
    /// place of that: it goes with the peer otherwise.
    pub(super) fn take_over(&mut self, prefix: &IpNet, next: &Chosen) -> Vec<Bytes> {
        let entry = self.cache.get_mut(prefix);
        let Some(entry) = entry.filter(|entry| entry.state == State::Opening) else {
            return Vec::new();
        };
        let Some(before) = entry.chosen else {
            return Vec::new();
        };
        if before.key == next.key || self.peers.prefixes(&before.key) != [*prefix] {
            return Vec::new();
        }
        let mut waiting: Vec<_> = self.watches.staged(&before.key, &mut self.budget).into();
        waiting.extend(entry.held.take(&mut self.budget));
        waiting
    }

    /// Takes out what the data plane has got for the peer `key`, whose last prefix `prefix` is, and could not send,
    /// before a relay takes its place. Its other prefixes may have gone to the relay before: as long as the peer was
    /// there, it might have sent it after all.
    pub(super) fn stranded(
        &mut self,
        prefix: &IpNet,
        key: &PublicKey,
        next: &Chosen,
    ) -> VecDeque<Bytes> {
        let is_last = self.peers.prefixes(key) == [*prefix];
        if !is_last || !self.apart.is_relay(prefix, next) || self.peers.handshake_seen(key) {
            return VecDeque::new();
        }
        self.watches.staged(key, &mut self.budget)
    }

    /// Sends packets before those that wait for the same prefixes, which came later.
    pub(super) fn send_first(
        &mut self,
        now: Timestamp,
        packets: VecDeque<Bytes>,
        actions: &mut Actions,
    ) {
        let mut later = BTreeMap::new();
        let mut others = Vec::new();
        for packet in packets {
            let dst = addresses(&packet).map(|(_, dst)| dst);
            let found = dst.and_then(|dst| self.cache.lookup(dst));
            let waits = |entry: &Entry| {
                let waits = matches!(entry.state, State::Installing | State::Awaiting(_));
                waits || entry.state == State::Opening
            };
            if let Some((prefix, entry)) = found.filter(|(_, entry)| waits(entry)) {
                later
                    .entry(prefix)
                    .or_insert_with(|| std::mem::take(&mut entry.held));
                entry.held.keep(packet, &mut self.budget);
            } else {
                others.push(packet);
            }
        }
        for (prefix, held) in later {
            let entry = self.cache.get_mut(&prefix);
            let is_opening = entry.is_some_and(|entry| {
                entry.held.append(held);
                entry.state == State::Opening
            });
            if is_opening {
                self.pump(now, prefix, actions);
            }
        }
        for packet in others {
            self.tun_packet(now, &packet, actions);
        }
    }
}

/// Notes that `key` is something to `prefix`, or that it is not, whatever another key may be.
fn mark(marks: &mut BTreeMap<IpNet, PublicKey>, prefix: IpNet, key: PublicKey, is_so: bool) {
    if is_so {
        marks.insert(prefix, key);
    } else if marks.get(&prefix) == Some(&key) {
        marks.remove(&prefix);
    }
}
