//! Several locators at the far end, several uplinks here: whoever falls silent is reached another way.
//!
//! While packets flow to such a far end it is watched as proxies are (`failover`), by echoes to an
//! address of its own. When none comes back its *endpoint* moves to the next of its locators: the peer,
//! its session and its AllowedIPs stay, so nothing has to be shaken hands over or asked for. If it has
//! no other, or none of them answers, packets to it leave by our next uplink.
//!
//! WireGuard answers where it was heard from. So the end that moves decides for both, and one packet
//! that gets through along the new way is enough.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{PublicKey, Record, Timestamp};

use super::config::Uplink;
use super::event::Event;
use super::install::What;
use super::limits::LOOK_IDLE;
use super::locators::{Held, Known, Path, Seen, Turn};
use super::map_cache::{Chosen, State};
use super::peers::PeerSpec;
use super::{Action, Actions, Agent, Change, PeerStats, Timer};

impl Agent {
    /// Takes in how the peer of a mapping, `chosen`, can be reached, as `record` says.
    pub(super) fn note_locators(
        &mut self,
        now: Timestamp,
        record: &Record,
        chosen: Chosen,
        actions: &mut Actions,
    ) {
        let Chosen { key, endpoint } = chosen;
        let is_watched = self.has_uplinks(endpoint);
        // Most have a single locator, as we have.
        let is_single = record.locators.len() < 2 && !is_watched && !self.locators.is_known(&key);
        if record.locators.is_empty() || is_single {
            return;
        }
        let told = self.locators_of(record, &chosen);
        let turn = self.locators.learn(now, key, told, endpoint, is_watched);
        self.leave_from(turn.unwrap_or_default(), actions);
        self.begin_watching(now);
    }

    /// Whether there is more than one uplink that packets to `to` can be made to leave by.
    pub(super) fn has_uplinks(&self, to: SocketAddr) -> bool {
        let ours = self
            .config
            .uplinks()
            .filter(|it| it.is_ipv4() == to.is_ipv4());
        ours.count() > 1
    }

    /// Looks at peers from time to time, if there are any to look at.
    pub(super) fn begin_watching(&mut self, now: Timestamp) {
        let is_wanted = !self.locators.is_empty() || self.failover.has_any_alternatives();
        if is_wanted && !std::mem::replace(&mut self.failover.is_watching, true) {
            self.deadlines.set(Timer::Guards, now + LOOK_IDLE);
        }
    }

    /// The peers in use that can be reached in several ways. Those that are gone are forgotten.
    pub(super) fn reached_in_several_ways(&mut self, actions: &mut Actions) -> Vec<PublicKey> {
        let peers = &self.peers;
        for left in self.locators.retain(|key| peers.contains(key)) {
            self.let_go(left, actions);
        }
        let Self {
            locators,
            peers,
            cache,
            config,
            ..
        } = self;
        let uplinks = config.uplinks().count();
        let keys = locators.keys().filter(|key| {
            let is_used = |prefix| {
                let entry = cache.get(&prefix);
                entry.is_some_and(|entry| matches!(entry.state, State::Routing | State::Active))
            };
            (uplinks > 1 || locators.of(key).len() > 1)
                && peers.prefixes(key).into_iter().any(is_used)
        });
        keys.copied().collect()
    }

    /// The peer `key` is silent. Reaches it another way, unless all were tried; says whether it does.
    pub(super) fn reroute(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        actions: &mut Actions,
    ) -> bool {
        if self.redirect(now, key, actions).is_none() {
            return false;
        }
        self.place_peer(now, key, actions);
        self.failover.give_up(&key);
        if let Some(guard) = self.failover.guard(&key) {
            guard.begins_anew();
        }
        self.send_echo(now, key, actions);
        true
    }

    /// Nobody has answered along any way to the peer `key`. If something has come from it nevertheless, it is
    /// those who were asked that are gone: it is reached as before, and they are witnesses no more.
    pub(super) fn asked_in_vain(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let Some((path, is_used)) = self.locators.take_sending(&key) else {
            return;
        };
        let own = self.addresses_of(&key);
        self.failover.forget_witnesses(&key, &own);
        self.failover.give_up(&key);
        if let Some(guard) = self.failover.guard(&key) {
            guard.was_asked_in_vain(now);
        }
        if !is_used && self.take_way(now, key, path, actions).is_some() {
            self.place_peer(now, key, actions);
        }
    }

    /// The next change of the peer `key` names another way to it, if there is one that was not tried.
    pub(super) fn redirect(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        actions: &mut Actions,
    ) -> Option<Path> {
        let uplinks: Vec<IpAddr> = self.config.uplinks().collect();
        let path = self.locators.next(&key, &uplinks)?;
        self.take_way(now, key, path, actions)
    }

    fn take_way(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        path: Path,
        actions: &mut Actions,
    ) -> Option<Path> {
        let (before, turn) = self.locators.take(now, &key, path)?;
        self.leave_from(turn, actions);
        self.lives_at(&key, path.to);
        actions.event(Event::LocatorMoved {
            key,
            from: before,
            to: path.to,
            uplink: path.from,
        });
        Some(path)
    }

    /// Those who were moved to another uplink, and answer there, choose again.
    pub(super) fn release_uplinks(&mut self, now: Timestamp, actions: &mut Actions) {
        for held in self.locators.no_longer_held(now) {
            self.let_go(held, actions);
        }
    }

    /// From now on the mappings of `key` say that it is at `endpoint`.
    fn lives_at(&mut self, key: &PublicKey, endpoint: SocketAddr) {
        for prefix in self.peers.prefixes(key) {
            if let Some(entry) = self.cache.get_mut(&prefix)
                && let Some(chosen) = &mut entry.chosen
            {
                chosen.endpoint = endpoint;
            }
        }
        self.peers.lives_at(key, endpoint);
    }

    /// Has the data plane send to where a far end is, from whichever address is right.
    fn place_peer(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let endpoint = self.locators.place(now, &key);
        if let Some(spec) = self.peers.restored(&key, true) {
            let endpoint = endpoint.or(spec.endpoint);
            let spec = PeerSpec { endpoint, ..spec };
            self.change(What::Shrinking(key), Change::SetPeer(spec), actions);
        }
    }

    /// Takes in where the data plane sends what is for a peer: it may have been heard from elsewhere.
    pub(super) fn look_at_endpoint(
        &mut self,
        now: Timestamp,
        peer: &PeerStats,
        actions: &mut Actions,
    ) {
        let Some(actual) = peer.endpoint else {
            return;
        };
        let key = peer.key;
        match self.locators.seen(&key, actual, peer.read_at) {
            Some(Seen::Roamed) => {
                self.lives_at(&key, actual);
                actions.event(Event::LocatorRoamed { key, to: actual });
            }
            Some(Seen::Strayed) => {
                self.place_peer(now, key, actions);
                self.send_echo(now, key, actions);
            }
            None => {}
        }
    }

    /// The addresses of this host, or the order among them, have changed: what was made to leave by one
    /// that is gone leaves by another, and far ends are greeted from there.
    pub(super) fn uplinks_changed(
        &mut self,
        now: Timestamp,
        before: &[Uplink],
        actions: &mut Actions,
    ) {
        let uplinks: Vec<IpAddr> = self.config.uplinks().collect();
        let preference = |among: &[Uplink], it: &Uplink| {
            let mut among = among.iter();
            let same = among.find(|other| other.address == it.address);
            same.map(|same| (same.priority, same.weight))
        };
        let is_new = self.config.rlocs.iter().any(|it| {
            let value = preference(before, it);
            value.is_some_and(|value| value != (it.priority, it.weight))
        });
        if uplinks.len() > 1 {
            self.watch_all_ways(now);
        }
        let mut left = BTreeSet::new();
        for (key, held) in self.locators.release(&uplinks) {
            self.let_go(held, actions);
            left.insert(key);
        }
        let mut gone = before.iter().map(|it| it.address);
        if gone.any(|it| it.is_ipv6() && !uplinks.contains(&it)) {
            left.extend(self.locators.at_ipv6());
        }
        for key in left {
            self.place_peer(now, key, actions);
        }
        let best = match is_new {
            true => self.locators.by_the_best(&uplinks),
            false => Vec::new(),
        };
        for (key, path) in best {
            if let Some((_, turn)) = self.locators.take(now, &key, path) {
                self.leave_from(turn, actions);
                self.locators.hold_for_now(now, &key);
                self.place_peer(now, key, actions);
            }
        }
        for key in self.failover.flowing(now) {
            if self.locators.is_known(&key) {
                if let Some(guard) = self.failover.guard(&key) {
                    guard.hurries();
                }
                self.send_echo(now, key, actions);
            }
        }
    }

    /// From now on every peer can be reached in several ways.
    fn watch_all_ways(&mut self, now: Timestamp) {
        let peers: Vec<_> = self
            .peers
            .each()
            .map(|(key, it)| (key, it.endpoint))
            .collect();
        for (key, endpoint) in peers {
            if !self.locators.is_known(&key) && self.has_uplinks(endpoint) {
                let known = Known {
                    endpoint,
                    priority: 1,
                    weight: 100,
                };
                self.locators.learn(now, key, vec![known], endpoint, true);
            }
        }
        self.begin_watching(now);
    }

    /// Whether echoes of ours have come back from `key` the first time since it was moved.
    pub(super) fn way_answers(
        &mut self,
        now: Timestamp,
        key: &PublicKey,
        sent: Timestamp,
        actions: &mut Actions,
    ) {
        if self.locators.answered(now, key, sent)
            && let Some(at) = self.peers.endpoint(key)
        {
            actions.event(Event::LocatorAnswers { key: *key, at });
            if self.locators.uplink(key).is_some() {
                // The way to the map servers may be the same that has failed: whoever is not answered
                // takes another one.
                self.register_afresh(now, actions);
            }
        }
    }

    /// What packets are made to do has changed.
    fn leave_from(&self, turn: Turn, actions: &mut Actions) {
        let Turn { before, after } = turn;
        let stays = |before: &Held| after.is_some_and(|after| after.to == before.to);
        if let Some(before) = before.filter(|before| !stays(before)) {
            self.let_go(before, actions);
        }
        if let Some(Held { to, from }) = after {
            let from = Some(from);
            actions.push(Action::LeaveFrom { to, from });
        }
    }

    /// Packets to an address need not do this any more, unless they shall for another far end behind it.
    fn let_go(&self, held: Held, actions: &mut Actions) {
        let to = held.to;
        let from = self.locators.held(to).map(|held| held.from);
        actions.push(Action::LeaveFrom { to, from });
    }
}
