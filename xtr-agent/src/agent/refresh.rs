//! Mappings in use are asked for again before they run out.

use ipnet::IpNet;
use lisp_proto::{Nonce, RequestFlags, Timestamp};
use rand::Rng;

use super::limits::{REFRESH_RETRY_MAX, REQUEST_RETRY, STALE_MAX, STALE_STEP};
use super::miss::Question;
use super::{Action, Actions, Agent, PeerStats, Timer};

impl Agent {
    /// Asks again for mappings that carried traffic since the last look.
    pub(super) fn refresh_used(
        &mut self,
        now: Timestamp,
        stats: &[PeerStats],
        actions: &mut Actions,
    ) {
        for prefix in std::mem::take(&mut self.refresh_checks) {
            let Some(entry) = self.cache.get_mut(&prefix) else {
                continue;
            };
            let key = entry.chosen.map(|chosen| chosen.key);
            let Some(peer) = stats.iter().find(|peer| Some(peer.key) == key) else {
                self.refresh_checks.insert(prefix);
                continue;
            };
            let bytes = peer.rx_bytes.wrapping_add(peer.tx_bytes);
            if bytes != std::mem::replace(&mut entry.bytes_seen, bytes) {
                self.ask_again(now, prefix, RequestFlags::default(), actions);
            }
        }
    }

    /// Asks for a mapping that we have, again and again until somebody answers.
    pub(super) fn ask_again(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        flags: RequestFlags,
        actions: &mut Actions,
    ) {
        let family = prefix.addr().is_ipv4();
        let own = &self.config.eid_prefixes;
        let Some(source) = own.iter().find(|own| own.addr().is_ipv4() == family) else {
            return;
        };
        let source = source.addr();
        let fresh = Nonce(self.rng.random());
        let (nonce, tries) = self.resolver.refresh(prefix, fresh);
        let question = Question {
            source,
            asked: prefix,
            nonce,
            flags,
        };
        self.send_request(question, tries, actions);
        let wait = REQUEST_RETRY.saturating_mul(1 << tries.min(10));
        let again = now + wait.min(REFRESH_RETRY_MAX);
        self.deadlines.set(Timer::Refresh(prefix), again);
    }

    pub(super) fn refresh_due(&mut self, now: Timestamp, prefix: IpNet, actions: &mut Actions) {
        if self.resolver.is_refreshing(&prefix) {
            self.unanswered(now, 2, actions);
            self.ask_again(now, prefix, RequestFlags::default(), actions);
            return;
        }
        let entry = self.cache.get(&prefix);
        if let Some(chosen) = entry.and_then(|entry| entry.chosen) {
            self.refresh_checks.insert(prefix);
            actions.push(Action::ReadPeerStats(vec![chosen.key]));
        }
    }

    /// Keeps a mapping in use beyond its time while no map server answers: the
    /// tunnel works, and a server that is down must not end it.
    pub(super) fn keep_stale(&mut self, now: Timestamp, prefix: IpNet) -> bool {
        if !self.resolver.is_refreshing(&prefix) {
            return false;
        }
        let Some(entry) = self.cache.get_mut(&prefix) else {
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
