//! A mapping in use gets another key: make before break.
//!
//! The new peer is *armed*: installed without the prefix, it shakes hands while the old one carries
//! the traffic. When its handshake was seen the prefix moves to it in one change, so that every
//! packet finds a session. A source address belongs to one peer only, so what the old peer sent
//! and has not arrived by then is dropped: WireGuard knows no way to let both in.
//!
//! A new peer that does not answer leaves the mapping where it was, unless the old one is dead. What
//! the map server says meanwhile counts more than what it has said before.
//!
//! Where the old peer is a proxy that was found lost (`failover`), nothing is gained by leaving the
//! new one alone: it is given up for somebody else who may serve, or else tried until one of the two
//! answers.

use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Nonce, PublicKey, RequestFlags, Timestamp};

use super::armed::{Armed, Word};
use super::event::Event;
use super::install::What;
use super::limits::{
    APART, HANDOVER_DOUBT, HANDOVER_TRIPS, HANDOVERS, HANDSHAKE_POLL, SESSION, SILENCE,
};
use super::map_cache::{Chosen, State};
use super::{Action, Actions, Agent, Change, ChangeId, PeerStats, Timer};

impl Agent {
    /// Takes in the latest word on `prefix`. Says whether its present peer carries the traffic on for
    /// now, because there is no session with the one that is named.
    pub(super) fn hands_over(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        word: Word,
        actions: &mut Actions,
    ) -> bool {
        let mut again = false;
        if let Some(armed) = self.handovers.armed.get_mut(&prefix) {
            if armed.word.to == word.to {
                armed.word = word;
                return true;
            }
            again = armed.word.to.key == word.to.key;
        }
        let entry = self.cache.get(&prefix);
        let in_use = entry.filter(|entry| matches!(entry.state, State::Active | State::Routing));
        let from = in_use.and_then(|entry| entry.chosen);
        let Some(from) = from.filter(|from| again || self.is_to_arm(now, from, &word.to, actions))
        else {
            self.end_handover(prefix, actions);
            return false;
        };
        let left_alone = self.handovers.left_alone(&prefix, &word.to);
        if left_alone.is_some_and(|until| now < until) && !self.failover.is_lost(&from.key) {
            return true;
        }
        if !again {
            self.disarm(prefix, actions);
        }
        self.arm(now, prefix, from, word, actions);
        true
    }

    /// Whether a mapping waits for a session with `to` before it moves there.
    fn is_to_arm(
        &mut self,
        now: Timestamp,
        from: &Chosen,
        to: &Chosen,
        actions: &mut Actions,
    ) -> bool {
        // Where another key lives now, nobody has the old one.
        if from.key == to.key || from.endpoint == to.endpoint {
            return false;
        }
        let is_new = !self.peers.contains(&to.key);
        !self.has_session(now, &to.key)
            && self.handovers.armed.len() < HANDOVERS
            && (!is_new || self.has_room_for_peer(now, actions))
    }

    /// Whether there may be a session with `key`: none outlives that time without a packet, and whoever was lost
    /// may have lost it.
    fn has_session(&self, now: Timestamp, key: &PublicKey) -> bool {
        let idle = self.liveness.idle(now, key);
        let doubted = self.failover.doubts(key, self.liveness.received(key));
        self.peers.handshake_seen(key) && !doubted && idle.is_some_and(|idle| idle < SESSION)
    }

    fn arm(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        from: Chosen,
        word: Word,
        actions: &mut Actions,
    ) {
        let Chosen { key, endpoint } = word.to;
        let is_first = self.handovers.left_alone(&prefix, &word.to).is_none();
        let known = self.peers.handshake_seen(&key);
        let received = known.then(|| self.liveness.received(&key));
        let spec = self.peers.arm(key, endpoint, prefix);
        self.watch_liveness(now, key);
        let change = self.change(What::Arming(prefix), Change::SetPeer(spec), actions);
        let before = self.handovers.armed.remove(&prefix);
        let hold = self.config.hold;
        let until = now + hold;
        let armed = Armed {
            received,
            patience: now + self.patience(&prefix, &from.key),
            was_lost: self.failover.is_lost(&from.key)
                || before.as_ref().is_some_and(|before| before.was_lost),
            acks: before.map_or_else(Vec::new, |before| before.acks),
            ..Armed::new(word, from.key, change, until)
        };
        self.handovers.armed.insert(prefix, armed);
        let doubt = now + HANDOVER_DOUBT.min(hold / 2);
        self.deadlines.set(Timer::Handover(prefix), doubt);
        let entry = self.cache.get_mut(&prefix);
        if let Some(entry) = entry.filter(|_| is_first) {
            // The old peer serves until this is decided, also beyond its time.
            entry.expires = entry.expires.max(until + SILENCE);
            self.deadlines.set(Timer::Entry(prefix), entry.expires);
        }
        let (eid, from) = (self.eid(prefix), from.key);
        actions.event(Event::HandoverArmed { eid, from, to: key });
    }

    /// How long a new peer of `prefix` may take to shake hands while nobody carries the traffic: a
    /// handshake that is lost is started anew meanwhile, and its answer has as far a way as others had.
    fn patience(&self, prefix: &IpNet, from: &PublicKey) -> Duration {
        let entry = self.cache.get(prefix);
        let answer_took = entry.map_or(Duration::ZERO, |entry| entry.answer_took);
        let trip = answer_took.max(self.failover.round_trip(from));
        (HANDOVER_DOUBT + trip * HANDOVER_TRIPS).min(self.config.hold)
    }

    /// The data plane has the new peer of `prefix`, or would not take it.
    pub(super) fn armed(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        change: ChangeId,
        ok: bool,
        actions: &mut Actions,
    ) {
        let armed = self.handovers.armed.get_mut(&prefix);
        let Some(armed) = armed.filter(|armed| armed.change == change) else {
            return;
        };
        if !ok {
            actions.event(Event::ChangeFailed { what: "peer" });
            return self.handover_failed(now, prefix, actions);
        }
        armed.since = Some(now);
        let (from, key) = (armed.from, armed.word.to.key);
        // It was told of us before we were told of it, and waits for us to begin.
        actions.push(Action::Kick(key));
        self.watch_closely(now, prefix, key, actions);
        // It may be watched already, and be looked for late because it is told of.
        let look = now + self.look_interval(HANDSHAKE_POLL);
        self.deadlines.bring_forward(Timer::Handshakes, look);
        if self.failover.has_alternatives(&prefix) {
            self.watch_gap(now, prefix, [from, key]);
        }
    }

    /// Takes in counters; returns what can move now.
    pub(super) fn look_at_handovers(&mut self, now: Timestamp, stats: &[PeerStats]) -> Vec<IpNet> {
        let mut ready = Vec::new();
        for (prefix, armed) in &mut self.handovers.armed {
            let since = armed.since;
            let is_young = |peer: &&PeerStats| since.is_some_and(|since| since <= peer.read_at);
            for peer in stats.iter().filter(is_young) {
                if peer.key == armed.from {
                    armed.look_at_old(now, peer);
                } else if peer.key == armed.word.to.key
                    && armed.has_shaken_hands(peer)
                    && !self.watches.is_leaving_or_out(&peer.key)
                {
                    ready.push(*prefix);
                }
            }
        }
        ready
    }

    /// Gives `prefix` to its new peer, and takes it from the old one in the same change.
    pub(super) fn switch(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let entry = self.cache.get_mut(&prefix);
        let (Some(entry), Some(armed)) = (entry, self.handovers.armed.remove(&prefix)) else {
            return;
        };
        self.handovers.forget_refusal(&prefix);
        self.deadlines.cancel(&Timer::Handover(prefix));
        let Word {
            to,
            region,
            expires,
            refresh,
        } = armed.word;
        entry.expires = expires;
        entry.stale = None;
        let before = entry.chosen.replace(to);
        if let Some(before) = before {
            self.replace(now, prefix, before, to, actions);
        }
        let entry = self.cache.get(&prefix);
        let change = entry.and_then(|entry| entry.change);
        if let Some(pending) = change.and_then(|change| self.changes.get_mut(&change)) {
            pending.acks = armed.acks;
        }
        self.cache.set_region(prefix, region);
        self.deadlines.set(Timer::Entry(prefix), expires);
        self.deadlines.set(Timer::Refresh(prefix), refresh);
        let (eid, from, to) = (self.eid(prefix), armed.from, to.key);
        actions.event(Event::HandoverSwitched { eid, from, to });
    }

    /// The new peer of `prefix` has not answered in time. A dead old one is left all the same, but
    /// silence is certain only after a while: who has nothing to say answers data after 10 s.
    pub(super) fn handover_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(armed) = self.handovers.armed.get_mut(&prefix) else {
            return;
        };
        let is_lost = self.failover.is_lost(&armed.from);
        armed.was_lost |= is_lost;
        let (chosen, until, was_lost) = (armed.word.to, armed.until, armed.was_lost);
        let to = chosen.key;
        let has_other = self.failover.has_other(&prefix, &[armed.from, to]);
        if is_lost && has_other && armed.patience <= now {
            return self.name_instead(now, prefix, actions);
        }
        if now < until {
            // It may not have been told of us: a question makes up for that. If it does not help, something
            // keeps it from us.
            let was_asked = std::mem::replace(&mut armed.asked, true);
            let next = match (is_lost && has_other, was_asked) {
                (true, _) => armed.patience.min(until),
                (false, true) => until,
                (false, false) => now + APART.min((until - now) / 2),
            };
            if was_asked {
                self.is_apart(prefix, chosen);
            }
            self.ask_again(now, prefix, RequestFlags::default(), actions);
            self.deadlines.set(Timer::Handover(prefix), next);
            return;
        }
        let unanswered = armed.unanswered.filter(|_| !armed.heard);
        let certain = unanswered.map(|unanswered| unanswered + SILENCE);
        if certain.is_some_and(|certain| certain <= now) {
            return self.switch(now, prefix, actions);
        }
        if certain.is_none() && !is_lost {
            let has_refused = self.handovers.left_alone(&prefix, &chosen).is_some();
            return match was_lost || has_refused && self.failover.has_alternatives(&prefix) {
                // The old peer answers after all, or the map server goes on naming a proxy that does not.
                true => self.name_instead(now, prefix, actions),
                false => self.handover_failed(now, prefix, actions),
            };
        }
        let hold = self.config.hold;
        self.watch(now, to, hold);
        self.watch_closely(now, prefix, to, actions);
        if is_lost {
            // Whatever has failed may have taken the new peer's memory of us with it.
            self.ask_again(now, prefix, RequestFlags::default(), actions);
        }
        let next = certain.map_or(now + hold, |certain| certain.min(now + hold));
        self.deadlines.set(Timer::Handover(prefix), next);
    }

    /// Names the new peer of `prefix`, which does not answer, to the map server: somebody else may serve
    /// it, or its old peer does again.
    fn name_instead(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        if let Some(to) = self.handovers.moves_to(&prefix) {
            self.mark_lost(now, to, actions);
        }
        self.handover_failed(now, prefix, actions);
        self.ask_again(now, prefix, RequestFlags::default(), actions);
    }

    /// The mapping stays where it was. What announced the move is not acknowledged, so the map server
    /// repeats it, and later on the new peer gets another chance.
    pub(super) fn handover_failed(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let Some(armed) = self.handovers.armed.get(&prefix) else {
            return;
        };
        let to = armed.word.to;
        self.handovers.put_off(now, prefix, to);
        self.disarm(prefix, actions);
    }

    /// What `prefix` was to move to counts no more.
    pub(super) fn end_handover(&mut self, prefix: IpNet, actions: &mut Actions) {
        self.handovers.forget_refusal(&prefix);
        self.disarm(prefix, actions);
    }

    /// Takes the new peer of `prefix` out, unless it has other prefixes.
    fn disarm(&mut self, prefix: IpNet, actions: &mut Actions) {
        let Some(armed) = self.handovers.armed.remove(&prefix) else {
            return;
        };
        self.deadlines.cancel(&Timer::Handover(prefix));
        self.gaps.ends(&prefix);
        let (eid, from, to) = (self.eid(prefix), armed.from, armed.word.to.key);
        if self.peers.disarm(&to, &prefix) {
            self.peer_unwanted(to, actions);
        }
        for ack in armed.acks {
            self.leave_unacknowledged(ack);
        }
        actions.event(Event::HandoverFailed { eid, from, to });
    }

    /// Makes the acknowledgement `ack` wait until `prefix` has moved. Says for how many moves it
    /// waits, or nothing if that is put off.
    pub(super) fn await_handover(&mut self, prefix: &IpNet, ack: (usize, Nonce)) -> Option<usize> {
        let Some(armed) = self.handovers.armed.get_mut(prefix) else {
            return (!self.handovers.is_put_off(prefix)).then_some(0);
        };
        if armed.acks.contains(&ack) {
            return Some(0);
        }
        armed.acks.push(ack);
        Some(1)
    }
}
