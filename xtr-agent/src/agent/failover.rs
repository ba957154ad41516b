//! A proxy in use fails, and others serve the same: the client says so, and gets another one.
//!
//! Each proxy that packets flow to is watched (`guard`), by echoes through its tunnel and out of its
//! far side. Who answers them is configured, or learnt from packets (`witnesses`). Where nobody
//! beyond it answers, the proxy itself is asked, which tells of its tunnel and not of what is behind.
//!
//! A proxy that is lost is named to the map server, in the record that a Map-Request may carry (M,
//! RFC 9301 5.2), as a locator that cannot be reached (R is clear, 5.4). The answer names another one,
//! which knows us by then, and the mapping moves there as ever (`handover`). Who decides is the map
//! server: nothing goes back by itself, and nobody is with two proxies.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{
    Action as MapAction, Locator, PublicKey, Record, RequestFlags, Rloc, Timestamp, Ttl,
};

use super::choice::NOT_TO_BE_USED;
use super::event::Event;
use super::guard::Guard;
use super::limits::{
    ECHOES_OUT, GUARDED, LOOK_IDLE, LOST_AT_ONCE, LOST_FOR, PROBE_EVERY, WAYS_TO_PROXY,
};
use super::map_cache::{Chosen, State};
use super::witnesses::{Listening, Witnesses};
use super::{Action, Actions, Agent, PeerStats, Timer};

/// An echo that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo {
    pub(super) number: u16,
    pub(super) to: IpAddr,
    pub(super) through: PublicKey,
    pub(super) at: Timestamp,
}

/// A proxy that was found lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    endpoint: SocketAddr,
    until: Timestamp,
    /// Whether a witness had answered through it.
    is_proven: bool,
}

/// What is known of the proxies in use.
#[derive(Debug, Default)]
pub(super) struct Failover {
    /// Mappings that more than one peer could serve, and which.
    prefixes: BTreeMap<IpNet, BTreeSet<PublicKey>>,
    pub(super) guards: BTreeMap<PublicKey, Guard>,
    /// Destinations of packets, the latest one first.
    pub(super) learnt: VecDeque<IpAddr>,
    pub(super) witnesses: Witnesses,
    pub(super) listening: Listening,
    /// Echoes on their way, the latest one last.
    echoes: VecDeque<Echo>,
    next_number: u16,
    pub(super) lost: BTreeMap<PublicKey, Lost>,
    /// Peers that have been lost, and what had come from each by then: while that is all, a session with it may
    /// be one that it does not know any more.
    doubted: BTreeMap<PublicKey, u64>,
    /// Whether the time of the next look is set.
    pub(super) is_watching: bool,
}

impl Failover {
    /// Whether `key` was found lost, not long ago.
    pub(super) fn is_lost(&self, key: &PublicKey) -> bool {
        self.lost.contains_key(key)
    }

    /// Whether others could serve `prefix` as well.
    pub(super) fn has_alternatives(&self, prefix: &IpNet) -> bool {
        self.prefixes.contains_key(prefix)
    }

    /// Whether others could serve anything as well.
    pub(super) fn has_any_alternatives(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// What is known of `key`, if it is watched.
    pub(super) fn guard(&mut self, key: &PublicKey) -> Option<&mut Guard> {
        self.guards.get_mut(key)
    }

    /// Whether echoes tell when `key` is lost.
    pub(super) fn is_proven(&self, key: &PublicKey) -> bool {
        self.guards.get(key).is_some_and(|guard| guard.is_proven)
    }

    /// Those who are watched that packets flow to.
    pub(super) fn flowing(&self, now: Timestamp) -> Vec<PublicKey> {
        let guards = self.guards.iter();
        let flowing = guards.filter(|(_, guard)| guard.is_used(now));
        flowing.map(|(key, _)| *key).collect()
    }

    /// Whether somebody could serve `prefix` who is none of `besides`, and was not found lost.
    pub(super) fn has_other(&self, prefix: &IpNet, besides: &[PublicKey]) -> bool {
        let mut keys = self.prefixes.get(prefix).into_iter().flatten();
        keys.any(|key| !besides.contains(key) && !self.is_lost(key))
    }

    /// How long answers to echoes through `key` took lately, as far as there were any.
    pub(super) fn round_trip(&self, key: &PublicKey) -> Duration {
        let guard = self.guards.get(key);
        guard.map_or(Duration::ZERO, |guard| guard.round_trip)
    }

    /// Whether nobody is watched any more, and nothing is kept of those who were.
    #[cfg(test)]
    pub(super) fn is_over(&self) -> bool {
        let over = self.prefixes.is_empty() && self.guards.is_empty();
        over && self.lost.is_empty() && self.doubted.is_empty()
    }

    /// Whether nothing has come from `key` since it was lost, when `received` is what has come in all.
    pub(super) fn doubts(&self, key: &PublicKey, received: u64) -> bool {
        self.doubted.get(key).is_some_and(|then| received <= *then)
    }

    /// The locators that cannot be reached, if there are any: the latest ones, if those are many.
    ///
    /// If of those who serve `prefix` none is left, it is only the latest one: another one may be back, which
    /// nobody finds out who does not try it. But if no witness has ever answered through that one, it may be the
    /// witnesses that are lost.
    fn unreachable(&self, prefix: &IpNet) -> Vec<Locator> {
        let mut lost: Vec<_> = self.lost.iter().collect();
        lost.sort_by_key(|(_, lost)| Reverse(lost.until));
        if !self.has_other(prefix, &[]) {
            let keys = self.prefixes.get(prefix);
            let serves = |key: &PublicKey| keys.is_some_and(|keys| keys.contains(key));
            let latest = lost.iter().find(|(key, _)| serves(key));
            if let Some(latest) = latest.filter(|(_, lost)| lost.is_proven).copied() {
                lost = vec![latest];
            }
        }
        let lost = lost.into_iter().take(LOST_AT_ONCE);
        let locators = lost.map(|(key, lost)| out_of_reach(*key, lost.endpoint));
        locators.collect()
    }

    /// Notes an echo to `to`, and returns its number.
    pub(super) fn asks(&mut self, now: Timestamp, to: IpAddr, through: PublicKey) -> u16 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        if self.echoes.len() >= ECHOES_OUT {
            self.echoes.pop_front();
        }
        self.echoes.push_back(Echo {
            number,
            to,
            through,
            at: now,
        });
        number
    }

    /// Remembers that `witness` has answered, which may be one of those `configured`.
    pub(super) fn believe(&mut self, witness: IpAddr, configured: &[IpAddr]) {
        let learnt = &self.learnt;
        let may_be_asked = |it: &IpAddr| configured.contains(it) || learnt.contains(it);
        let is_beyond = may_be_asked(&witness);
        self.witnesses.believe(witness, is_beyond, may_be_asked);
    }

    /// Those who were asked in vain through `key`, and are not among `own`, its own addresses, are no witnesses any
    /// more, until they answer again.
    pub(super) fn forget_witnesses(&mut self, key: &PublicKey, own: &[IpAddr]) {
        let Some(guard) = self.guards.get_mut(key) else {
            return;
        };
        let silent = guard.silent().iter().filter(|it| !own.contains(it));
        let silent: Vec<IpAddr> = silent.copied().collect();
        guard.answerer.take_if(|it| silent.contains(it));
        silent.iter().for_each(|it| self.witnesses.forget(it));
    }

    /// Takes out the echo with this number.
    pub(super) fn take_echo(&mut self, is_it: impl Fn(&Echo) -> bool) -> Option<Echo> {
        let place = self.echoes.iter().position(is_it)?;
        self.echoes.remove(place)
    }

    /// Nobody waits for answers to what was sent through `key` any more.
    pub(super) fn give_up(&mut self, key: &PublicKey) {
        self.echoes.retain(|echo| echo.through != *key);
    }

    /// Takes out what was sent to the same witness before `answered`, and says how much that was.
    pub(super) fn give_up_before(&mut self, answered: &Echo) -> u32 {
        let before = self.echoes.len();
        self.echoes.retain(|echo| {
            let alike = echo.to == answered.to && echo.through == answered.through;
            !alike || echo.at > answered.at
        });
        u32::try_from(before - self.echoes.len()).unwrap_or(u32::MAX)
    }
}

impl Agent {
    /// Takes in who else could serve `prefix`, as `record` tells. One that is not to be used, because it is
    /// drained, may be what the map server gives us when all others are lost.
    pub(super) fn note_alternatives(&mut self, now: Timestamp, prefix: IpNet, record: &Record) {
        let own = &self.config.public_key;
        let keys = record.locators.iter().filter_map(|it| match it.rloc {
            Rloc::WireGuard { endpoint, key } => {
                (key != *own && self.is_reachable(&endpoint)).then_some(key)
            }
            Rloc::Plain(_) => None,
        });
        let keys: BTreeSet<_> = keys.collect();
        let failover = &mut self.failover;
        if keys.len() < 2 {
            failover.prefixes.remove(&prefix);
            return;
        }
        if failover.prefixes.len() >= GUARDED && !failover.has_alternatives(&prefix) {
            return;
        }
        failover.prefixes.insert(prefix, keys);
        self.begin_watching(now);
    }

    /// The proxies in use that others could take the place of.
    fn proxies_in_use(&mut self) -> BTreeSet<PublicKey> {
        let Self {
            failover, cache, ..
        } = self;
        let mut used = BTreeSet::new();
        failover.prefixes.retain(|prefix, _| {
            let entry = cache.get(prefix);
            let chosen = entry.and_then(|entry| Some((entry.state, entry.chosen?.key)));
            if let Some((State::Routing | State::Active, key)) = chosen {
                used.insert(key);
            }
            chosen.is_some()
        });
        used
    }

    /// Wants the counters of those who are watched: the proxies in use, and who can be reached in several
    /// ways.
    pub(super) fn guards_due(&mut self, now: Timestamp, actions: &mut Actions) {
        let proxies = self.proxies_in_use();
        let mut used = proxies.clone();
        used.extend(self.reached_in_several_ways(actions));
        let failover = &mut self.failover;
        failover.guards.retain(|key, _| used.contains(key));
        failover.lost.retain(|_, lost| lost.until > now);
        failover.witnesses.count_again(now);
        let peers = &self.peers;
        failover.doubted.retain(|key, _| peers.contains(key));
        self.release_uplinks(now, actions);
        let failover = &mut self.failover;
        for key in &used {
            let guard = failover.guards.entry(*key).or_default();
            guard.is_proxy = proxies.contains(key);
        }
        if failover.prefixes.is_empty() {
            failover.lost.clear();
            failover.doubted.clear();
            if self.locators.is_empty() {
                self.failover.is_watching = false;
                self.stop_listening(actions);
                return;
            }
        }
        let flowing = self.failover.flowing(now);
        let interval = match flowing.is_empty() {
            true => LOOK_IDLE,
            false => PROBE_EVERY,
        };
        self.listen(now, &flowing, actions);
        if !used.is_empty() {
            actions.push(Action::ReadPeerStats(used.into_iter().collect()));
        }
        let next = now + self.look_interval(interval);
        self.deadlines.set(Timer::Guards, next);
    }

    /// Takes in counters: sends echoes through the proxies that packets flow to, and leaves those that
    /// are lost.
    pub(super) fn look_at_guards(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        for peer in stats {
            let key = peer.key;
            let Some(guard) = self.failover.guards.get_mut(&key) else {
                continue;
            };
            let was_used = guard.is_used(now);
            if !guard.look(now, peer) {
                continue;
            }
            if !was_used && (guard.is_used(now) || guard.has_initiated()) {
                // From now on looks are frequent.
                self.deadlines.set(Timer::Guards, now + PROBE_EVERY);
            }
            let (is_lost, is_proxy) = (guard.is_lost(now), guard.is_proxy);
            if guard.sends_meanwhile() {
                self.locators.sends(&key);
            }
            self.look_at_endpoint(now, peer, actions);
            // Another way to it costs nobody anything but time.
            if is_lost && !(self.may_reroute(&key) && self.reroute(now, key, actions)) {
                if is_proxy {
                    self.locators.give_up(&key);
                    self.proxy_lost(now, key, actions);
                } else {
                    self.asked_in_vain(now, key, actions);
                }
            }
            self.send_echo(now, key, actions);
        }
    }

    /// Whether another way to `key` is tried before anybody else takes its place.
    fn may_reroute(&self, key: &PublicKey) -> bool {
        let mut prefixes = self.failover.prefixes.keys();
        let is_replaced = prefixes.any(|prefix| {
            let entry = self.cache.get(prefix);
            let chosen = entry.and_then(|entry| entry.chosen);
            chosen.is_some_and(|chosen| chosen.key == *key)
                && self.failover.has_other(prefix, &[*key])
        });
        !is_replaced || self.locators.left_in_vain(key) < WAYS_TO_PROXY
    }

    /// A proxy in use is lost: asks for another one.
    fn proxy_lost(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let is_proven = self.failover.guards.get(&key).map(|guard| guard.is_proven);
        self.mark_lost(now, key, actions);
        if is_proven == Some(false) && self.peers.handshake_seen(&key) {
            // One after the other would seem lost if it were the witnesses that are.
            let mut served = self.failover.prefixes.iter();
            let is_last = !served.any(|(prefix, keys)| {
                keys.contains(&key) && self.failover.has_other(prefix, &[key])
            });
            self.failover.witnesses.have_not_answered(now, is_last);
        }
        self.ask_instead_of(now, key, actions);
    }

    /// There has never been a session with the peer `key`, and nobody has answered for as long as packets
    /// wait: one that others could take the place of is lost.
    pub(super) fn no_session(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        if self.asks_for(&key).is_some() && !self.peers.handshake_seen(&key) {
            self.mark_lost(now, key, actions);
            self.ask_instead_of(now, key, actions);
        }
    }

    /// Asks for what the lost proxy `key` serves. The map server tells us of all of it.
    fn ask_instead_of(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        if let Some(prefix) = self.asks_for(&key) {
            self.ask_again(now, prefix, RequestFlags::default(), actions);
        }
    }

    /// What we could ask for if the proxy `key` were lost: whoever has no address of a family knows
    /// mappings of it, and asks for none.
    fn asks_for(&self, key: &PublicKey) -> Option<IpNet> {
        let mut prefixes = self.failover.prefixes.keys();
        let served = prefixes.find(|prefix| {
            let entry = self.cache.get(prefix);
            let chosen = entry.and_then(|entry| entry.chosen);
            chosen.is_some_and(|chosen| chosen.key == *key) && self.own_source(prefix).is_some()
        });
        served.copied()
    }

    /// Notes that the peer `key` is of no use at present.
    pub(super) fn mark_lost(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        if let Some(endpoint) = self.peers.endpoint(&key) {
            self.mark_lost_at(now, Chosen { key, endpoint }, actions);
        }
    }

    fn mark_lost_at(
        &mut self,
        now: Timestamp,
        Chosen { key, endpoint }: Chosen,
        actions: &mut Actions,
    ) {
        // Where nobody could take its place, nobody wants to know, and nothing would end it.
        if self.failover.prefixes.is_empty() {
            return;
        }
        let until = now + LOST_FOR;
        let guard = self.failover.guards.get(&key);
        let is_proven = guard.is_some_and(|guard| guard.is_proven);
        let received = guard.map_or(0, Guard::received);
        let received = received.max(self.liveness.received(&key));
        self.failover.doubted.insert(key, received);
        let lost = Lost {
            endpoint,
            until,
            is_proven,
        };
        self.failover.lost.insert(key, lost);
        actions.event(Event::ProxyLost { key });
    }

    /// A proxy in use has answered after all: nobody else is looked for, unless the map server has
    /// named one already that does not answer.
    pub(super) fn proxy_found(&mut self, now: Timestamp, key: &PublicKey, actions: &mut Actions) {
        actions.event(Event::ProxyFound { key: *key });
        let mut marked = None;
        for prefix in self.peers.prefixes(key) {
            if let Some(other) = self.handovers.refused(&prefix) {
                // It may be refused for several prefixes, and is lost once.
                if self.failover.has_alternatives(&prefix)
                    && marked.replace(other.key) != Some(other.key)
                {
                    self.mark_lost_at(now, other, actions);
                }
                self.ask_again(now, prefix, RequestFlags::default(), actions);
            }
        }
    }

    /// What a question about `prefix` says of locators that cannot be reached.
    pub(super) fn unreachable_record(&self, prefix: &IpNet) -> Option<Record> {
        let locators = self.failover.unreachable(prefix);
        let says = self.failover.has_alternatives(prefix) && !locators.is_empty();
        says.then(|| Record {
            locators,
            ..self.bare_record(prefix)
        })
    }

    /// A record about `prefix` that names no locator.
    pub(super) fn bare_record(&self, prefix: &IpNet) -> Record {
        Record {
            eid: self.eid(*prefix),
            ttl: Ttl::from_minutes(1),
            action: MapAction::NoAction,
            authoritative: false,
            locators: Vec::new(),
        }
    }
}

/// A locator that cannot be reached (R is clear, RFC 9301 5.4).
pub(super) const fn out_of_reach(key: PublicKey, endpoint: SocketAddr) -> Locator {
    Locator {
        priority: NOT_TO_BE_USED,
        weight: 0,
        local: false,
        probed: false,
        reachable: false,
        rloc: Rloc::WireGuard { endpoint, key },
    }
}

#[cfg(test)]
mod tests;
