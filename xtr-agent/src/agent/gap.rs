//! For how long did nothing come to us when a mapping moved to another peer?
//!
//! What we send is never without a way (`handover`). What comes back ends at the old peer at some
//! time, and begins at the new one at another: the counters of both say when, looked at every few
//! milliseconds from the arming on. A little later the map server is told, by a name in the record that
//! a Map-Request may carry (M, RFC 9301 5.2; RFC 9735). That Map-Request is for nothing else: other
//! questions about the same mapping are asked and answered as ever.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Gap, Nonce, PublicKey, RequestFlags, RequestParams, RequestedEid, Timestamp};
use rand::Rng;

use super::limits::{
    ECHO_BYTES, GAP_LOOKS, GAP_POLL, GAP_POLL_LATER, GAP_TELLINGS, GAP_WATCHED, HANDOVERS,
    HANDSHAKE_BYTES, KEEPALIVE,
};
use super::{Action, Actions, Agent, PeerStats, Timer};

/// What comes of a mapping that moves.
#[derive(Debug)]
struct Watched {
    /// The peers that it comes from: the old one, then the new one.
    peers: [PublicKey; 2],
    /// Bytes that each had sent us at the last look.
    counted: [Option<u64>; 2],
    /// Echoes sent through each of which no answer was counted.
    echoes: [u32; 2],
    since: Timestamp,
    /// When something came last.
    heard: Option<Timestamp>,
    longest: Duration,
    moved: Option<Timestamp>,
    /// Whether anything has come from the new peer since then.
    has_come: bool,
}

impl Watched {
    const fn new(now: Timestamp, peers: [PublicKey; 2]) -> Self {
        Self {
            peers,
            counted: [None; 2],
            echoes: [0; 2],
            since: now,
            heard: None,
            longest: Duration::ZERO,
            moved: None,
            has_come: false,
        }
    }

    /// Takes in the counters of a peer.
    fn look(&mut self, peer: &PeerStats) {
        let known = self.counted.iter_mut().zip(&mut self.echoes);
        for (index, (key, (counted, echoes))) in self.peers.iter().zip(known).enumerate() {
            // What the old peer sends from then on is not let in.
            if *key != peer.key || self.moved.is_some() && index == 0 {
                continue;
            }
            let Some(before) = counted.replace(peer.rx_bytes) else {
                continue;
            };
            let came = peer.rx_bytes.saturating_sub(before);
            if came <= KEEPALIVE || HANDSHAKE_BYTES.contains(&came) {
                // That was WireGuard itself.
                continue;
            }
            if came == ECHO_BYTES && *echoes > 0 {
                // The answer to an echo of ours. A lone acknowledgement of TCP is as long.
                *echoes -= 1;
                continue;
            }
            let heard = self.heard.replace(peer.read_at).unwrap_or(peer.read_at);
            self.longest = self.longest.max(peer.read_at - heard);
            self.has_come |= self.moved.is_some();
        }
    }

    /// What is said of it; nobody can tell where nothing has come since.
    fn gap(&self) -> Gap {
        match self.has_come {
            true => Gap::Longest(self.longest),
            false => Gap::Unknown,
        }
    }
}

/// What a map server is being told of a mapping that has moved.
#[derive(Debug)]
struct Told {
    gap: Gap,
    nonce: Nonce,
    /// How often it was.
    times: u32,
    again: Timestamp,
}

/// Mappings that move, and those that have moved a moment ago.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    watched: BTreeMap<IpNet, Watched>,
    told: BTreeMap<IpNet, Told>,
}

impl Gaps {
    /// Whether an answer with this nonce says that a map server has heard of a gap.
    pub(super) fn is_heard(&mut self, nonce: Nonce) -> bool {
        let mut heard = self.told.extract_if(.., |_, told| told.nonce == nonce);
        heard.next().is_some()
    }

    /// There is no mapping of `prefix` any more.
    pub(super) fn forget(&mut self, prefix: &IpNet) {
        self.told.remove(prefix);
    }

    /// An echo is sent through the peer `key`.
    pub(super) fn asks(&mut self, key: &PublicKey) {
        for watched in self.watched.values_mut() {
            let peers = watched.peers.iter().zip(&mut watched.echoes);
            for (_, echoes) in peers.filter(|(peer, _)| *peer == key) {
                *echoes = echoes.saturating_add(1);
            }
        }
    }

    /// `prefix` does not move after all.
    pub(super) fn ends(&mut self, prefix: &IpNet) {
        self.watched.remove(prefix);
    }

    /// Takes in counters.
    pub(super) fn look(&mut self, stats: &[PeerStats]) {
        for watched in self.watched.values_mut() {
            stats.iter().for_each(|peer| watched.look(peer));
        }
    }
}

impl Agent {
    /// Begins to look at what comes of `prefix`, which is to move from one peer to another.
    pub(super) fn watch_gap(&mut self, now: Timestamp, prefix: IpNet, peers: [PublicKey; 2]) {
        let is_other = |watched: &Watched| watched.peers != peers || watched.moved.is_some();
        let watched = &mut self.gaps.watched;
        if watched.get(&prefix).is_some_and(|it| !is_other(it)) || watched.len() >= HANDOVERS {
            return;
        }
        watched.insert(prefix, Watched::new(now, peers));
        self.deadlines.set(Timer::Gaps, now);
    }

    /// `prefix` has moved. One that was not armed is looked at from now on.
    pub(super) fn gap_moved(&mut self, now: Timestamp, prefix: IpNet, peers: [PublicKey; 2]) {
        if !self.failover.has_alternatives(&prefix) {
            // Nobody has moved it: it has another key.
            return self.gaps.ends(&prefix);
        }
        self.watch_gap(now, prefix, peers);
        if let Some(watched) = self.gaps.watched.get_mut(&prefix) {
            watched.moved = Some(now);
            watched.heard.get_or_insert(now);
        }
    }

    /// Wants the counters of all that move, and tells the map server of what has moved.
    pub(super) fn gaps_due(&mut self, now: Timestamp, actions: &mut Actions) {
        let is_over = |watched: &Watched| {
            let moved = watched.moved;
            moved.is_some_and(|moved| now - moved >= GAP_WATCHED)
        };
        let over = self
            .gaps
            .watched
            .extract_if(.., |_, watched| is_over(watched));
        let over: Vec<_> = over.map(|(prefix, it)| (prefix, it.gap())).collect();
        for (prefix, gap) in over {
            if self.cache.get(&prefix).is_some() && self.gaps.told.len() < HANDOVERS {
                let told = Told {
                    gap,
                    nonce: Nonce(self.rng.random()),
                    times: 0,
                    again: now,
                };
                self.gaps.told.insert(prefix, told);
            }
        }
        let tells = self.tell_gaps(now, actions);
        let looks = self.look_at_gaps(now, actions);
        if let Some(next) = tells.into_iter().chain(looks).min() {
            self.deadlines.set(Timer::Gaps, next);
        }
    }

    /// Tells the map server what it has not heard yet; returns when to do so next.
    fn tell_gaps(&mut self, now: Timestamp, actions: &mut Actions) -> Option<Timestamp> {
        let gaps = &mut self.gaps.told;
        gaps.retain(|_, told| told.again > now || told.times < GAP_TELLINGS);
        let due = gaps.iter().filter(|(_, told)| told.again <= now);
        let due: Vec<_> = due.map(|(prefix, told)| (*prefix, told.times)).collect();
        for (prefix, times) in due {
            let again = now + self.ask_again_in(times);
            if let Some(told) = self.gaps.told.get_mut(&prefix) {
                told.times += 1;
                told.again = again;
            }
            self.tell_gap(prefix, times, actions);
        }
        let told = self.gaps.told.values();
        told.map(|told| told.again).min()
    }

    /// Says in a question about `prefix`, for the `times`th time, what the gap was.
    fn tell_gap(&self, prefix: IpNet, times: u32, actions: &mut Actions) {
        let (Some(told), Some(source)) = (self.gaps.told.get(&prefix), self.own_source(&prefix))
        else {
            return;
        };
        if self.leaving {
            return;
        }
        let params = RequestParams {
            flags: RequestFlags::default(),
            nonce: told.nonce,
            source_eid: Some((self.config.iid, source)),
            itr_rlocs: &[self.config.control_address],
            eids: &[RequestedEid {
                subscribe: false,
                eid: self.eid(prefix),
            }],
            source_record: Some(&self.bare_record(&prefix)),
            gap: Some(told.gap),
            ids: None,
        };
        self.send_map_request(self.turn(times), source, &params, actions);
    }

    /// Wants the counters of all that move; returns when to do so next.
    fn look_at_gaps(&self, now: Timestamp, actions: &mut Actions) -> Option<Timestamp> {
        let watched = self.gaps.watched.values();
        let latest = watched.clone().map(|watched| watched.since).max()?;
        let mut keys: Vec<_> = watched.flat_map(|watched| watched.peers).collect();
        keys.sort_unstable();
        keys.dedup();
        actions.push(Action::ReadPeerStats(keys));
        let interval = match now - latest < GAP_LOOKS {
            true => GAP_POLL,
            false => GAP_POLL_LATER,
        };
        Some(now + self.look_interval(interval))
    }
}
