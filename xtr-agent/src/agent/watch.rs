//! Handshakes that are awaited: looked for, started anew when they were lost, and given up.
//!
//! A data plane keeps only so many packets while it shakes hands (the kernel 128 per peer, and
//! drops the oldest), so it gets no more than [`STAGED`] of them before the handshake was seen.
//! The kernel repeats a lost initiation only after five seconds, whatever it is told. Only a peer
//! that is taken out and put back starts at once, and loses the packets it kept, so copies of them
//! are kept here.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};

use super::event::{DropReason, Event};
use super::hold::{Held, HoldBudget};
use super::install::What;
use super::ip_header::{Unreachable, addresses};
use super::limits::{
    HANDSHAKE_LOOKS, HANDSHAKE_POLL, HANDSHAKE_POLL_LATER, LOOK_WHEN_TOLD, READING_A_PEER,
    READING_WHEN_TOLD, REKINDLE, REKINDLE_LOOK, REKINDLE_LOOK_SHARE, REKINDLE_MAX, STAGED,
};
use super::map_cache::{Entry, State};
use super::remove::Object;
use super::{Action, Actions, Agent, Change, PeerStats, Timer};

/// A peer whose first handshake is awaited.
#[derive(Debug)]
struct Watch {
    since: Timestamp,
    /// When looking for it ends.
    until: Timestamp,
    /// Packets that the data plane has got and may not have sent, oldest first.
    staged: Held,
    /// How many it got, copies or not.
    staged_count: usize,
    /// The peer is being taken out to be put back, and later packets wait for that. What it kept
    /// is taken for not sent if it is out by then.
    leaving: Option<Timestamp>,
    /// It was taken out, with what it kept.
    is_out: bool,
    /// When to start anew, and how long to wait after that.
    rekindle: Option<(Timestamp, Duration)>,
    /// Whether it was started anew before.
    is_anew: bool,
    /// The data plane tells of the handshake: this end has started it, and can reach the peer.
    is_told: bool,
}

impl Watch {
    /// What the data plane got now would be lost.
    fn is_leaving_or_out(&self) -> bool {
        self.leaving.is_some() || self.is_out
    }

    /// Whether the handshake is told of, and need not be started anew yet.
    fn can_wait(&self, now: Timestamp) -> bool {
        self.is_told && self.rekindle.is_some_and(|(at, _)| at > now)
    }
}

/// All peers whose first handshake is awaited.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_key: BTreeMap<PublicKey, Watch>,
    /// When sessions that far ends have started are looked for again, while all others are told of.
    look_again: Timestamp,
}

impl Watches {
    /// The peer `key` was taken out, with what it kept. If that took long, it may have shaken hands
    /// before, and sent what it kept: nothing is sent twice.
    pub(super) fn taken_out(&mut self, now: Timestamp, key: &PublicKey, budget: &mut HoldBudget) {
        if let Some(watch) = self.by_key.get_mut(key) {
            watch.is_out = true;
            if watch.leaving.is_none_or(|until| until < now) {
                watch.staged.take(budget);
            }
        }
    }

    /// Whether the peer `key` was taken out and is not back.
    pub(super) fn is_out(&self, key: &PublicKey) -> bool {
        self.by_key.get(key).is_some_and(|watch| watch.is_out)
    }

    /// Whether the peer `key` is being taken out, or was, to be put back: a session with it is over.
    pub(super) fn is_leaving_or_out(&self, key: &PublicKey) -> bool {
        self.by_key.get(key).is_some_and(Watch::is_leaving_or_out)
    }

    /// Takes out what the data plane got for the peer `key` and may not have sent, oldest first.
    pub(super) fn staged(&mut self, key: &PublicKey, budget: &mut HoldBudget) -> VecDeque<Bytes> {
        let watch = self.by_key.get_mut(key);
        watch.map_or_else(VecDeque::new, |watch| watch.staged.take(budget))
    }

    /// When the first of them is to be started anew, given up, or looked for.
    fn next_due(&self) -> Timestamp {
        let due = self.by_key.values().flat_map(|watch| {
            let at = watch.rekindle.map(|(at, _)| at);
            at.into_iter().chain([watch.until])
        });
        due.fold(self.look_again, Timestamp::min)
    }

    /// Ends the watch of `key`.
    pub(super) fn remove(&mut self, key: &PublicKey, budget: &mut HoldBudget) {
        if let Some(mut watch) = self.by_key.remove(key) {
            watch.staged.take(budget);
        }
    }
}

impl Agent {
    /// Looks for the first handshake with `key` for `time` at least.
    pub(super) fn watch(&mut self, now: Timestamp, key: PublicKey, time: Duration) {
        if !self.watches.by_key.contains_key(&key) {
            let next = now + self.look_interval(HANDSHAKE_POLL);
            self.deadlines.bring_forward(Timer::Handshakes, next);
        }
        let until = now + time;
        let watch = self.watches.by_key.entry(key).or_insert_with(|| Watch {
            since: now,
            until,
            staged: Held::default(),
            staged_count: 0,
            leaving: None,
            is_out: false,
            rekindle: None,
            is_anew: false,
            is_told: false,
        });
        watch.until = watch.until.max(until);
    }

    /// Looks for the first handshake with `key` and starts it anew when it is not seen in time:
    /// somebody waits for it. Where the data plane tells of handshakes, it also starts it.
    pub(super) fn watch_closely(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        key: PublicKey,
        actions: &mut Actions,
    ) {
        let watch = self.watches.by_key.get(&key);
        if watch.is_some_and(|watch| watch.rekindle.is_some()) {
            return;
        }
        self.watch(now, key, self.config.hold);
        let entry = self.cache.get(&prefix);
        // The answer took its way past the far end, so a handshake takes no longer.
        let round_trip = entry.map_or(Duration::ZERO, |entry| entry.answer_took);
        let mut wait = (round_trip * 2).clamp(REKINDLE, REKINDLE_MAX);
        // Both ends may be at it, and must not start at the same instant.
        if self.config.public_key > key {
            wait = wait * 3 / 2;
        }
        if let Some(watch) = self.watches.by_key.get_mut(&key) {
            watch.rekindle = Some((now + wait, wait * 2));
        }
        self.await_told(key, actions);
    }

    /// Starts a handshake and wants to be told of it, where that is possible; says whether it is.
    /// One that only the far end can start is not told of, nor one that it starts first.
    fn await_told(&mut self, key: PublicKey, actions: &mut Actions) -> bool {
        if !self.config.tells_handshakes {
            return false;
        }
        actions.push(Action::AwaitHandshake(key));
        let endpoint = self.peers.endpoint(&key);
        let reaches = endpoint.is_some_and(|endpoint| self.reaches(endpoint.ip()));
        if let Some(watch) = self.watches.by_key.get_mut(&key) {
            watch.is_told = reaches;
        }
        true
    }

    /// The data plane tells of a handshake.
    pub(super) fn handshake_told(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        // What is said of a peer that was taken out is about a session that is gone.
        if !self.peers.contains(&key) || self.watches.is_leaving_or_out(&key) {
            return;
        }
        self.apart.heard(&key);
        if self.peers.note_handshake(&key) {
            actions.event(Event::Handshake { key });
        }
        self.traces.seen(now, key, 0);
        self.open_up(key, actions);
    }

    /// A packet of an opening mapping is there: hands on what the data plane has room for.
    pub(super) fn pump(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let entry = self.cache.get(&prefix);
        let Some(chosen) = entry.and_then(|entry| entry.chosen.filter(|_| !entry.held.is_empty()))
        else {
            return;
        };
        let key = chosen.key;
        if !self.config.tells_handshakes && !self.watches.by_key.contains_key(&key) {
            // It may have had one long since.
            actions.push(Action::ReadPeerStats(vec![key]));
        }
        self.watch_closely(now, prefix, key, actions);
        let (Some(entry), Some(watch)) = (
            self.cache.get_mut(&prefix),
            self.watches.by_key.get_mut(&key),
        ) else {
            return;
        };
        if watch.is_leaving_or_out() {
            return;
        }
        let mut count = 0;
        while watch.staged_count < STAGED
            && let Some(packet) = entry.held.pop(&mut self.budget)
        {
            watch.staged_count += 1;
            watch.staged.keep(packet.clone(), &mut self.budget);
            actions.push(Action::Reinject(packet));
            count += 1;
        }
        if count > 0 {
            let eid = self.eid(prefix);
            actions.event(Event::Reinjected {
                eid,
                packets: count,
            });
        }
    }

    pub(super) fn look_for_handshakes(&mut self, now: Timestamp, actions: &mut Actions) {
        let over = self
            .watches
            .by_key
            .iter()
            .filter(|(_, watch)| watch.until <= now);
        let over: Vec<PublicKey> = over.map(|(key, _)| *key).collect();
        for key in over {
            self.no_handshake(now, key, actions);
        }
        let latest = self.watches.by_key.values().map(|watch| watch.since).max();
        let Some(latest) = latest.max(self.handovers.latest()) else {
            return;
        };
        let told_of_all = self.is_told_of_all(now);
        if told_of_all && now < self.watches.look_again {
            return self
                .deadlines
                .set(Timer::Handshakes, self.watches.next_due());
        }
        let rest = LOOK_WHEN_TOLD.max(READING_WHEN_TOLD * self.peer_count());
        self.watches.look_again = now + rest;
        let watched = self.watches.by_key.keys().copied();
        let mut keys: Vec<PublicKey> = watched.chain(self.handovers.peers()).collect();
        keys.sort_unstable();
        keys.dedup();
        let due = |watch: &Watch| watch.rekindle.is_some_and(|(at, _)| at <= now);
        actions.push(if self.watches.by_key.values().any(due) {
            Action::ReadPeerStatsAnew(keys)
        } else {
            Action::ReadPeerStats(keys)
        });
        let next = if told_of_all {
            self.watches.next_due()
        } else if now - latest < HANDSHAKE_LOOKS {
            now + self.look_interval(HANDSHAKE_POLL)
        } else {
            now + self.look_interval(HANDSHAKE_POLL_LATER)
        };
        self.deadlines.set(Timer::Handshakes, next);
    }

    /// Whether all handshakes that are awaited are told of.
    fn is_told_of_all(&self, now: Timestamp) -> bool {
        let mut watches = self.watches.by_key.values();
        self.handovers.latest().is_none() && watches.all(|watch| watch.can_wait(now))
    }

    /// The kernel has no way to read one peer but to read them all.
    pub(super) fn look_interval(&self, interval: Duration) -> Duration {
        interval.max(READING_A_PEER * self.peer_count())
    }

    fn peer_count(&self) -> u32 {
        u32::try_from(self.peers.len()).unwrap_or(u32::MAX)
    }

    /// The handshake with `key` was not seen in time: those who waited are told, and the data
    /// plane goes on trying, with what comes from now on. The far end may be where only it can start
    /// a handshake, and have a session that we have lost: the map server tells it of us once more.
    fn no_handshake(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let watch = self.watches.by_key.get(&key);
        let in_vain = watch.is_some_and(|watch| watch.rekindle.is_some());
        let mut wanted = watch.is_some_and(|watch| watch.staged_count > 0);
        self.refuse_staged(&key, actions);
        self.watches.remove(&key, &mut self.budget);
        if !in_vain {
            return;
        }
        self.no_session(now, key, actions);
        for prefix in self.peers.prefixes(&key) {
            let Some(entry) = self.cache.get_mut(&prefix) else {
                continue;
            };
            if entry.state != State::Opening {
                continue;
            }
            for packet in entry.held.take(&mut self.budget) {
                let (why, reason) = (Unreachable::Host, DropReason::NoHandshake);
                self.refusals.refuse(&packet, why, reason, actions);
            }
            self.traces.lost(now, prefix, DropReason::NoHandshake);
            self.release(prefix, actions);
            // The map server tells it of us whichever of its prefixes is asked for.
            let asks = std::mem::take(&mut wanted) && !self.resolver.is_refreshing(&prefix);
            if asks && self.second_questions.take(now) {
                self.ask_another(now, prefix, &key, actions);
                self.liveness.ask_for(&key);
            }
        }
    }

    /// Refuses what the data plane had got for a peer that it would not take back.
    fn refuse_staged(&mut self, key: &PublicKey, actions: &mut Actions) {
        let watch = self.watches.by_key.get_mut(key);
        let Some(watch) = watch.filter(|watch| watch.is_out) else {
            return;
        };
        for packet in watch.staged.take(&mut self.budget) {
            let (why, reason) = (Unreachable::Host, DropReason::NoHandshake);
            self.refusals.refuse(&packet, why, reason, actions);
        }
    }

    /// Takes in that a peer has, or has not, had a handshake.
    pub(super) fn handshake_looked_for(
        &mut self,
        now: Timestamp,
        peer: &PeerStats,
        actions: &mut Actions,
    ) {
        if !self.peers.handshake_seen(&peer.key) {
            self.rekindle(now, peer, actions);
            return;
        }
        self.traces.seen(now, peer.key, peer.rx_bytes);
        self.open_up(peer.key, actions);
    }

    /// There is a session with a peer: nothing waits for it any more.
    fn open_up(&mut self, key: PublicKey, actions: &mut Actions) {
        self.watches.remove(&key, &mut self.budget);
        if self.opening.is_empty() {
            return;
        }
        for prefix in self.peers.prefixes(&key) {
            let waits = |entry: &Entry| match entry.state {
                State::Awaiting(_) => !entry.mutual,
                State::Opening => true,
                State::Installing
                | State::Routing
                | State::Active
                | State::Dozing
                | State::Negative(_) => false,
            };
            if self.cache.get(&prefix).is_some_and(waits) {
                self.release(prefix, actions);
            }
        }
    }

    /// Starts a handshake that was lost once more, by taking the peer out and putting it back. One
    /// that has routes is only told to, because what takes them would find no peer; and so is one
    /// that has to find us, because we would lose the address under which it may have done so.
    fn rekindle(&mut self, now: Timestamp, peer: &PeerStats, actions: &mut Actions) {
        let key = peer.key;
        let watch = self.watches.by_key.get_mut(&key);
        // A slow data plane takes it out and puts it back once at a time.
        let Some(watch) = watch.filter(|watch| !watch.is_leaving_or_out()) else {
            return;
        };
        let Some((at, pause)) = watch.rekindle.filter(|(at, _)| *at <= now) else {
            return;
        };
        // A data plane that repeats itself needs no help where nothing waits. The far end may just have answered, and
        // sent what waits there right behind it, which nobody could read without that session.
        let nothing_waits = self.config.tells_handshakes && watch.staged_count == 0;
        // It may have shaken hands since the counters were read, and sent what it kept.
        let awaited = peer.read_at - watch.since;
        let believed_until = peer.read_at + REKINDLE_LOOK.max(awaited / REKINDLE_LOOK_SHARE);
        if believed_until < now {
            return;
        }
        watch.rekindle = Some((at.max(now) + pause, pause * 2));
        let prefixes = self.peers.prefixes(&key);
        let has_route = |prefix: &IpNet| {
            let entry = self.cache.get(prefix);
            entry.is_some_and(|entry| matches!(entry.state, State::Routing | State::Active))
        };
        let has_routes = prefixes.iter().any(has_route);
        let Some(mut spec) = self.peers.restored(&key, true) else {
            return;
        };
        let reaches = spec
            .endpoint
            .is_none_or(|endpoint| self.reaches(endpoint.ip()));
        // A NAT of its own lets nobody in, perhaps, but it may just have found us.
        let is_hidden = |prefix: &IpNet| self.apart.is_hidden(prefix, &key);
        let reaches = reaches && (self.nat.is_behind() || !prefixes.iter().any(is_hidden));
        if !reaches || nothing_waits || has_routes {
            if !self.await_told(key, actions) {
                actions.push(Action::Kick(key));
            }
            return;
        }
        let mut is_anew = false;
        if let Some(watch) = self.watches.by_key.get_mut(&key) {
            watch.leaving = Some(believed_until);
            is_anew = std::mem::replace(&mut watch.is_anew, true);
        }
        // One handshake is easily lost. After two it may be the way to it that leads nowhere.
        if is_anew && let Some(path) = self.redirect(now, key, actions) {
            let placed = self.locators.place(now, &key);
            spec.endpoint = placed.or(Some(path.to));
        }
        actions.event(Event::HandshakeRestarted { key });
        self.change(What::Rekindling(key), Change::RemovePeer(key), actions);
        self.change(What::Rekindled(key), Change::SetPeer(spec), actions);
    }

    /// Whether a packet goes to the peer `key`.
    fn goes_to(&mut self, packet: &[u8], key: &PublicKey) -> bool {
        let dst = addresses(packet).map(|(_, dst)| dst);
        let found = dst.and_then(|dst| self.cache.lookup(dst));
        found.is_some_and(|(_, entry)| entry.chosen.is_some_and(|chosen| chosen.key == *key))
    }

    /// The peer is back, or not: what it kept when it was taken out is sent on again.
    pub(super) fn rekindled(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        ok: bool,
        actions: &mut Actions,
    ) {
        let Some(watch) = self.watches.by_key.get_mut(&key) else {
            return self.repair_unless(ok, now, Object::Peer(key));
        };
        if !ok {
            if !watch.is_out {
                watch.leaving = None;
            }
            // Otherwise packets wait until it is put back after all: what the data plane gets for
            // a peer that it does not have is lost.
            actions.event(Event::ChangeFailed { what: "peer" });
            return self.repair_unless(ok, now, Object::Peer(key));
        }
        watch.leaving = None;
        // A data plane that would not let go of the peer still has them.
        let staged = watch.staged.iter().filter(|_| watch.is_out);
        let packets: Vec<Bytes> = staged.cloned().collect();
        watch.is_out = false;
        let is_kicked = packets.is_empty();
        if !is_kicked {
            watch.staged.take(&mut self.budget);
        }
        for packet in packets {
            // What goes to another peer by now is not this one's to keep.
            if self.goes_to(&packet, &key)
                && let Some(watch) = self.watches.by_key.get_mut(&key)
            {
                watch.staged.keep(packet.clone(), &mut self.budget);
            }
            actions.push(Action::Reinject(packet));
        }
        if !self.await_told(key, actions) && is_kicked {
            actions.push(Action::Kick(key));
        }
        for prefix in self.peers.prefixes(&key) {
            if self
                .cache
                .get(&prefix)
                .is_some_and(|entry| entry.state == State::Opening)
            {
                self.pump(now, prefix, actions);
            }
        }
    }
}
