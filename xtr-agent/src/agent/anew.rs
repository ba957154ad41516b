//! Far ends that have lost the session that we still have, as after a restart.
//!
//! A NAT of ours may keep their handshakes out, or they ours: then nobody but us can start one.

use std::net::IpAddr;

use ipnet::IpNet;
use lisp_proto::{Action as MapAction, PublicKey, Record, Timestamp, Ttl};

use super::event::Cause;
use super::limits::PASSIVE_WAIT;
use super::map_cache::{Chosen, State};
use super::{Action, Actions, Agent, Timer};

impl Agent {
    /// The map server repeats a mapping of ours, because its owner has asked for us once more.
    ///
    /// If nothing is heard of it all the same, which takes a look at its counters (it may be in use
    /// just now), its mappings are set up anew: then we start the handshake. That takes an endpoint
    /// that we can reach; one behind a NAT of its own would lose the endpoint under which we know it.
    pub(super) fn begin_anew(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        chosen: Chosen,
        actions: &mut Actions,
    ) {
        let entry = self.cache.get(&prefix);
        let repeated = entry.is_some_and(|entry| {
            entry.chosen == Some(chosen)
                && matches!(entry.state, State::Active | State::Routing | State::Opening)
        });
        if repeated {
            // Nothing happens if there is a session. If there is none, a NAT of ours may have
            // forgotten the far end, and nobody but us can open it again.
            self.deadlines
                .set(Timer::Kick(chosen.key), now + PASSIVE_WAIT);
        }
        let is_relay = self.apart.is_relay(&prefix, &chosen);
        if is_relay {
            // Its far end has asked. What a map server says of the relay beside that means no more.
            self.liveness.excuse(now, &chosen.key);
        }
        let is_hidden = self.apart.is_hidden(&prefix, &chosen.key);
        let reachable = self.reaches(chosen.endpoint.ip()) && (self.nat.is_behind() || !is_hidden);
        if repeated
            && reachable
            && !is_relay
            && !self.resolver.is_refreshing(&prefix)
            && self.liveness.asks_in_vain(now, &chosen.key)
        {
            actions.push(Action::ReadPeerStatsAnew(vec![chosen.key]));
        }
    }

    /// A map server has answered that a mapping is as we know it. Its owner was told that we have
    /// asked, and shall hear that we did not do so in vain, also when nothing goes there.
    pub(super) fn confirmed(&mut self, now: Timestamp, prefix: IpNet, chosen: Chosen) {
        self.liveness.answered(now, &chosen.key);
        let entry = self.cache.get(&prefix);
        let ready = entry.is_some_and(|entry| matches!(entry.state, State::Active));
        if ready && self.is_subscribed(&prefix) {
            self.deadlines
                .set(Timer::Kick(chosen.key), now + PASSIVE_WAIT);
        }
    }

    /// Whether an endpoint may be reached from here, as far as its address tells: one that means
    /// something within its own site only has to find us.
    pub(super) fn reaches(&self, endpoint: IpAddr) -> bool {
        !is_private(endpoint) || self.config.addresses().any(is_private)
    }

    /// A mapping is good for no longer than the map server has said, to the second.
    fn expires_at(&mut self, prefix: IpNet, expires: Timestamp) {
        if let Some(entry) = self.cache.get_mut(&prefix) {
            entry.expires = expires;
            self.deadlines.set(Timer::Entry(prefix), expires);
        }
    }

    /// Takes a peer out and puts it in again with all its mappings, where the latest of them says that
    /// it is. What waited for it waits on; so does what the data plane got and could not send.
    pub(super) fn set_up_anew(&mut self, now: Timestamp, key: &PublicKey, actions: &mut Actions) {
        let Some(endpoint) = self.peers.endpoint(key) else {
            return;
        };
        let chosen = Chosen {
            key: *key,
            endpoint,
        };
        let vain = self.liveness.vain(key);
        for prefix in self.handovers.moving_to(key) {
            // Of several the map server believes that this one is used.
            match self.failover.has_alternatives(&prefix) {
                true => self.handover_failed(now, prefix, actions),
                false => self.end_handover(prefix, actions),
            }
        }
        let mut waiting: Vec<_> = self.watches.staged(key, &mut self.budget).into();
        let mut mappings = Vec::new();
        for prefix in self.peers.prefixes(key) {
            if let Some(entry) = self.cache.get_mut(&prefix) {
                let way = self.apart.way(&prefix);
                mappings.push((prefix, entry.region, entry.expires, way));
                waiting.extend(entry.held.take(&mut self.budget));
            }
            self.forget(prefix, actions);
        }
        for (prefix, region, expires, way) in mappings {
            let minutes = (expires - now).as_secs().div_ceil(60);
            let record = Record {
                eid: self.eid(prefix),
                ttl: Ttl::from_minutes(u32::try_from(minutes).unwrap_or(u32::MAX)),
                action: MapAction::NoAction,
                authoritative: false,
                locators: Vec::new(),
            };
            if self.positive(now, &record, region, chosen, Cause::Push, actions) {
                self.apart.recall(prefix, way);
                self.expires_at(prefix, expires);
            }
        }
        self.liveness.recall(key, vain);
        for packet in waiting {
            self.tun_packet(now, &packet, actions);
        }
    }
}

/// Whether an address means something within one site only.
pub(super) const fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // Those between a carrier and its customers as well (RFC 6598).
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            address.is_private() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}
