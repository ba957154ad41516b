//! What may change while the agent runs, without a tunnel noticing.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, Timestamp, Ttl};

use super::control::routes_within;
use super::{Actions, Agent};

/// The part of a [`Config`](super::Config) that a running agent can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustable {
    /// How long others may keep our mappings.
    pub ttl: Ttl,
    /// Time between registrations, before jitter.
    pub register_interval: Duration,
    /// How long packets wait for an answer before they are given up.
    pub hold: Duration,
    /// Destinations that are kept ready before a packet goes there.
    pub subscriptions: Vec<IpNet>,
    /// Addresses beyond proxies that answer echoes.
    pub witnesses: Vec<IpAddr>,
    /// The prefixes that live here.
    pub eid_prefixes: Vec<IpNet>,
    /// Destinations that are looked up.
    pub overlay: Vec<IpNet>,
    /// How long a peer is not used before it is removed.
    pub idle: Duration,
    /// Peers in the data plane.
    pub max_peers: usize,
}

impl Agent {
    /// What is in effect.
    #[must_use]
    pub fn adjustable(&self) -> Adjustable {
        Adjustable {
            ttl: self.config.ttl,
            register_interval: self.config.register_interval,
            hold: self.config.hold,
            subscriptions: self.config.subscriptions.clone(),
            witnesses: self.config.witnesses.clone(),
            eid_prefixes: self.config.eid_prefixes.clone(),
            overlay: self.config.overlay.clone(),
            idle: self.config.idle,
            max_peers: self.config.max_peers,
        }
    }

    /// Puts `wanted` into effect. The map servers are told at once; new subscriptions begin when
    /// they have answered. Mappings, peers and routes stay as they are, but for those that another
    /// overlay has no room for, or that lie where we live now.
    pub fn reconfigure(&mut self, now: Timestamp, wanted: Adjustable, actions: &mut Actions) {
        if wanted == self.adjustable() || self.stopping {
            return;
        }
        let Adjustable {
            ttl,
            register_interval,
            hold,
            subscriptions,
            witnesses,
            eid_prefixes,
            overlay,
            idle,
            max_peers,
        } = wanted;
        self.config.ttl = ttl;
        self.config.register_interval = register_interval;
        self.config.hold = hold;
        self.config.subscriptions = subscriptions;
        self.config.witnesses = witnesses;
        self.config.idle = idle;
        self.config.max_peers = max_peers;
        self.move_house(now, eid_prefixes, overlay, actions);
        self.unsubscribe_unwanted(now, actions);
        self.register_all(now, actions);
    }

    /// Other prefixes live here, or others are looked up, from now on.
    fn move_house(
        &mut self,
        now: Timestamp,
        own: Vec<IpNet>,
        overlay: Vec<IpNet>,
        actions: &mut Actions,
    ) {
        if own != self.config.eid_prefixes {
            for server in &mut self.servers {
                server.registration.replace(&self.config.eid_prefixes, &own);
            }
        }
        let before = &self.config.overlay;
        let is_touched = |prefix: &IpNet| {
            let lives_here = own.iter().any(|own| own.contains(prefix));
            lives_here || routes_within(before, prefix) != routes_within(&overlay, prefix)
        };
        let mappings = self.cache.iter().map(|(prefix, _)| prefix);
        let touched: Vec<IpNet> = mappings.filter(is_touched).collect();
        let mut waiting = Vec::new();
        for prefix in touched {
            if let Some(entry) = self.cache.get_mut(&prefix) {
                waiting.extend(entry.held.take(&mut self.budget));
            }
            self.forget(prefix, actions);
        }
        self.config.eid_prefixes = own;
        self.config.overlay = overlay;
        for dst in self.resolver.destinations() {
            let eid = EidPrefix::host(self.config.iid, dst);
            if self.is_own(&eid) || !self.in_overlay(&IpNet::from(dst)) {
                self.give_up(now, dst, actions);
            }
        }
        for packet in waiting {
            self.tun_packet(now, &packet, actions);
        }
    }
}
