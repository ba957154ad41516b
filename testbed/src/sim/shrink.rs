//! What is the least that still fails?

use std::collections::BTreeSet;

use super::invariant::Invariant;
use super::net::Host;
use super::run::run;
use super::scenario::{FaultKind, Scenario, Target};

/// Runs that are spent on one failure.
const TRIES: usize = 400;

/// Drops faults, flows and agents while `invariant` is still broken.
#[must_use]
pub fn shrink(scenario: &Scenario, invariant: Invariant) -> Scenario {
    let mut search = Search {
        best: scenario.clone(),
        invariant,
        tries: TRIES,
    };
    search.shorten();
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
        search.drop_agents();
        search.shorten();
    }
    search.best
}

struct Search {
    best: Scenario,
    invariant: Invariant,
    tries: usize,
}

impl Search {
    /// Takes `candidate` if it still fails.
    fn attempt(&mut self, candidate: Scenario) -> bool {
        let Some(tries) = self.tries.checked_sub(1) else {
            return false;
        };
        self.tries = tries;
        let violation = run(&candidate, 0, &mut |_| {}).violation;
        let fails = violation.is_some_and(|violation| violation.invariant == self.invariant);
        if fails {
            self.best = candidate;
        }
        fails
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

    /// Leaves out the agents that nothing speaks of, then one by one those that only stand about
    /// in partitions.
    fn drop_agents(&mut self) {
        let mut used = BTreeSet::new();
        for flow in &self.best.flows {
            used.insert(flow.from);
            if let Target::Agent(to, _) = flow.to {
                used.insert(to);
            }
        }
        used.extend(
            self.best
                .faults
                .iter()
                .filter_map(|fault| agent_of(&fault.kind)),
        );
        let mut candidate = self.best.clone();
        candidate
            .absent
            .extend((0..candidate.agents).filter(|agent| !used.contains(agent)));
        if candidate != self.best {
            self.attempt(candidate);
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
            absent,
            agents,
            ..
        } = &self.best;
        faults.len() + flows.len() + *agents as usize - absent.len()
    }
}

/// The agent that a fault happens to.
fn agent_of(kind: &FaultKind) -> Option<u32> {
    match kind {
        FaultKind::Crash { agent, .. }
        | FaultKind::Stop { agent, .. }
        | FaultKind::Move { agent }
        | FaultKind::NatRestart { agent }
        | FaultKind::ClockJump {
            host: Host::Agent(agent),
            ..
        }
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
