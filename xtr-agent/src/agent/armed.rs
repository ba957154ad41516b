//! Which mappings are to move to another peer, and what do the counters of the two peers say?

use std::collections::BTreeMap;

use ipnet::IpNet;
use lisp_proto::{Nonce, PublicKey, Timestamp};

use super::limits::{HANDOVER_RETRY, HANDOVER_RETRY_MAX, HANDOVERS, KEEPALIVE};
use super::map_cache::Chosen;
use super::{ChangeId, PeerStats};

/// What a map server says of a mapping that we have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// Who serves it.
    pub(super) to: Chosen,
    /// What its owner has registered.
    pub(super) region: IpNet,
    /// When it stops being true.
    pub(super) expires: Timestamp,
    /// When it is asked for again.
    pub(super) refresh: Timestamp,
}

/// A mapping whose new peer is shaking hands.
#[derive(Debug)]
pub(super) struct Armed {
    pub(super) word: Word,
    /// The peer that carries its traffic.
    pub(super) from: PublicKey,
    /// The change that installs the new peer.
    pub(super) change: ChangeId,
    /// When it should have shaken hands.
    pub(super) until: Timestamp,
    /// When it should have, if nobody carries the traffic and somebody else may.
    pub(super) patience: Timestamp,
    /// Whether the map server was asked, which tells the new peer of us.
    pub(super) asked: bool,
    /// Whether the old peer was found lost meanwhile: the map server believes that it is left.
    pub(super) was_lost: bool,
    /// Since when the data plane has it; what was counted before says nothing.
    pub(super) since: Option<Timestamp>,
    /// Bytes received from the new peer before, if there was a session with it that is over.
    pub(super) received: Option<u64>,
    /// Bytes received from and sent to the old peer when they were first looked at.
    pub(super) first: Option<(u64, u64)>,
    /// Whether the old peer was heard since then.
    pub(super) heard: bool,
    /// Since when bytes go to the old peer, if it was not heard.
    pub(super) unanswered: Option<Timestamp>,
    /// The Map-Notifies that are acknowledged when it has moved.
    pub(super) acks: Vec<(usize, Nonce)>,
}

impl Armed {
    /// A mapping that leaves `from`; the new peer should have shaken hands by `until`.
    pub(super) const fn new(
        word: Word,
        from: PublicKey,
        change: ChangeId,
        until: Timestamp,
    ) -> Self {
        Self {
            word,
            from,
            change,
            until,
            patience: until,
            asked: false,
            was_lost: false,
            since: None,
            received: None,
            first: None,
            heard: false,
            unanswered: None,
            acks: Vec::new(),
        }
    }

    /// Takes in what is counted of the old peer.
    pub(super) fn look_at_old(&mut self, now: Timestamp, peer: &PeerStats) {
        let (received, sent) = *self.first.get_or_insert((peer.rx_bytes, peer.tx_bytes));
        self.heard |= peer.rx_bytes != received;
        if peer.tx_bytes.wrapping_sub(sent) > KEEPALIVE {
            self.unanswered.get_or_insert(now);
        }
    }

    /// Whether the counters of the new peer tell of a handshake since it was armed.
    pub(super) fn has_shaken_hands(&self, peer: &PeerStats) -> bool {
        let is_new = |received| peer.rx_bytes != received;
        peer.handshake_seen && self.received.is_none_or(is_new)
    }
}

/// A mapping whose new peer did not answer.
#[derive(Debug)]
struct PutOff {
    to: Chosen,
    until: Timestamp,
    /// How often it did not.
    tries: u32,
}

/// Every mapping that is to move and has not.
#[derive(Debug, Default)]
pub(super) struct Handovers {
    pub(super) armed: BTreeMap<IpNet, Armed>,
    put_off: BTreeMap<IpNet, PutOff>,
}

impl Handovers {
    /// The peers whose counters tell how it goes.
    pub(super) fn peers(&self) -> impl Iterator<Item = PublicKey> + '_ {
        let armed = self.armed.values();
        armed.flat_map(|armed| [armed.from, armed.word.to.key])
    }

    /// When the latest peer was armed.
    pub(super) fn latest(&self) -> Option<Timestamp> {
        self.armed.values().filter_map(|armed| armed.since).max()
    }

    /// Whether `prefix` is to move.
    pub(super) fn concerns(&self, prefix: &IpNet) -> bool {
        self.armed.contains_key(prefix) || self.put_off.contains_key(prefix)
    }

    /// The peer that `prefix` moves to when it has shaken hands.
    pub(super) fn moves_to(&self, prefix: &IpNet) -> Option<PublicKey> {
        self.armed.get(prefix).map(|armed| armed.word.to.key)
    }

    /// The prefixes that move to `key` when it has shaken hands.
    pub(super) fn moving_to(&self, key: &PublicKey) -> Vec<IpNet> {
        let armed = self.armed.iter();
        let moving = armed.filter(|(_, armed)| armed.word.to.key == *key);
        moving.map(|(prefix, _)| *prefix).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.armed.len() + self.put_off.len()
    }

    /// Nobody waits for `ack` any more.
    pub(super) fn forget_ack(&mut self, ack: (usize, Nonce)) {
        for armed in self.armed.values_mut() {
            armed.acks.retain(|waiting| *waiting != ack);
        }
    }

    /// Until when `to` is left alone because it did not answer for `prefix`, if it did not.
    pub(super) fn left_alone(&self, prefix: &IpNet, to: &Chosen) -> Option<Timestamp> {
        let put_off = self.put_off.get(prefix).filter(|off| off.to == *to)?;
        Some(put_off.until)
    }

    /// Whether a new peer of `prefix` did not answer, and no other one is tried.
    pub(super) fn is_put_off(&self, prefix: &IpNet) -> bool {
        !self.armed.contains_key(prefix) && self.put_off.contains_key(prefix)
    }

    /// The new peer of `prefix` that did not answer, if no other one is tried.
    pub(super) fn refused(&self, prefix: &IpNet) -> Option<Chosen> {
        let put_off = self.put_off.get(prefix);
        let put_off = put_off.filter(|_| !self.armed.contains_key(prefix));
        put_off.map(|off| off.to)
    }

    /// Notes that `to` did not answer for `prefix`: it is left alone, ever longer.
    pub(super) fn put_off(&mut self, now: Timestamp, prefix: IpNet, to: Chosen) {
        let before = self.put_off.remove(&prefix).filter(|off| off.to == to);
        let tries = before.map_or(0, |before| before.tries);
        let wait = HANDOVER_RETRY.saturating_mul(1 << tries.min(10));
        let put_off = PutOff {
            to,
            until: now + wait.min(HANDOVER_RETRY_MAX),
            tries: tries.saturating_add(1),
        };
        if self.put_off.len() >= HANDOVERS {
            self.put_off.pop_first();
        }
        self.put_off.insert(prefix, put_off);
    }

    /// Forgets who did not answer for `prefix`.
    pub(super) fn forget_refusal(&mut self, prefix: &IpNet) {
        self.put_off.remove(prefix);
    }
}
