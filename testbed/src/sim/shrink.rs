//! What is the least that still fails?

use std::collections::BTreeSet;

use super::invariant::Invariant;
use super::net::Host;
use super::run::run;
use super::scenario::{FaultKind, Scenario, Target};

/// Runs that are spent on one failure.
const TRIES: usize = 400;
/// Events that are spent on one failure: some minutes.
const EVENTS: u64 = 300_000_000;

/// Drops faults, flows and agents while `invariant` is still broken.
#[must_use]
pub fn shrink(scenario: &Scenario, invariant: Invariant) -> Scenario {
    let mut search = Search {
        best: scenario.clone(),
        invariant,
        tries: TRIES,
        events: EVENTS,
    };
    search.shorten();
    search.drop_parts(
        |scenario| scenario.flows.len(),
        |scenario, range| {
            scenario.flows.drain(range);
            leave_out_idle(scenario);
        },
    );
    let mut before = 0;
    while before != search.size() {
        before = search.size();
        search.drop_parts(
            |scenario| scenario.faults.len(),
            |scenario, range| {
                scenario.faults.drain(range);
            },
        );
        search.drop_parts(
            |scenario| scenario.flows.len(),
            |scenario, range| {
                scenario.flows.drain(range);
            },
        );
        search.drop_parts(
            |scenario| scenario.subscriptions.len(),
            |scenario, range| {
                scenario.subscriptions.drain(range);
            },
        );
        search.drop_parts(
            |scenario| scenario.moves().len(),
            |scenario, range| {
                if let Some(proxies) = &mut scenario.proxies {
                    proxies.moves.drain(range);
                }
            },
        );
        search.change(leave_out_idle);
        search.change(|scenario| scenario.servers = 1);
        search.change(|scenario| scenario.nat_percent = 0);
        search.change(|scenario| scenario.ipv6_underlay = false);
        search.shorten();
    }
    search.best
}

struct Search {
    best: Scenario,
    invariant: Invariant,
    tries: usize,
    events: u64,
}

impl Search {
    /// Takes `candidate` if it still fails.
    fn attempt(&mut self, candidate: Scenario) -> bool {
        if self.tries == 0 || self.events == 0 {
            return false;
        }
        let outcome = run(&candidate, 0, &mut |_| {});
        self.tries -= 1;
        self.events = self.events.saturating_sub(outcome.report.events);
        let fails = outcome
            .violation
            .is_some_and(|violation| violation.invariant == self.invariant);
        if fails {
            self.best = candidate;
        }
        fails
    }

    /// Makes a change if there is anything to change and it still fails then.
    fn change(&mut self, change: impl FnOnce(&mut Scenario)) {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        if candidate != self.best {
            self.attempt(candidate);
        }
    }

    /// Leaves out halves, quarters, and at last single parts.
    fn drop_parts(
        &mut self,
        len: impl Fn(&Scenario) -> usize,
        drop: impl Fn(&mut Scenario, std::ops::Range<usize>),
    ) {
        let mut size = len(&self.best).div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < len(&self.best) {
                let mut candidate = self.best.clone();
                let end = (start + size).min(len(&candidate));
                drop(&mut candidate, start..end);
                if !self.attempt(candidate) {
                    start += size;
                }
            }
            size /= 2;
        }
    }

    /// Ends the run with the failure.
    fn shorten(&mut self) {
        let Some(violation) = run(&self.best, 0, &mut |_| {}).violation else {
            return;
        };
        let mut candidate = self.best.clone();
        candidate.duration_ms = violation.at.0 / 1_000_000 + 1;
        if candidate.duration_ms < self.best.duration_ms {
            self.attempt(candidate);
        }
    }

    fn size(&self) -> usize {
        let Scenario {
            faults,
            flows,
            subscriptions,
            proxies,
            absent,
            agents,
            servers,
            ..
        } = &self.best;
        let moves = proxies.as_ref().map_or(0, |proxies| proxies.moves.len());
        faults.len() + flows.len() + subscriptions.len() + moves + (*agents + *servers) as usize
            - absent.len()
    }
}

/// Leaves out the agents that have no traffic, and to which nothing happens.
fn leave_out_idle(scenario: &mut Scenario) {
    let mut busy: BTreeSet<u32> = scenario
        .faults
        .iter()
        .filter_map(|fault| agent_of(&fault.kind))
        .collect();
    for flow in &scenario.flows {
        busy.insert(flow.from);
        if let Target::Agent(to, _) = flow.to {
            busy.insert(to);
        }
    }
    busy.extend((0..scenario.agents).filter(|agent| scenario.is_proxy(*agent)));
    for subscription in &scenario.subscriptions {
        busy.extend([subscription.agent, subscription.of]);
    }
    let idle = (0..scenario.agents).filter(|agent| !busy.contains(agent));
    scenario.absent.extend(idle);
}

/// The agent that a fault happens to.
fn agent_of(kind: &FaultKind) -> Option<u32> {
    match kind {
        FaultKind::Crash { agent, .. }
        | FaultKind::Stop { agent, .. }
        | FaultKind::Replace { agent }
        | FaultKind::Move { agent }
        | FaultKind::Uplink { agent, .. }
        | FaultKind::NatRestart { agent }
        | FaultKind::ClockJump {
            host: Host::Agent(agent),
            ..
        }
        | FaultKind::NotForwarding { agent }
        | FaultKind::DataPlane { agent, .. }
        | FaultKind::Attack {
            host: Host::Agent(agent),
            ..
        }
        | FaultKind::Scan { agent, .. } => Some(*agent),
        FaultKind::Weather { .. }
        | FaultKind::Cut { .. }
        | FaultKind::CrashServer { .. }
        | FaultKind::ClockJump {
            host: Host::Server(_),
            ..
        }
        | FaultKind::Attack {
            host: Host::Server(_),
            ..
        } => None,
    }
}
