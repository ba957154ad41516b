//! Subscribers (RFC 9437): what do they ask to be told, and do they have it?

use std::collections::BTreeSet;
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

/// An EID that a subscriber shall give to the key of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    subscriber: u32,
    owner: u32,
    eid: IpAddr,
}

impl Scenario {
    /// What all subscribers shall have.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let mut wanted = BTreeSet::new();
        let subscribers: BTreeSet<u32> = self.subscriptions.iter().map(|it| it.agent).collect();
        for subscriber in subscribers {
            for prefix in self.subscribed_prefixes(subscriber) {
                let owners = addresses::owners(&prefix, self.agents);
                let eids = owners.flat_map(|owner| {
                    [false, true].map(|ipv6| Wanted {
                        subscriber,
                        owner,
                        eid: addresses::eid(owner, ipv6, 0),
                    })
                });
                wanted.extend(eids.filter(|it| it.owner != subscriber && prefix.contains(&it.eid)));
            }
        }
        wanted.into_iter().collect()
    }

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
    ///
    /// What is missing at one look only is on its way: an agent that takes a far end for one that
    /// has lost its session takes the peer out and puts it back, route first, and packets wait.
    pub(super) fn check_subscribed(&mut self) {
        let bound = self.bounds.subscribed;
        if self.now() <= self.bounds.quiet_from + bound {
            return;
        }
        let settled: Vec<bool> = (0..self.scenario.agents)
            .map(|agent| self.is_settled(agent))
            .collect();
        let is_settled = |agent: u32| settled.get(agent as usize).copied().unwrap_or(false);
        let missing = self.wanted.iter().filter(|wanted| {
            let may = !self.refusers.contains(&wanted.subscriber);
            may && is_settled(wanted.subscriber) && is_settled(wanted.owner) && self.lacks(wanted)
        });
        let missing: BTreeSet<Wanted> = missing.copied().collect();
        if let Some(wanted) = missing.intersection(&self.missed).next().copied() {
            self.broken(Invariant::Subscribed, || {
                let Wanted {
                    subscriber,
                    eid,
                    owner,
                } = wanted;
                format!(
                    "agent {subscriber} subscribed to {eid}, and has not what agent {owner} registered"
                )
            });
        }
        self.missed = missing;
    }

    /// Whether a subscriber does not give an EID to the key that its owner has.
    fn lacks(&self, wanted: &Wanted) -> bool {
        let running = |agent: u32| {
            let host = self.agents.get(agent as usize);
            host.and_then(|host| host.running.as_ref())
        };
        let Some(subscriber) = running(wanted.subscriber) else {
            return false;
        };
        let given = subscriber.plane.interface.table().lookup(wanted.eid);
        let over_relay = given.is_some_and(|key| self.is_relay_key(&key));
        !over_relay && given != running(wanted.owner).map(|owner| owner.key)
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
