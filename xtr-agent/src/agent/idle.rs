//! Peers that nobody uses: first their routes go, then they do, and above a limit the least recently
//! used ones at once.
//!
//! Two ends of a tunnel never forget each other at the same moment, and WireGuard ignores the
//! handshakes of a key that it does not know. So each end takes its *routes* out well before the
//! other one may have forgotten it: the next packet is caught, and asked for like one to a new
//! destination, which tells the far end of us. Only the peer that stays until then lets packets of
//! a far end in that has not noticed yet.

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::{PublicKey, RequestFlags, Timestamp};

use super::install::What;
use super::ip_header::echo;
use super::limits::{
    DOZE, DOZE_LOOK, EVICTED_AT_ONCE, EVICTION_MARGIN, IDLE_MIN, LIVENESS_POLL, LOOK_SLICE,
    SILENCE, WARM,
};
use super::map_cache::{Entry, State};
use super::remove::Object;
use super::{Action, Actions, Agent, Change, PeerStats, Timer};

impl Agent {
    /// Looks at the counters of the next peers in turn, and of those that may be silent.
    pub(super) fn liveness_due(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.peers.is_empty() {
            return;
        }
        let mut keys = self.peers.after(self.looked_at.as_ref(), LOOK_SLICE);
        self.looked_at = keys.last().copied().filter(|_| keys.len() == LOOK_SLICE);
        if keys.len() < self.peers.len() {
            let suspects = self.liveness.suspects(LOOK_SLICE);
            keys.extend(suspects);
            keys.sort_unstable();
            keys.dedup();
        }
        self.evicting.clear();
        actions.push(Action::ReadPeerStats(keys));
        if self.peers.len() > self.config.max_peers {
            // There may be fewer than when they were taken in.
            self.has_room_for_peer(now, actions);
        }
        self.deadlines.set(Timer::Liveness, now + LIVENESS_POLL);
    }

    /// Takes in how much a peer was used since the last look.
    pub(super) fn note_use(&mut self, now: Timestamp, peer: &PeerStats, actions: &mut Actions) {
        let key = peer.key;
        let Some(idle) = self.liveness.idle(now, &key) else {
            return;
        };
        // It may have been wanted since it was chosen.
        let evicted = self.evicting.remove(&key) && idle >= LIVENESS_POLL;
        if idle.is_zero() {
            return self.wake(now, key, true, actions);
        }
        if self.is_kept(&key) {
            // The far end shall not take us for idle.
            if idle >= WARM {
                self.greet(now, key, actions);
            }
            return;
        }
        self.wake(now, key, false, actions);
        if idle >= self.config.idle || evicted {
            for prefix in self.peers.prefixes(&key) {
                self.forget(prefix, actions);
            }
        } else if idle >= DOZE {
            self.doze(key, actions);
        }
    }

    /// Says hello to a peer. Where keepalives keep a way open they tell the far end nothing, nor does a handshake: only a
    /// packet does. The far end's own address is asked for an echo, which it answers if it likes.
    fn greet(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let prefixes = self.peers.prefixes(&key);
        let is_hidden = |prefix: &IpNet| self.apart.is_hidden(prefix, &key);
        if !self.peers.are_kept_open() && !prefixes.iter().any(is_hidden) {
            return actions.push(Action::Kick(key));
        }
        if !self.liveness.is_to_be_greeted(now, &key) {
            return;
        }
        actions.push(match self.echo_to(&key) {
            Some(echo) => Action::Reinject(echo),
            None => Action::Kick(key),
        });
    }

    /// A packet that asks the far end behind a peer for an echo, if an address of it is known.
    pub(super) fn echo_to(&self, key: &PublicKey) -> Option<Bytes> {
        let prefixes = self.peers.prefixes(key);
        let hosts = prefixes.iter();
        let hosts = hosts.filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
        let mut echoes = hosts.filter_map(|host| echo(self.own_source(host)?, host.addr()));
        echoes.next()
    }

    /// Whether a peer stays although nothing goes there: it shall be ready, or packets wait.
    fn is_kept(&self, key: &PublicKey) -> bool {
        self.peers.prefixes(key).iter().any(|prefix| {
            let entry = self.cache.get(prefix);
            let waits = |entry: &Entry| {
                let opens = matches!(entry.state, State::Installing | State::Awaiting(_));
                opens || entry.state != State::Dozing && !entry.held.is_empty()
            };
            self.is_subscribed(prefix) || entry.is_some_and(waits)
        })
    }

    /// Takes the routes of an idle peer out.
    fn doze(&mut self, key: PublicKey, actions: &mut Actions) {
        for prefix in self.peers.prefixes(&key) {
            let entry = self.cache.get_mut(&prefix);
            let Some(entry) = entry.filter(|entry| entry.state == State::Active) else {
                continue;
            };
            entry.state = State::Dozing;
            self.release_routes(prefix, actions);
        }
    }

    /// Whether nobody but the far end of `prefix` itself can start a handshake: a NAT of its own is in the way.
    pub(super) fn can_only_begin_itself(&self, prefix: &IpNet, key: &PublicKey) -> bool {
        self.apart.is_hidden(prefix, key) && !self.nat.is_behind()
    }

    /// Whether an idle peer still has the session that we have, and would miss it: it keeps the way to us open, and
    /// does not forget us yet.
    fn keeps_session(&self, now: Timestamp, key: &PublicKey, prefixes: &[IpNet]) -> bool {
        let idle = self.liveness.idle(now, key);
        let mut prefixes = prefixes.iter();
        idle.is_some_and(|idle| idle + SILENCE < IDLE_MIN)
            && self.liveness.keeps_open(now, key)
            && prefixes.any(|prefix| self.can_only_begin_itself(prefix, key))
    }

    /// A look at a peer whose routes are out: if it is used, they come back. If it is not, and
    /// packets wait, the far end may have forgotten us: they are asked for as for the first time, or, if nobody but
    /// the far end could start a new session, sent in the present one, and asked for as well.
    pub(super) fn wake(
        &mut self,
        now: Timestamp,
        key: PublicKey,
        used: bool,
        actions: &mut Actions,
    ) {
        let prefixes = self.peers.prefixes(&key);
        let dozing = |entry: &&Entry| entry.state == State::Dozing;
        let entries = prefixes.iter().filter_map(|prefix| self.cache.get(prefix));
        let (mut any, mut waits) = (false, false);
        for entry in entries.filter(dozing) {
            any = true;
            waits |= !entry.held.is_empty();
        }
        if !any {
            return;
        }
        let asks = !used && waits && self.keeps_session(now, &key, &prefixes);
        if used || asks {
            for prefix in prefixes {
                let entry = self.cache.get(&prefix);
                let Some(entry) = entry.filter(dozing) else {
                    continue;
                };
                let waits = !entry.held.is_empty();
                self.release(prefix, actions);
                if asks && waits {
                    self.ask_again(now, prefix, RequestFlags::default(), actions);
                }
            }
        } else if waits {
            self.renew(now, &prefixes, actions);
        }
    }

    /// Forgets mappings, and asks for what packets wait for as for the first time.
    pub(super) fn renew(&mut self, now: Timestamp, prefixes: &[IpNet], actions: &mut Actions) {
        let mut waiting = Vec::new();
        for prefix in prefixes {
            if let Some(entry) = self.cache.get_mut(prefix) {
                waiting.extend(entry.held.take(&mut self.budget));
            }
            self.forget(*prefix, actions);
        }
        for packet in waiting {
            self.tun_packet(now, &packet, actions);
        }
    }

    /// A first packet for a mapping whose routes are out: looks whether the peer is used after all.
    pub(super) fn look_at_dozing(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let entry = self.cache.get(&prefix);
        if let Some(chosen) = entry.and_then(|entry| entry.chosen) {
            actions.push(Action::ReadPeerStats(vec![chosen.key]));
            self.deadlines.set(Timer::Entry(prefix), now + DOZE_LOOK);
        }
    }

    /// Whether there is room for a new peer. Makes room in good time: those that were used longest
    /// ago are looked at once more, and go if they still are not used.
    pub(super) fn has_room_for_peer(&mut self, now: Timestamp, actions: &mut Actions) -> bool {
        let (most, peers) = (self.config.max_peers, self.peers.len());
        if peers >= most - most / EVICTION_MARGIN && self.evicting.is_empty() {
            let oldest = self.liveness.oldest(now, EVICTED_AT_ONCE);
            let (kept, idle): (Vec<_>, Vec<_>) =
                oldest.into_iter().partition(|key| self.is_kept(key));
            for key in kept {
                self.liveness.touch(now, key);
            }
            if !idle.is_empty() {
                self.evicting = idle.iter().copied().collect();
                actions.push(Action::ReadPeerStats(idle));
            }
        }
        peers < most
    }

    /// The mapping of `prefix` no longer needs its routes.
    pub(super) fn release_routes(&mut self, prefix: IpNet, actions: &mut Actions) {
        for route in self.routes_for(&prefix) {
            if self.routes.release(route, &prefix) {
                let what = What::Removal(Object::Route(route));
                self.change(what, Change::RemoveRoute(route), actions);
            }
        }
    }
}
