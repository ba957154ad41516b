//! The way of a mapping into the data plane and out again.
//!
//! In: peer, then held packets, then the route that takes later packets past
//! the agent. Out: route, then peer. A moment without a route is a captured
//! packet; a moment without a peer would be a lost one.

use ipnet::IpNet;
use lisp_proto::{Nonce, PublicKey, Record, Timestamp};

use super::event::{Cause, DropReason, Event};
use super::hold::Held;
use super::ip_header::Unreachable;
use super::limits::{
    CHANGES_IN_FLIGHT, HANDSHAKE_POLL, HANDSHAKE_POLLS, MAP_CACHE_ENTRIES, PASSIVE_WAIT,
    REFRESH_AT_PERCENT, UNSPECIFIED_TTL,
};
use super::map_cache::{Chosen, Entry, State};
use super::miss::refuse;
use super::peers::Remaining;
use super::{Action, Actions, Agent, Change, ChangeId, PeerStats, Timer};

/// A change that the data plane has not reported back yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    what: What,
    /// The Map-Notifies that are acknowledged after it.
    acks: Vec<(usize, Nonce)>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Peer(IpNet),
    Route(IpNet),
    Removal,
}

impl Agent {
    /// Takes in a mapping with a locator we can use.
    pub(super) fn positive(
        &mut self,
        now: Timestamp,
        record: &Record,
        chosen: Chosen,
        cause: Cause,
        actions: &mut Actions,
    ) {
        let prefix = record.eid.net();
        let ttl = record.ttl.duration().unwrap_or(UNSPECIFIED_TTL);
        let expires = now + ttl;
        if self.routes_for(&prefix).is_empty() {
            return;
        }
        let refresh = now + ttl.mul_f64(f64::from(REFRESH_AT_PERCENT) / 100.0);
        let pending = !self.resolver.within(&prefix).is_empty();
        match self.cache.get_mut(&prefix) {
            Some(entry) if entry.chosen.is_some() => {
                entry.expires = expires;
                entry.stale = None;
                self.resolver.refreshed(&prefix);
                let before = entry.chosen.replace(chosen);
                if before == Some(chosen) {
                    if !matches!(entry.state, State::Awaiting(_)) {
                        self.deadlines.set(Timer::Entry(prefix), expires);
                    }
                    self.deadlines.set(Timer::Refresh(prefix), refresh);
                    return;
                }
                if matches!(entry.state, State::Awaiting(_)) {
                    // What was awaited was a handshake with another locator.
                    entry.state = State::Installing;
                }
                if let Some(before) = before {
                    self.replace(now, prefix, before, chosen, actions);
                }
            }
            Some(_) | None => {
                if self.cache.len() >= MAP_CACHE_ENTRIES {
                    actions.count(DropReason::MapCacheFull);
                    return;
                }
                let entry = Entry {
                    state: State::Installing,
                    chosen: Some(chosen),
                    change: None,
                    expires,
                    stale: None,
                    held: Held::default(),
                    cause,
                    notified: None,
                    mutual: cause == Cause::Push && pending,
                    solicited: None,
                    bytes_seen: 0,
                };
                self.cache.insert(prefix, entry);
                self.set_peer(now, prefix, chosen, actions);
            }
        }
        self.deadlines.set(Timer::Entry(prefix), expires);
        self.deadlines.set(Timer::Refresh(prefix), refresh);
    }

    /// Moves a prefix to another locator. Giving the AllowedIPs to the new
    /// key takes them from the old one in the same step.
    fn replace(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        before: Chosen,
        after: Chosen,
        actions: &mut Actions,
    ) {
        self.set_peer(now, prefix, after, actions);
        if before.key != after.key {
            self.drop_prefix(prefix, before.key, actions);
        }
    }

    fn set_peer(&mut self, now: Timestamp, prefix: IpNet, chosen: Chosen, actions: &mut Actions) {
        let spec = self.peers.install(chosen.key, chosen.endpoint, prefix);
        self.watch_liveness(now);
        let id = self.change(What::Peer(prefix), Change::SetPeer(spec), actions);
        if let Some(entry) = self.cache.get_mut(&prefix) {
            entry.change = Some(id);
        }
    }

    fn change(&mut self, what: What, change: Change, actions: &mut Actions) -> ChangeId {
        let id = ChangeId(self.next_change);
        self.next_change += 1;
        self.changes.insert(
            id,
            Pending {
                what,
                acks: Vec::new(),
            },
        );
        actions.push(Action::Apply { id, change });
        id
    }

    /// Makes the acknowledgement `ack` wait for the changes since `before`,
    /// and for an installation of `prefix` that is still on its way. Says how
    /// many those are.
    pub(super) fn await_changes(
        &mut self,
        before: u64,
        prefix: IpNet,
        ack: (usize, Nonce),
    ) -> usize {
        let mut count = 0;
        for (id, pending) in &mut self.changes {
            let wanted = match pending.what {
                What::Peer(installing) => installing == prefix,
                What::Removal => id.0 >= before,
                What::Route(_) => false,
            };
            if wanted {
                if !pending.acks.contains(&ack) {
                    pending.acks.push(ack);
                }
                count += 1;
            }
        }
        count
    }

    /// Whether the data plane is so far behind that nothing new is taken on.
    pub(super) fn overloaded(&self) -> bool {
        self.changes.len() >= CHANGES_IN_FLIGHT
    }

    /// An answer came for `prefix`: what waited for addresses within it now
    /// waits for its installation, or goes.
    pub(super) fn release_resolved(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        actions: &mut Actions,
    ) {
        self.absorb_pending(prefix);
        let own_key = self.config.public_key;
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        match entry.state {
            State::Awaiting(_) => {
                // Both ends were told of each other. The one with the smaller
                // key starts the handshake; the other one waits for it.
                entry.mutual = false;
                let key = entry.chosen.map(|chosen| chosen.key);
                let first = key.is_some_and(|key| own_key < key);
                if first || key.is_some_and(|key| self.peers.handshake_seen(&key)) {
                    self.fire(prefix, actions);
                } else {
                    self.await_handshake(now, prefix, actions);
                }
            }
            State::Active | State::Routing => {
                for packet in entry.held.take(&mut self.budget) {
                    actions.push(Action::Reinject(packet));
                }
            }
            State::Installing => entry.cause = Cause::Reply,
            State::Negative(_) => {}
        }
    }

    /// Puts the packets that wait for addresses within `prefix` in front of
    /// the later ones that wait for `prefix` itself.
    fn absorb_pending(&mut self, prefix: IpNet) {
        for dst in self.resolver.within(&prefix) {
            self.deadlines.cancel(&Timer::Request(dst));
            let Some(mut pending) = self.resolver.finish(&dst) else {
                continue;
            };
            if let Some(entry) = self.cache.get_mut(&prefix) {
                pending.held.append(std::mem::take(&mut entry.held));
                entry.held = pending.held;
            } else {
                drop(pending.held.take(&mut self.budget));
            }
        }
    }

    pub(super) fn applied(
        &mut self,
        now: Timestamp,
        id: ChangeId,
        ok: bool,
        actions: &mut Actions,
    ) {
        let Some(pending) = self.changes.remove(&id) else {
            return;
        };
        // A later change of the same prefix has taken the place of this one.
        let superseded = match pending.what {
            What::Peer(prefix) => {
                let entry = self.cache.get(&prefix);
                entry.is_none_or(|entry| entry.change != Some(id))
            }
            What::Route(_) | What::Removal => false,
        };
        match pending.what {
            What::Peer(_) if superseded => {}
            What::Peer(prefix) if ok => self.peer_ready(now, prefix, actions),
            What::Peer(prefix) => {
                actions.event(Event::ChangeFailed { what: "peer" });
                self.lose(prefix, actions);
            }
            What::Route(prefix) => {
                if let Some(entry) = self.cache.get_mut(&prefix)
                    && entry.state == State::Routing
                {
                    // Without its route a mapping still works, packet by
                    // packet through the agent.
                    entry.state = State::Active;
                    let eid = self.eid(prefix);
                    actions.event(if ok {
                        Event::RouteInstalled { eid }
                    } else {
                        Event::ChangeFailed { what: "route" }
                    });
                }
            }
            What::Removal => {}
        }
        for ack in pending.acks {
            self.change_done(ack, ok || superseded, actions);
        }
    }

    fn peer_ready(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let eid = self.eid(prefix);
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        let Some(Chosen { key, endpoint }) = entry.chosen else {
            return;
        };
        let cause = entry.cause;
        actions.event(Event::PeerInstalled {
            eid,
            key,
            endpoint,
            cause,
        });
        if entry.state != State::Installing {
            return;
        }
        if !self.peers.handshake_seen(&key) {
            if self.watched.is_empty() {
                self.deadlines.set(Timer::Handshakes, now + HANDSHAKE_POLL);
            }
            self.watched.insert(key, HANDSHAKE_POLLS);
        }
        let mutual = entry.mutual;
        match cause {
            Cause::Reply if !mutual || self.config.public_key < key => self.fire(prefix, actions),
            Cause::Reply => {
                entry.mutual = false;
                self.await_handshake(now, prefix, actions);
            }
            Cause::Push => self.await_handshake(now, prefix, actions),
        }
    }

    fn await_handshake(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let until = now + PASSIVE_WAIT;
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        entry.state = State::Awaiting(until);
        self.deadlines.set(Timer::Entry(prefix), until);
        let key = entry.chosen.map(|chosen| chosen.key);
        // A session proves that the far end knows our key. That it knows this
        // EID of ours too, only the answer to our own request tells.
        let answered = !entry.mutual;
        if answered && key.is_some_and(|key| self.peers.handshake_seen(&key)) {
            self.fire(prefix, actions);
        }
    }

    /// Sends the held packets on, in order, and lets the kernel have the rest.
    fn fire(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.absorb_pending(prefix);
        let eid = self.eid(prefix);
        let routes = self.routes_for(&prefix);
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        entry.state = State::Routing;
        let packets = entry.held.take(&mut self.budget);
        if !packets.is_empty() {
            let count = packets.len();
            for packet in packets {
                actions.push(Action::Reinject(packet));
            }
            actions.event(Event::Reinjected {
                eid,
                packets: count,
            });
        }
        self.deadlines.set(Timer::Entry(prefix), entry.expires);
        for route in routes {
            self.change(What::Route(prefix), Change::AddRoute(route), actions);
        }
    }

    pub(super) fn peer_stats(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        for peer in stats {
            if peer.handshake_seen && self.peers.contains(&peer.key) {
                self.watched.remove(&peer.key);
                if self.peers.note_handshake(&peer.key) {
                    actions.event(Event::Handshake { key: peer.key });
                }
            }
        }
        let awaiting: Vec<IpNet> = self
            .cache
            .iter()
            .filter(|(_, entry)| matches!(entry.state, State::Awaiting(_)) && !entry.mutual)
            .filter(|(_, entry)| {
                let key = entry.chosen.map(|chosen| chosen.key);
                key.is_some_and(|key| self.peers.handshake_seen(&key))
            })
            .map(|(prefix, _)| prefix)
            .collect();
        for prefix in awaiting {
            self.fire(prefix, actions);
        }
        self.refresh_used(now, stats, actions);
        self.check_liveness(now, stats, actions);
    }

    pub(super) fn look_for_handshakes(&mut self, now: Timestamp, actions: &mut Actions) {
        self.watched.retain(|_, looks| {
            *looks = looks.saturating_sub(1);
            *looks > 0
        });
        if self.watched.is_empty() {
            return;
        }
        let keys: Vec<PublicKey> = self.watched.keys().copied().collect();
        actions.push(Action::ReadPeerStats(keys));
        self.deadlines.set(Timer::Handshakes, now + HANDSHAKE_POLL);
    }

    pub(super) fn entry_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(entry) = self.cache.get(&prefix) else {
            return;
        };
        if entry.expires <= now {
            if !self.keep_stale(now, prefix) {
                self.forget_and_ask_again(now, prefix, actions);
            }
        } else if let State::Awaiting(until) = entry.state
            && until <= now
        {
            // The far end is late or lost: nothing is gained by waiting on.
            if let Some(chosen) = entry.chosen {
                actions.push(Action::Kick(chosen.key));
            }
            self.fire(prefix, actions);
        } else {
            let next = entry.expires;
            self.deadlines.set(Timer::Entry(prefix), next);
        }
    }

    /// The data plane refused the peer: tells those who waited.
    fn lose(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.absorb_pending(prefix);
        if let Some(entry) = self.cache.get_mut(&prefix) {
            for packet in entry.held.take(&mut self.budget) {
                refuse(&packet, Unreachable::Host, DropReason::MappingLost, actions);
            }
        }
        self.forget(prefix, actions);
    }

    /// Removes a mapping and whatever it put into the data plane.
    pub(super) fn forget(&mut self, prefix: IpNet, actions: &mut Actions) {
        let Some(mut entry) = self.cache.remove(&prefix) else {
            return;
        };
        self.deadlines.cancel(&Timer::Entry(prefix));
        self.deadlines.cancel(&Timer::Refresh(prefix));
        self.refresh_checks.remove(&prefix);
        self.resolver.refreshed(&prefix);
        for packet in entry.held.take(&mut self.budget) {
            refuse(&packet, Unreachable::Host, DropReason::MappingLost, actions);
        }
        if matches!(entry.state, State::Routing | State::Active) {
            for route in self.routes_for(&prefix) {
                self.change(What::Removal, Change::RemoveRoute(route), actions);
            }
        }
        if let Some(chosen) = entry.chosen {
            self.drop_prefix(prefix, chosen.key, actions);
        }
    }

    fn drop_prefix(&mut self, prefix: IpNet, key: PublicKey, actions: &mut Actions) {
        match self.peers.remove(&key, &prefix) {
            Some(Remaining::Peer(spec)) => {
                self.change(What::Removal, Change::SetPeer(spec), actions);
            }
            Some(Remaining::Nothing) => {
                self.watched.remove(&key);
                self.change(What::Removal, Change::RemovePeer(key), actions);
                actions.event(Event::PeerRemoved { key });
            }
            None => {}
        }
    }
}
