//! What may change while the agent runs, without a tunnel noticing.

use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Timestamp, Ttl};

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
        }
    }

    /// Puts `wanted` into effect. The map servers are told at once; new subscriptions begin when
    /// they have answered. Mappings, peers and routes stay as they are.
    pub fn reconfigure(&mut self, now: Timestamp, wanted: Adjustable, actions: &mut Actions) {
        if wanted == self.adjustable() || self.stopping {
            return;
        }
        let Adjustable {
            ttl,
            register_interval,
            hold,
            subscriptions,
        } = wanted;
        self.config.ttl = ttl;
        self.config.register_interval = register_interval;
        self.config.hold = hold;
        self.config.subscriptions = subscriptions;
        self.unsubscribe_unwanted(now, actions);
        self.register_all(now, actions);
    }
}
