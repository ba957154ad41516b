//! Who starts the first handshake, and when packets may follow.

use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};

use super::event::{Cause, Event};
use super::install::What;
use super::limits::{HANDSHAKE_POLL, HANDSHAKE_POLLS, PASSIVE_WAIT};
use super::map_cache::{Chosen, Entry, State};
use super::{Action, Actions, Agent, Change, PeerStats, Timer};

impl Agent {
    pub(super) fn peer_ready(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let eid = self.eid(prefix);
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        let Some(Chosen { key, endpoint }) = entry.chosen else {
            return;
        };
        let cause = entry.cause;
        self.traces.installed(now, prefix, key);
        actions.event(Event::PeerInstalled {
            eid,
            key,
            endpoint,
            cause,
        });
        // A restored peer has no packets waiting; its session is looked for when there are some.
        let is_new = cause != Cause::Restored && !self.peers.handshake_seen(&key);
        if is_new {
            if self.watched.is_empty() {
                self.deadlines.set(Timer::Handshakes, now + HANDSHAKE_POLL);
            }
            self.watched.insert(key, HANDSHAKE_POLLS);
        }
        if entry.state != State::Installing {
            if is_new {
                // The far end starts the handshake, unless a NAT of ours keeps it from us.
                self.deadlines.set(Timer::Kick(key), now + PASSIVE_WAIT);
            }
            return;
        }
        let mutual = entry.mutual;
        match cause {
            Cause::Reply if !mutual || self.config.public_key < key => self.fire(prefix, actions),
            Cause::Reply => {
                entry.mutual = false;
                self.await_handshake(now, prefix, actions);
            }
            Cause::Push => self.await_handshake(now, prefix, actions),
            Cause::Restored => self.fire(prefix, actions),
        }
    }

    /// A key that has taken the place of another one has had time to start a
    /// handshake; with a session nothing happens.
    pub(super) fn kick_due(&self, key: PublicKey, actions: &mut Actions) {
        if self.peers.contains(&key) {
            actions.push(Action::Kick(key));
        }
    }

    pub(super) fn await_handshake(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let until = now + PASSIVE_WAIT;
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        entry.state = State::Awaiting(until);
        self.awaiting.insert(prefix);
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
    pub(super) fn fire(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.awaiting.remove(&prefix);
        self.absorb_pending(prefix, actions);
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
            self.routes.want(route, prefix);
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
            if peer.handshake_seen && self.peers.note_handshake(&peer.key) {
                actions.event(Event::Handshake { key: peer.key });
            }
            let seen = self.peers.handshake_seen(&peer.key);
            if seen {
                self.traces.seen(now, peer);
                self.watched.remove(&peer.key);
            }
            if self.awaiting.is_empty() && self.refresh_checks.is_empty() {
                continue;
            }
            for prefix in self.peers.prefixes(&peer.key) {
                let entry = self.cache.get(&prefix);
                let awaiting =
                    |entry: &Entry| matches!(entry.state, State::Awaiting(_)) && !entry.mutual;
                if seen && entry.is_some_and(awaiting) {
                    self.fire(prefix, actions);
                }
                self.refresh_used(now, prefix, peer, actions);
            }
        }
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
}
