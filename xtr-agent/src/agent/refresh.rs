//! Mappings in use are asked for again before they run out.

use std::net::IpAddr;

use ipnet::IpNet;
use lisp_proto::{Nonce, PublicKey, RequestFlags, Timestamp};
use rand::Rng;

use super::event::Cause;
use super::limits::{REFRESH_RETRY_MAX, STALE_MAX, STALE_STEP};
use super::map_cache::Entry;
use super::miss::Question;
use super::{Actions, Agent, PeerStats, Timer};

impl Agent {
    /// Asks again for a mapping that is about to run out and carried traffic
    /// since the last look at its peer.
    pub(super) fn refresh_used(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        peer: &PeerStats,
        actions: &mut Actions,
    ) {
        if !self.refresh_checks.remove(&prefix) {
            return;
        }
        let Some(entry) = self.cache.get_mut(&prefix) else {
            return;
        };
        let bytes = peer.rx_bytes.wrapping_add(peer.tx_bytes);
        if bytes != std::mem::replace(&mut entry.bytes_seen, bytes) {
            self.ask_again(now, prefix, RequestFlags::default(), actions);
        }
    }

    /// The EID of ours that asks for `prefix`.
    pub(super) fn own_source(&self, prefix: &IpNet) -> Option<IpAddr> {
        let family = prefix.addr().is_ipv4();
        let mut own = self.config.eid_prefixes.iter();
        own.find(|own| own.addr().is_ipv4() == family)
            .map(IpNet::addr)
    }

    /// Asks for a mapping that we have, again and again until somebody answers.
    pub(super) fn ask_again(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        flags: RequestFlags,
        actions: &mut Actions,
    ) {
        self.ask_from(now, prefix, flags, 0, actions);
    }

    /// The same for a peer that does not answer, another map server each time: one that has answered
    /// may have lost what it knew of us, and then it tells the far end nothing.
    pub(super) fn ask_another(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        key: &PublicKey,
        actions: &mut Actions,
    ) {
        let servers = u32::try_from(self.config.map_servers.len()).unwrap_or(u32::MAX);
        let first = self.liveness.times_asked(key) % servers.max(1);
        self.ask_from(now, prefix, RequestFlags::default(), first, actions);
    }

    fn ask_from(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        flags: RequestFlags,
        first: u32,
        actions: &mut Actions,
    ) {
        let Some(source) = self.own_source(&prefix) else {
            return;
        };
        let fresh = Nonce(self.rng.random());
        let (nonce, tries) = self.resolver.refresh(prefix, fresh, first);
        let question = Question {
            source,
            asked: prefix,
            nonce,
            flags,
        };
        self.send_request(question, tries, actions);
        let again = now + self.ask_again_in(tries).min(REFRESH_RETRY_MAX);
        self.deadlines.set(Timer::Refresh(prefix), again);
    }

    pub(super) fn refresh_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        let tries = self.resolver.refresh_tries(&prefix);
        if tries > 0 {
            let silent = self.turn(tries - 1);
            self.unanswered(now, silent, 2, actions);
            self.ask_again(now, prefix, RequestFlags::default(), actions);
            return;
        }
        let entry = self.cache.get_mut(&prefix);
        let restored = |entry: &&mut Entry| entry.cause == Cause::Restored;
        // Before a map server is there only those in use are asked for.
        if self.restored.is_empty()
            && let Some(entry) = entry.filter(restored)
        {
            entry.cause = Cause::Reply;
            self.ask_again(now, prefix, RequestFlags::default(), actions);
            return;
        }
        // The next look at all counters tells whether it is in use.
        if self
            .cache
            .get(&prefix)
            .is_some_and(|entry| entry.chosen.is_some())
        {
            self.refresh_checks.insert(prefix);
        }
    }

    /// Keeps a mapping in use, or one that shall be ready, beyond its time while
    /// no map server answers: the tunnel works, and a server that is down must
    /// not end it.
    pub(super) fn keep_stale(&mut self, now: Timestamp, prefix: IpNet) -> bool {
        if !self.resolver.is_refreshing(&prefix) && !self.is_subscribed(&prefix) {
            return false;
        }
        // A map server has said that it is no longer true.
        if self.handovers.concerns(&prefix) {
            return false;
        }
        let entry = self.cache.get_mut(&prefix);
        let Some(entry) = entry.filter(|entry| entry.chosen.is_some()) else {
            return false;
        };
        let since = *entry.stale.get_or_insert(now);
        if now - since >= STALE_MAX {
            return false;
        }
        entry.expires = now + STALE_STEP;
        self.deadlines.set(Timer::Entry(prefix), entry.expires);
        true
    }
}
