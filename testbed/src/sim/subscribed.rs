//! Subscribers (RFC 9437): what do they ask to be told, and do they have it?

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Message, decode};

use super::addresses;
use super::checks::{REGISTERED_WITHIN, TOLD_WITHIN};
use super::invariant::Invariant;
use super::sabotage::Sabotage;
use super::scenario::{FaultKind, Scenario};
use super::world::World;

/// Length of a prefix around the EIDs of several agents.
const WIDE_V4: u8 = 24;
/// A subscription is renewed after half the TTL, or after this.
const RENEWAL_MAX: Duration = Duration::from_secs(600);

impl Scenario {
    /// What an agent subscribes to.
    pub(super) fn subscribed_prefixes(&self, agent: u32) -> Vec<IpNet> {
        let own = self.subscriptions.iter().filter(|it| it.agent == agent);
        let mut prefixes: Vec<IpNet> = own
            .flat_map(|it| {
                let [v4, v6] = addresses::eid_prefixes(it.of);
                let around = IpNet::new(v4.addr(), WIDE_V4).map(|net| net.trunc());
                let v4 = around.ok().filter(|_| it.wide).unwrap_or(v4);
                [v4, v6]
            })
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }

    /// How long after the last fault a subscriber has what it subscribed to, as it is.
    ///
    /// At once, if it was always there and heard; what did not reach it is repeated no later than
    /// when it registers anew. A map server that restarted has forgotten its subscribers until
    /// they renew.
    pub(super) fn subscribed_bound(&self) -> Duration {
        let restarts = |kind: &FaultKind| matches!(kind, FaultKind::CrashServer { .. });
        if self.faults.iter().any(|fault| restarts(&fault.kind)) {
            let ttl = Duration::from_secs(u64::from(self.ttl_min) * 60);
            return REGISTERED_WITHIN + (ttl / 2).min(RENEWAL_MAX);
        }
        if self.keeps_news_away() {
            return REGISTERED_WITHIN;
        }
        TOLD_WITHIN
    }
}

impl World {
    /// Compares what subscribers have with what their owners are.
    pub(super) fn check_subscribed(&mut self) {
        let bound = self.bounds.subscribed;
        if self.refusals || self.now() <= self.bounds.quiet_from + bound {
            return;
        }
        let mut missing = None;
        for subscription in &self.scenario.subscriptions {
            let subscriber = subscription.agent;
            if !self.is_settled(subscriber) {
                continue;
            }
            for prefix in self.scenario.subscribed_prefixes(subscriber) {
                missing = missing.or_else(|| self.lacking(subscriber, &prefix));
            }
        }
        if let Some((agent, eid, owner)) = missing {
            self.broken(Invariant::Subscribed, || {
                format!(
                    "agent {agent} subscribed to {eid}, and has not what agent {owner} registered"
                )
            });
        }
    }

    /// An EID inside `prefix`, and its owner, that `subscriber` does not give to the key it has.
    fn lacking(&self, subscriber: u32, prefix: &IpNet) -> Option<(u32, IpAddr, u32)> {
        let host = self.agents.get(subscriber as usize)?;
        let table = host.running.as_ref()?.plane.interface.table();
        let inside = |eid: &(u32, IpAddr)| prefix.contains(&eid.1);
        let owners = (0..self.scenario.agents).filter(|owner| *owner != subscriber);
        let near = owners.filter(|owner| {
            let own = addresses::eid_prefixes(*owner);
            own.iter().any(|own| prefix.contains(own))
        });
        let eids = near
            .flat_map(|owner| [false, true].map(|ipv6| (owner, addresses::eid(owner, ipv6, 0))));
        let lacks = |(owner, eid): &(u32, IpAddr)| {
            let host = self.agents.get(*owner as usize);
            let key = host.and_then(|host| host.running.as_ref()).map(|it| it.key);
            self.is_settled(*owner) && table.lookup(*eid) != key
        };
        let (owner, eid) = eids.filter(inside).find(lacks)?;
        Some((subscriber, eid, owner))
    }

    /// Whether an agent is up, has been for long enough, and is heard by its map servers.
    fn is_settled(&self, agent: u32) -> bool {
        let host = self.agents.get(agent as usize);
        let running = host.and_then(|host| host.running.as_ref());
        let long = running.is_some_and(|it| self.now() > it.started + self.bounds.subscribed);
        long && self.is_up(agent) && !self.is_unheard(agent)
    }

    /// Whether a bug on purpose keeps a message of a map server from `agent`: a publication, which
    /// carries a nonce of the row of its subscriptions, but none that it has asked with.
    pub(super) fn sabotage_publication(&self, agent: u32, bytes: &[u8]) -> bool {
        if !self.sabotaged(Sabotage::DropPublications) {
            return false;
        }
        let Ok(Message::MapNotify(notify)) = decode(bytes) else {
            return false;
        };
        let nonce = notify.nonce.0;
        nonce >> 62 == 1 && !self.subscribed_with.contains(&(agent, nonce))
    }

    /// Takes note of the nonces that an agent subscribes with.
    pub(super) fn note_subscription(&mut self, agent: u32, bytes: &[u8]) {
        if !self.sabotaged(Sabotage::DropPublications) {
            return;
        }
        if let Ok(Message::MapRequest(request)) = decode(bytes)
            && request.eids().any(|asked| asked.subscribe)
        {
            self.subscribed_with.insert((agent, request.nonce.0));
        }
    }
}
