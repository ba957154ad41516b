//! Hosts behind routers with NATs that agents find out about, and proxies that are relays for those
//! whom NATs keep apart. What must be true of them is in `hidden.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::nat::Ports;
use super::net::Host;
use super::proxies::Proxies;
use super::scenario::{Fault, FaultKind, Flow, Scenario, Target};
use super::seeds::stream;

/// Time for all agents to find out where they are seen, in milliseconds.
const FOUND_MS: u64 = 8_000;
/// The same if some have far ends before that: these are told an address that may be another one than the one that a NAT gives
/// towards them, and learn that with the next keepalive.
const FOUND_AND_TOLD_MS: u64 = 35_000;
/// Time without faults at the end, in milliseconds: for those that can do without a relay to do so
/// ([`super::hidden::DIRECT_AGAIN`]), and a minute more.
const QUIET_MS: u64 = 360_000;
/// Least time between two packets of a flow that lasts to the end of a run, in microseconds.
const LASTING_US: u64 = 700_000;
/// Hosts behind one NAT.
const HOSTS: usize = 3;

/// A router with a NAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// The agents behind it.
    pub hosts: BTreeSet<u32>,
    /// Which ports it gives them.
    pub ports: Ports,
    /// Silence after which it forgets one, in seconds.
    pub forgets_s: u64,
}

impl Router {
    /// Silence after which it forgets a port.
    pub(super) const fn forgets(&self) -> Duration {
        Duration::from_secs(self.forgets_s)
    }
}

/// How two agents reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Without anybody's help.
    Direct,
    /// The same, but only one of the two can begin.
    OneWay,
    /// Through a relay.
    Relayed,
    /// Not at all.
    Never,
}

impl Scenario {
    /// Turns this run into one in which three of four agents are behind NATs, and find out. Most have a proxy or two that
    /// are relays. With `failures` NATs forget, and move, and relays fail, all as the seed says.
    #[must_use]
    pub fn hidden(mut self, failures: bool) -> Self {
        let mut rng = stream(self.seed, "hidden");
        let rng = &mut rng;
        self.servers = 1;
        self.nat_percent = 0;
        let relays = if rng.random_bool(0.7) {
            rng.random_range(1..=2)
        } else {
            0
        };
        self.agents = self.agents.max(relays + 4);
        self.proxies = (relays > 0).then(|| Proxies {
            count: relays,
            relays: true,
            moves: Vec::new(),
        });
        self.routers = routers(relays..self.agents, rng);
        self.begin_later();
        if relays > 0 {
            // A relay serves all of the overlay, with what nobody has.
            let is_to_nobody = |flow: &Flow| matches!(flow.to, Target::Nobody(_));
            self.flows.retain(|flow| !is_to_nobody(flow));
        }
        let warm = self.start_within_ms + 4_000 + self.found_ms();
        let busy = self.quiet_from().0 / 1_000_000;
        let busy = busy.max(warm + 60_000);
        if failures {
            self.add_failures(warm..busy, relays, rng);
        }
        self.faults.sort_by_key(|fault| fault.at_ms);
        let calm = self.faults.is_empty();
        let end = if calm {
            self.duration_ms
        } else {
            busy + QUIET_MS
        };
        self.last_until(end);
        for _ in 0..self.agents {
            let late = end.saturating_sub(rng.random_range(10_000..120_000));
            let start_ms = if rng.random() {
                late
            } else {
                warm + rng.random_range(0..20_000)
            };
            self.add_pair(start_ms.max(warm), rng);
        }
        self
    }

    /// Moves everything to when all agents know where they are.
    fn begin_later(&mut self) {
        let later = self.found_ms();
        self.duration_ms += later;
        for flow in &mut self.flows {
            flow.start_ms += later;
        }
        for fault in &mut self.faults {
            fault.at_ms += later;
        }
    }

    pub(super) fn found_ms(&self) -> u64 {
        match self.subscriptions.is_empty() {
            true => FOUND_MS,
            false => FOUND_AND_TOLD_MS,
        }
    }

    /// Makes the run end at `end`, and so those flows that last to its end.
    fn last_until(&mut self, end: u64) {
        let before = std::mem::replace(&mut self.duration_ms, end);
        for flow in &mut self.flows {
            let interval_us = flow.interval_us.max(1);
            let last = flow.start_ms + u64::from(flow.packets) * interval_us / 1_000;
            // A burst stays one.
            if last + 6_000 > before && interval_us >= LASTING_US {
                let packets = end.saturating_sub(flow.start_ms + 3_000) * 1_000 / interval_us;
                flow.packets = u32::try_from(packets).unwrap_or(u32::MAX).max(1);
            }
        }
    }

    /// Adds a flow between two agents behind NATs, which lasts for a while.
    fn add_pair(&mut self, start_ms: u64, rng: &mut StdRng) {
        let hidden: Vec<u32> = (0..self.agents).filter(|it| self.is_hidden(*it)).collect();
        let (Some(from), Some(to)) = (hidden.choose(rng), hidden.choose(rng)) else {
            return;
        };
        let interval_us = rng.random_range(100_000..1_500_000);
        let left = self.duration_ms.saturating_sub(start_ms + 3_000) * 1_000 / interval_us;
        let most = u32::try_from(left).unwrap_or(u32::MAX).max(2);
        let flow = Flow {
            from: *from,
            to: Target::Agent(*to, rng.random_range(0..16)),
            ipv6: rng.random_bool(0.4),
            echo: rng.random_bool(0.6),
            start_ms,
            packets: rng.random_range(1..most.min(300)),
            interval_us,
        };
        if from != to {
            self.flows.push(flow);
        }
    }

    fn add_failures(&mut self, span: std::ops::Range<u64>, relays: u32, rng: &mut StdRng) {
        let hidden: Vec<u32> = (0..self.agents).filter(|it| self.is_hidden(*it)).collect();
        for _ in 0..rng.random_range(1..=4) {
            let agent = hidden.choose(rng).copied().unwrap_or(0);
            let kind = match rng.random_bool(0.6) {
                true => FaultKind::NatRestart { agent },
                false => FaultKind::Move { agent },
            };
            let at_ms = rng.random_range(span.clone());
            self.faults.push(Fault {
                at_ms,
                for_ms: 0,
                kind,
            });
        }
        let kinds: [fn(u32) -> FaultKind; 3] = [
            |agent| FaultKind::Crash {
                agent,
                disk_lost: false,
            },
            |agent| FaultKind::NotForwarding { agent },
            |agent| FaultKind::Cut {
                side: [Host::Agent(agent)].into(),
                one_way: false,
            },
        ];
        let most = if relays > 0 {
            rng.random_range(0..=2)
        } else {
            0
        };
        for _ in 0..most {
            let relay = rng.random_range(0..relays);
            let at_ms = rng.random_range(span.clone());
            let for_ms = rng.random_range(2_000..40_000).min(span.end - at_ms);
            self.faults.extend(kinds.choose(rng).map(|kind| Fault {
                at_ms,
                for_ms,
                kind: kind(relay),
            }));
        }
    }

    /// How much longer it takes until agents know where they are.
    pub(super) fn finds_out_within(&self) -> Duration {
        match self.detects_nats() {
            true => Duration::from_millis(self.found_ms()),
            false => Duration::ZERO,
        }
    }

    /// Whether agents find out about NATs in this run.
    pub(super) fn detects_nats(&self) -> bool {
        !self.routers.is_empty()
    }

    /// The number of the router that an agent is behind, and what that is like.
    pub(super) fn router_of(&self, agent: u32) -> Option<(u32, &Router)> {
        let mut routers = (0..).zip(&self.routers);
        routers.find(|(_, router)| router.hosts.contains(&agent))
    }

    /// Whether an agent is behind a NAT that it finds out about.
    pub(super) fn is_hidden(&self, agent: u32) -> bool {
        self.router_of(agent).is_some()
    }

    /// Whether an agent may carry the packets of others.
    pub(super) fn is_relay(&self, agent: u32) -> bool {
        self.is_proxy(agent) && self.proxies.as_ref().is_some_and(|it| it.relays)
    }

    /// How two agents reach each other.
    pub(super) fn reach(&self, one: u32, other: u32) -> Reach {
        if !self.detects_nats() {
            let both = self.behind_nat(one) && self.behind_nat(other);
            return if both { Reach::Never } else { Reach::Direct };
        }
        let scatters = |router: &Router| router.ports == Ports::Scattered;
        match (self.router_of(one), self.router_of(other)) {
            (Some((one, _)), Some((other, _))) if one == other => Reach::Direct,
            (Some((_, one)), Some((_, other))) if scatters(one) || scatters(other) => {
                if self.proxies.as_ref().is_some_and(|it| it.relays) {
                    Reach::Relayed
                } else {
                    Reach::Never
                }
            }
            (Some((_, router)), None) | (None, Some((_, router))) if scatters(router) => {
                Reach::OneWay
            }
            (Some(_) | None, Some(_) | None) => Reach::Direct,
        }
    }
}

/// Puts three of four agents behind NATs: some share one.
fn routers(agents: std::ops::Range<u32>, rng: &mut StdRng) -> Vec<Router> {
    let mut routers: Vec<Router> = Vec::new();
    // In some runs all NATs are cones, in some only few.
    let scattered = *[0.0, 0.3, 0.6].choose(rng).unwrap_or(&0.3);
    for agent in agents {
        if rng.random_bool(0.25) {
            continue;
        }
        let shared = routers.last_mut().filter(|it| it.hosts.len() < HOSTS);
        match shared.filter(|_| rng.random_bool(0.25)) {
            Some(router) => {
                router.hosts.insert(agent);
            }
            None => routers.push(Router {
                hosts: [agent].into(),
                ports: match rng.random_bool(scattered) {
                    true => Ports::Scattered,
                    false => *[Ports::Kept, Ports::Changed]
                        .choose(rng)
                        .unwrap_or(&Ports::Kept),
                },
                forgets_s: *[30, 60, 120].choose(rng).unwrap_or(&120),
            }),
        }
    }
    routers
}
