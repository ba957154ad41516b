//! Who starts the first handshake, and when packets may follow.

use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};

use super::event::{Cause, Event};
use super::install::What;
use super::limits::{HANDSHAKE_LOOKS, PASSIVE_WAIT, PASSIVE_WAIT_MIN};
use super::map_cache::{Chosen, State};
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
        let (cause, mutual, state) = (entry.cause, entry.mutual, entry.state);
        self.traces.installed(now, prefix, key);
        actions.event(Event::PeerInstalled {
            eid,
            key,
            endpoint,
            cause,
        });
        // With a restored peer nobody shakes hands before there is a packet.
        let is_new = cause != Cause::Restored && !self.peers.handshake_seen(&key);
        if is_new {
            self.watch(now, key, HANDSHAKE_LOOKS);
        }
        if state != State::Installing {
            if is_new {
                // The far end starts the handshake, unless a NAT of ours keeps it from us.
                self.deadlines.set(Timer::Kick(key), now + PASSIVE_WAIT);
            }
            return;
        }
        match cause {
            Cause::Reply if !mutual || self.config.public_key < key => {
                self.fire(now, prefix, actions);
            }
            Cause::Reply => {
                if let Some(entry) = self.cache.get_mut(&prefix) {
                    entry.mutual = false;
                }
                self.await_handshake(now, prefix, actions);
            }
            Cause::Push => {
                if self.nat.is_behind() {
                    // The far end is told that we are ready only afterwards. It ignores this, but then our NAT lets
                    // its own handshake in.
                    actions.push(Action::Kick(key));
                }
                self.await_handshake(now, prefix, actions);
            }
            Cause::Restored => self.fire(now, prefix, actions),
        }
    }

    /// A key that has taken the place of another one has had time to start a
    /// handshake; with a session nothing happens.
    pub(super) fn kick_due(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        if self.liveness.is_in_doubt(&key) {
            // The look that was wanted came too late, or too early.
            actions.push(Action::ReadPeerStatsAnew(vec![key]));
            self.deadlines.set(Timer::Kick(key), now + PASSIVE_WAIT);
        } else if self.peers.contains(&key) {
            actions.push(Action::Kick(key));
            if !self.peers.handshake_seen(&key)
                && let Some(prefix) = self.peers.prefixes(&key).first()
            {
                self.watch_closely(now, *prefix, key, actions);
            }
        }
    }

    pub(super) fn await_handshake(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        // The far end may be waiting as well: it was not asked for us after all. Whoever was
        // answered is the first to lose patience, or both would start at the same instant.
        let wait = match entry.answer_took {
            Duration::ZERO => PASSIVE_WAIT,
            took => (took * 2).clamp(PASSIVE_WAIT_MIN, PASSIVE_WAIT),
        };
        let until = now + wait;
        entry.state = State::Awaiting(until);
        self.opening.insert(prefix);
        self.deadlines.set(Timer::Entry(prefix), until);
        let key = entry.chosen.map(|chosen| chosen.key);
        // A session proves that the far end knows our key. That it knows this
        // EID of ours too, only the answer to our own request tells.
        let answered = !entry.mutual;
        if answered && key.is_some_and(|key| self.peers.handshake_seen(&key)) {
            self.release(prefix, actions);
        }
    }

    /// The far end is ready: sends the first held packets on, which starts the handshake. Those
    /// that the data plane could not keep meanwhile, and all later ones, wait until it was seen.
    pub(super) fn fire(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        self.absorb_pending(prefix, actions);
        let subscribed = self.is_subscribed(&prefix);
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        let key = entry.chosen.map(|chosen| chosen.key);
        // What was asked for without packets is kept ready: the data plane has none to keep yet.
        let ready = entry.held.is_empty() && (entry.cause == Cause::Reply || subscribed);
        if ready || key.is_none_or(|key| self.peers.handshake_seen(&key)) {
            self.release(prefix, actions);
            return;
        }
        entry.state = State::Opening;
        let expires = entry.expires;
        self.opening.insert(prefix);
        self.deadlines.set(Timer::Entry(prefix), expires);
        self.watch_apart(now, prefix);
        self.pump(now, prefix, actions);
    }

    /// Sends all held packets on, in order, and lets the kernel have the rest.
    pub(super) fn release(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.opening.remove(&prefix);
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
            self.change(What::Route(prefix, route), Change::AddRoute(route), actions);
        }
    }

    pub(super) fn peer_stats(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        self.gaps.look(stats);
        let ready = self.look_at_handovers(now, stats);
        for peer in stats {
            if peer.handshake_seen && self.peers.note_handshake(&peer.key) {
                self.apart.heard(&peer.key);
                actions.event(Event::Handshake { key: peer.key });
            }
            self.handshake_looked_for(now, peer, actions);
            if self.refresh_checks.is_empty() {
                continue;
            }
            for prefix in self.peers.prefixes(&peer.key) {
                self.refresh_used(now, prefix, peer, actions);
            }
        }
        for prefix in ready {
            self.switch(now, prefix, actions);
        }
        self.look_at_guards(now, stats, actions);
        self.check_liveness(now, stats, actions);
    }

    pub(super) fn entry_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(entry) = self.cache.get(&prefix) else {
            return;
        };
        if entry.expires <= now {
            if !self.keep_stale(now, prefix) {
                self.forget_and_ask_again(now, prefix, actions);
            }
        } else if entry.state == State::Dozing && !entry.held.is_empty() {
            // Nobody has told whether it is used.
            self.renew(now, &[prefix], actions);
        } else if let State::Awaiting(until) = entry.state
            && until <= now
        {
            // The far end is late or lost: nothing is gained by waiting on.
            if let Some(chosen) = entry.chosen {
                actions.push(Action::Kick(chosen.key));
                let is_new = !self.peers.handshake_seen(&chosen.key);
                if is_new && self.nat.is_behind() {
                    // It was greeted before it knew us: the kernel says nothing more for five seconds.
                    self.watch_closely(now, prefix, chosen.key, actions);
                } else if is_new {
                    self.watch(now, chosen.key, HANDSHAKE_LOOKS);
                }
            }
            self.fire(now, prefix, actions);
        } else {
            let next = entry.expires;
            self.deadlines.set(Timer::Entry(prefix), next);
        }
    }
}
