//! Peers that fall silent: bytes go out, nothing comes back.
//!
//! The far end may have moved, or restarted and lost us. Asking the map server
//! again heals both: the answer says where it is now, and the map server tells
//! it of us once more. WireGuard itself then starts a new handshake.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

use super::limits::{
    ANSWER_IN_PARTS, INSISTENT, KEEPALIVE, KEEPALIVE_S, KEEPALIVES_MISSED, LIVENESS_POLL,
    REKINDLE_LOOK, SESSION, SILENCE, SILENCE_BACKOFF_MAX, WARM,
};
use super::upkeep::is_upkeep;
use super::{Actions, Agent, PeerStats, Timer};

/// How a peer has asked for us.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first: Timestamp,
    last: Timestamp,
    times: u32,
}

/// What was last seen of a peer's counters.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    rx_bytes: u64,
    tx_bytes: u64,
    /// Since when bytes go out unanswered.
    unanswered: Option<Timestamp>,
    /// How long to wait before the map server is asked; doubles each time.
    patience: Duration,
    /// How often a map server was asked since it was heard of.
    asked_for: u32,
    /// When its counters were last seen to have moved.
    moved: Timestamp,
    /// The same of what came from it, if only to keep a way open.
    heard: Option<Timestamp>,
    /// That it has asked for us since it was heard of.
    asked: Option<Asked>,
    /// When we were last told of it because we had asked.
    answered: Option<Timestamp>,
    /// When a push was the rest of that answer.
    excused: Option<Timestamp>,
    /// When it had asked for us in vain: it is set up anew if a look since then has not heard it.
    in_doubt: Option<Timestamp>,
    /// When its counters were last looked at.
    looked: Timestamp,
    /// When it was last said hello to.
    greeted: Timestamp,
    /// It was asked for a sign of life, and not heard since.
    asked_for_sign: bool,
    /// Its counters are those of an earlier life: the first look at them says nothing about use.
    unused: bool,
}

/// What was done in vain about a peer since it was heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vain {
    /// How patient we have become.
    pub(super) patience: Duration,
    /// How often a map server was asked for it.
    pub(super) asked_for: u32,
}

/// Counters of all peers at the last look.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    watches: BTreeMap<PublicKey, Watch>,
    /// Least recently used first.
    order: BTreeSet<(Timestamp, PublicKey)>,
}

impl Liveness {
    /// A peer is new, or to be counted as used now.
    pub(super) fn touch(&mut self, now: Timestamp, key: PublicKey) {
        let watch = self.watches.entry(key).or_insert_with(|| Watch {
            looked: now,
            ..Watch::default()
        });
        self.order.remove(&(watch.moved, key));
        watch.moved = now;
        self.order.insert((now, key));
    }

    /// A peer was there before, and not used.
    pub(super) fn begin_unused(&mut self, key: PublicKey) {
        self.watches.entry(key).or_default().unused = true;
    }

    /// A peer is gone.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        if let Some(watch) = self.watches.remove(key) {
            self.order.remove(&(watch.moved, *key));
        }
    }

    /// Bytes that had been received from a peer at the last look.
    pub(super) fn received(&self, key: &PublicKey) -> u64 {
        self.watches.get(key).map_or(0, |watch| watch.rx_bytes)
    }

    /// Whether a peer keeps the way to us open: so many keepalives in a row are not lost.
    pub(super) fn keeps_open(&self, now: Timestamp, key: &PublicKey) -> bool {
        let heard = self.watches.get(key).and_then(|watch| watch.heard);
        let lately = Duration::from_secs(u64::from(KEEPALIVE_S) * KEEPALIVES_MISSED);
        heard.is_some_and(|heard| now - heard < lately)
    }

    /// How long the counters of a peer have not moved.
    pub(super) fn idle(&self, now: Timestamp, key: &PublicKey) -> Option<Duration> {
        self.watches.get(key).map(|watch| now - watch.moved)
    }

    /// Whether it is time to say hello once more to a peer that shall be ready; it is then done. Its counters may not show
    /// that.
    pub(super) fn is_to_be_greeted(&mut self, now: Timestamp, key: &PublicKey) -> bool {
        let Some(watch) = self.watches.get_mut(key) else {
            return false;
        };
        let is_due = now - watch.greeted >= WARM;
        if is_due {
            watch.greeted = now;
        }
        is_due
    }

    /// A silent peer is asked for a sign of life, which is awaited at the next look; false if that was in vain before.
    pub(super) fn await_sign(&mut self, now: Timestamp, key: &PublicKey) -> bool {
        let Some(watch) = self.watches.get_mut(key) else {
            return false;
        };
        if std::mem::replace(&mut watch.asked_for_sign, true) {
            watch.patience = watch.patience.max(SILENCE * 2);
            return false;
        }
        watch.unanswered = Some(now);
        watch.patience = LIVENESS_POLL;
        true
    }

    /// Some of the peers that have not answered what was sent to them.
    pub(super) fn suspects(&self, most: usize) -> impl Iterator<Item = PublicKey> + '_ {
        let suspects = self.watches.iter();
        let suspects = suspects.filter(|(_, watch)| watch.unanswered.is_some());
        suspects.map(|(key, _)| *key).take(most)
    }

    /// The peers that were used longest ago, and not just now.
    pub(super) fn oldest(&self, now: Timestamp, most: usize) -> Vec<PublicKey> {
        let oldest = self.order.iter().take(most);
        let oldest = oldest.filter(|(moved, _)| now - *moved >= LIVENESS_POLL);
        oldest.map(|(_, key)| *key).collect()
    }

    /// Compares a peer's counters with the last look; true when it has been
    /// silent for too long.
    ///
    /// What both ends send to keep the way to one that `is_kept_open` is no use.
    fn silent(&mut self, now: Timestamp, peer: &PeerStats, is_kept_open: bool) -> bool {
        let Some(watch) = self.watches.get_mut(&peer.key) else {
            return false;
        };
        let received = peer.rx_bytes != watch.rx_bytes;
        let sent = peer.tx_bytes.wrapping_sub(watch.tx_bytes);
        let since = now - std::mem::replace(&mut watch.looked, now);
        let heard = peer.rx_bytes.wrapping_sub(watch.rx_bytes);
        // Nobody answers keepalives, of which there are several if looks are rare.
        let most_unanswered = match is_kept_open {
            true => KEEPALIVE * (1 + since.as_secs() / u64::from(KEEPALIVE_S)),
            false => KEEPALIVE,
        };
        let used = match is_kept_open {
            true => !is_upkeep(sent, since) || !is_upkeep(heard, since),
            false => received || sent > 0,
        };
        let unused = std::mem::take(&mut watch.unused);
        if used && !unused {
            self.order.remove(&(watch.moved, peer.key));
            watch.moved = now;
            self.order.insert((now, peer.key));
        }
        watch.rx_bytes = peer.rx_bytes;
        watch.tx_bytes = peer.tx_bytes;
        if received {
            watch.heard = Some(now);
        }
        if received || watch.patience.is_zero() {
            watch.unanswered = None;
            watch.patience = SILENCE;
            watch.asked_for = 0;
            watch.asked = None;
            watch.in_doubt = None;
            watch.asked_for_sign = false;
        } else if sent > most_unanswered && watch.unanswered.is_none() {
            watch.unanswered = Some(now);
        }
        let Some(since) = watch.unanswered else {
            return false;
        };
        if now - since < watch.patience {
            return false;
        }
        watch.unanswered = None;
        watch.patience = (watch.patience * 2).min(SILENCE_BACKOFF_MAX);
        true
    }

    /// A map server has answered that a peer is as we know it.
    pub(super) fn answered(&mut self, now: Timestamp, key: &PublicKey) {
        if let Some(watch) = self.watches.get_mut(key) {
            watch.answered = Some(now);
        }
    }

    /// What is said of a peer now does not say that it has asked for us.
    pub(super) fn excuse(&mut self, now: Timestamp, key: &PublicKey) {
        if let Some(watch) = self.watches.get_mut(key) {
            watch.excused = Some(now);
        }
    }

    /// Notes that a peer has asked for us, as far as a push tells; true when it has done so before, and has had the time
    /// to be heard. After the time of a session there is none that only we still have.
    pub(super) fn asks_in_vain(&mut self, now: Timestamp, key: &PublicKey) -> bool {
        let Some(watch) = self.watches.get_mut(key) else {
            return false;
        };
        let answered = watch.answered.take();
        if answered.is_some_and(|at| now - at < ANSWER_IN_PARTS) {
            watch.excused = Some(now);
        }
        if watch.excused == Some(now) {
            return false;
        }
        // It lives, and has not got through to us: whatever we have for it may be worth another try.
        watch.patience = watch.patience.min(SILENCE * 2);
        let once = Asked {
            first: now,
            last: now,
            times: 1,
        };
        let asked = watch.asked.get_or_insert(once);
        // One question may lead to several messages, of several map servers.
        if now - asked.last >= ANSWER_IN_PARTS {
            asked.times = asked.times.saturating_add(1);
            asked.last = now;
        }
        let patience = if asked.times >= INSISTENT {
            SILENCE / 2
        } else {
            SILENCE
        };
        let waited = now - asked.first;
        if waited < patience {
            return false;
        }
        let in_vain = waited < SESSION;
        watch.asked = (!in_vain).then_some(once);
        watch.in_doubt = in_vain.then_some(now);
        in_vain
    }

    /// Whether a peer has asked for us in vain, and no look since then has said anything else.
    pub(super) fn is_in_doubt(&self, key: &PublicKey) -> bool {
        let watch = self.watches.get(key);
        watch.is_some_and(|watch| watch.in_doubt.is_some())
    }

    /// Whether a peer that has asked for us in vain is still not heard at this look. One that is older
    /// than the wait for it says nothing: it may have been heard in between.
    fn is_deaf(&mut self, now: Timestamp, peer: &PeerStats) -> bool {
        let Some(watch) = self.watches.get_mut(&peer.key) else {
            return false;
        };
        let Some(since) = watch.in_doubt.filter(|since| peer.read_at >= *since) else {
            return false;
        };
        if now - peer.read_at > REKINDLE_LOOK.max(peer.read_at - since) {
            return false;
        }
        watch.in_doubt = None;
        peer.rx_bytes == watch.rx_bytes
    }

    /// How often a map server was asked for a peer since it was heard of.
    pub(super) fn times_asked(&self, key: &PublicKey) -> u32 {
        let watch = self.watches.get(key);
        watch.map_or(0, |watch| watch.asked_for)
    }

    /// A map server is asked for a peer that is not heard of.
    pub(super) fn ask_for(&mut self, key: &PublicKey) {
        if let Some(watch) = self.watches.get_mut(key) {
            watch.asked_for = watch.asked_for.wrapping_add(1);
        }
    }

    /// What was done in vain about a peer that is silent.
    pub(super) fn vain(&self, key: &PublicKey) -> Vain {
        let watch = self.watches.get(key);
        watch.map_or_else(Vain::default, |watch| Vain {
            patience: watch.patience,
            asked_for: watch.asked_for,
        })
    }

    /// A peer that is new to the data plane is not new to us.
    pub(super) fn recall(&mut self, key: &PublicKey, vain: Vain) {
        if let Some(watch) = self.watches.get_mut(key) {
            (watch.patience, watch.asked_for) = (vain.patience, vain.asked_for);
        }
    }
}

impl Agent {
    /// A peer is there: its counters are looked at from now on.
    pub(super) fn watch_liveness(&mut self, now: Timestamp, key: PublicKey) {
        self.liveness.touch(now, key);
        if self.peers.len() == 1 {
            self.deadlines.set(Timer::Liveness, now + LIVENESS_POLL);
        }
    }

    /// Whether keepalives are sent for the way to a peer, by us or by the peer itself.
    fn is_kept_open(&self, key: &PublicKey) -> bool {
        let by_far_end = || {
            let prefixes = || self.peers.prefixes(key).into_iter();
            let apart = &self.apart;
            apart.knows_hidden() && prefixes().any(|it| apart.is_hidden(&it, key))
        };
        self.peers.are_kept_open() || by_far_end()
    }

    /// Looks at the counters of peers.
    pub(super) fn check_liveness(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        for peer in stats {
            if !self.peers.contains(&peer.key) {
                continue;
            }
            if self.liveness.is_deaf(now, peer) {
                self.set_up_anew(now, &peer.key, actions);
                continue;
            }
            if peer.rx_bytes != self.liveness.received(&peer.key) {
                self.apart.heard(&peer.key);
            }
            let is_kept_open = self.is_kept_open(&peer.key);
            let is_silent = self.liveness.silent(now, peer, is_kept_open);
            if is_silent && !self.asks_for_sign(now, &peer.key, actions) {
                if !self.failover.is_proven(&peer.key) {
                    self.reroute(now, peer.key, actions);
                }
                for prefix in self.peers.prefixes(&peer.key) {
                    // Whoever is named may be the better one by now.
                    self.handovers.forget_refusal(&prefix);
                    let entry = self.cache.get(&prefix);
                    // What has brought nothing may be due to a NAT.
                    let again = self.liveness.times_asked(&peer.key) > 0;
                    let chosen = entry.and_then(|entry| entry.chosen);
                    if let Some(chosen) = chosen.filter(|_| again) {
                        self.is_apart(prefix, chosen);
                    }
                    self.ask_another(now, prefix, &peer.key, actions);
                }
                self.liveness.ask_for(&peer.key);
            }
            self.note_use(now, peer, actions);
        }
    }
}

#[cfg(test)]
mod tests;
