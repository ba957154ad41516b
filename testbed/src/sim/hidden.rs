//! What must be true of agents that NATs keep from each other, and of their relays?

use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};

use super::addresses;
use super::app::{COLD_START_MAX, pair};
use super::enrolment::named;
use super::invariant::Invariant;
use super::routers::Reach;
use super::scenario::{Flow, Scenario, Target, millis};
use super::traffic::{PATIENCE, PATIENCE_WITH_NATS};
use super::world::World;

/// A NAT that has forgotten, or has moved, is noticed within a minute.
pub(super) const NOTICED: Duration = Duration::from_secs(60);
/// So long after the last fault nobody uses a relay who can do without: while things went wrong two ends may have tried twice
/// without, in vain, and then they have one for four minutes.
pub(super) const DIRECT_AGAIN: Duration = Duration::from_secs(300);
/// Nothing is left of a relay that was not used for so long: when its time is over the two may try without once or twice
/// more, in vain, and have one for eight minutes, which is remembered for half an hour.
const RELAYS_REST: Duration = Duration::from_secs(3_600);
/// How long the first relay of a pair carries its packets, and a while to leave it.
const FIRST_RELAY: Duration = Duration::from_secs(130);
/// How long after one of two ends the other one hears of their relay.
const BETWEEN_WAYS: Duration = Duration::from_secs(1);
/// Two ends that begin no further apart than this may both say hello before they hear of each other, in milliseconds.
const CROSSING_MS: u64 = 300;
/// The first packet over a relay is answered within this time: for a second it is tried without.
const COLD_RELAYED_MAX: Duration = Duration::from_millis(2_900);
/// The first packet between two hosts that are both behind NATs is answered within this time: both say hello at once, and
/// initiations that cross lead to no session.
const COLD_MET_MAX: Duration = Duration::from_secs(2);
/// The first packet to somebody who has to find us is answered within this time.
const COLD_FOUND_MAX: Duration = Duration::from_secs(2);

impl Scenario {
    /// How long the first packet between two agents takes at most.
    pub(super) fn cold_start_max(&self, one: u32, other: u32) -> Duration {
        match self.reach(one, other) {
            Reach::Direct if self.is_hidden(one) && self.is_hidden(other) => COLD_MET_MAX,
            Reach::Direct | Reach::Never => COLD_START_MAX,
            Reach::OneWay => COLD_FOUND_MAX,
            Reach::Relayed => COLD_RELAYED_MAX,
        }
    }

    /// When a packet of a flow has failed.
    pub(super) fn patience(&self, flow: &Flow) -> Duration {
        let Target::Agent(to, _) = flow.to else {
            return PATIENCE;
        };
        match self.reach(flow.from, to) {
            Reach::Direct | Reach::Never => PATIENCE,
            Reach::OneWay | Reach::Relayed => PATIENCE_WITH_NATS,
        }
    }
}

impl World {
    /// Whether there is a way between two agents.
    pub(super) fn has_way(&self, one: u32, other: u32) -> bool {
        match self.scenario.reach(one, other) {
            Reach::Direct | Reach::OneWay => true,
            Reach::Never => false,
            Reach::Relayed => {
                let mut relays = self.relays();
                relays.any(|relay| self.is_up(relay) && !self.is_unheard(relay))
            }
        }
    }

    /// Takes in that a packet went from one agent to another, over a relay or not.
    pub(super) fn note_way(&mut self, from: u32, to: u32, via: Option<u32>) {
        let Some(via) = via else {
            let hidden = [from, to].map(|agent| self.scenario.router_of(agent));
            if let [Some((one, _)), Some((other, _))] = hidden {
                self.stats.between_nats += u64::from(one != other);
            }
            return;
        };
        self.stats.relayed += 1;
        self.stats.last_relayed = Some(self.now());
        if self.scenario.reach(from, to) != Reach::Relayed && self.has_had_time() {
            self.broken(Invariant::Direct, || {
                format!("agent {from} reaches agent {to} over relay {via}, and could do without")
            });
        }
    }

    /// Two agents have got a relay.
    pub(super) fn note_relayed(&mut self, one: &str, other: &str) {
        let now = self.now();
        if let (Some(one), Some(other)) = (named(one), named(other)) {
            let times = self.relayed.entry(pair(one, other)).or_default();
            times.push(now);
        }
    }

    /// Whether a packet of a flow is one of the first between two hosts behind NATs that both begin at once: initiations that
    /// cross lead to no session, and a peer that is taken out for that may just have got one.
    pub(super) fn is_crossing(&self, number: u32, sent: Timestamp) -> bool {
        let Some(flow) = self.flows.get(number as usize).map(|it| it.flow) else {
            return false;
        };
        let Target::Agent(to, _) = flow.to else {
            return false;
        };
        let met = self.scenario.is_hidden(flow.from) && self.scenario.is_hidden(to);
        let mut others = self.scenario.flows.iter();
        let crosses = others.any(|other| {
            let back = matches!(other.to, Target::Agent(it, _) if it == flow.from);
            let apart = other.start_ms.abs_diff(flow.start_ms);
            other.from == to && back && apart <= CROSSING_MS
        });
        met && crosses && sent <= millis(flow.start_ms) + COLD_MET_MAX
    }

    /// Whether a packet of a flow was sent around the time when its two ends have got a relay, and both had something to send
    /// then: the one that hears of it first sends before the other one listens.
    pub(super) fn is_between_ways(&self, number: u32, sent: Timestamp) -> bool {
        let Some(state) = self.flows.get(number as usize) else {
            return false;
        };
        let Target::Agent(to, _) = state.flow.to else {
            return false;
        };
        let ends = pair(state.flow.from, to);
        let mut times = self.relayed.get(&ends).into_iter().flatten();
        let moment =
            times.find(|at| **at <= sent + PATIENCE_WITH_NATS && sent <= **at + BETWEEN_WAYS);
        let Some(moment) = moment else {
            return false;
        };
        let is_later = state.last_failed.is_some_and(|(sequence, _)| sequence > 0);
        let mut others = (0u32..).zip(&self.scenario.flows);
        let crosses = others.any(|(other, flow)| {
            let is_theirs = matches!(flow.to, Target::Agent(to, _) if pair(flow.from, to) == ends);
            let begins = millis(flow.start_ms);
            let ends = begins + Duration::from_micros(flow.interval_us) * flow.packets;
            let is_then = begins <= *moment + BETWEEN_WAYS && ends + PATIENCE_WITH_NATS >= *moment;
            other != number && is_theirs && is_then
        });
        is_later || crosses
    }

    /// Whether all who can do without a relay have had the time to find that out.
    fn has_had_time(&self) -> bool {
        let now = self.now();
        match (
            self.scenario.faults.is_empty(),
            self.scenario.subscriptions.is_empty(),
        ) {
            (true, true) => now >= self.bounds.warm_from,
            // Who subscribes may ask before everybody knows where he is seen.
            (true, false) => now > self.bounds.warm_from + FIRST_RELAY,
            (false, _) => now > self.bounds.quiet_from + DIRECT_AGAIN,
        }
    }

    /// Checks that nothing is left of relays that nobody has used for long.
    pub(super) fn check_relays_rest(&mut self) {
        let last = self.stats.last_relayed;
        if last.is_none_or(|last| self.now() < last + RELAYS_REST) {
            return;
        }
        let running = self.servers.iter().filter_map(|host| host.running.as_ref());
        let pairs: usize = running.map(|it| it.server.sizes().relayed).sum();
        let agents = (0..self.scenario.agents).filter(|it| !self.scenario.is_relay(*it));
        let mut relayed = agents.filter(|agent| self.has_relayed(*agent));
        if let Some(agent) = relayed.next() {
            self.broken(Invariant::Resting, || {
                format!("agent {agent} has a mapping over a relay that it has not used for long")
            });
        }
        if pairs > 0 {
            self.broken(Invariant::Resting, || {
                format!("{pairs} pairs have relays that they have not used for long")
            });
        }
    }

    /// Whether an agent reaches another one over a relay.
    fn has_relayed(&self, agent: u32) -> bool {
        let host = self.agents.get(agent as usize);
        let Some(running) = host.and_then(|host| host.running.as_deref()) else {
            return false;
        };
        let mut entries = running.plane.interface.table().iter();
        entries.any(|(prefix, key)| {
            let owner = addresses::owner(prefix.addr(), self.scenario.agents);
            self.is_relay_key(&key) && owner.is_some_and(|owner| !self.scenario.is_relay(owner))
        })
    }

    /// Whether a key is that of a relay.
    pub(super) fn is_relay_key(&self, key: &PublicKey) -> bool {
        let owner = self.keys.get(key);
        owner.is_some_and(|owner| self.scenario.is_relay(*owner))
    }
}
