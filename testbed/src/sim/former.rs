//! A host whose agent is replaced by one with another key, at another port. What it had serves on for
//! a while, so that those who send to it can move without losing a packet.

use super::addresses::DATA_PORT;
use super::agent_host::{AgentHost, Which};
use super::invariant::Invariant;
use super::scenario::{FaultKind, Flow, Scenario, Target};
use super::wireguard::Interface;
use super::world::World;

/// The data interface of an agent that was replaced.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) interface: Interface,
    pub(super) port: u16,
}

impl AgentHost {
    /// The interface that has this UDP port.
    pub(super) fn which(&self, port: u16) -> Which {
        let is_former = |former: &Former| former.port == port;
        match port {
            super::addresses::CONTROL_TUNNEL_PORT => Which::Control,
            _ if self.former.as_ref().is_some_and(is_former) => Which::Former,
            _ => Which::Data,
        }
    }
}

impl Scenario {
    /// Whether nothing goes wrong but that agents are replaced.
    fn only_replaces(&self) -> bool {
        let replaces = |kind: &FaultKind| matches!(kind, FaultKind::Replace { .. });
        self.faults.iter().all(|fault| replaces(&fault.kind))
    }

    fn replaces(&self, agent: u32) -> bool {
        let is_it =
            |kind: &FaultKind| matches!(kind, FaultKind::Replace { agent: it } if *it == agent);
        self.faults.iter().any(|fault| is_it(&fault.kind))
    }
}

impl World {
    /// Starts an agent with another key in place of the one that runs; its data interface stays.
    pub(super) fn replace_agent(&mut self, number: u32) {
        let now = self.now();
        if self.network.behind_nat(number) {
            return;
        }
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let Some(running) = host.running.take() else {
            return;
        };
        self.stats.agent_ns += (now - running.started).as_nanos();
        let port = host.data_port;
        host.former = Some(Former {
            interface: running.plane.interface,
            port,
        });
        host.data_port = if port == DATA_PORT {
            DATA_PORT + 1
        } else {
            DATA_PORT
        };
        host.wake = None;
        host.generation += 1;
        self.ledger.forget(number);
        for flow in self.flows_of.get(&number).into_iter().flatten() {
            let state = self.flows.get_mut(*flow as usize);
            if let Some(state) = state.filter(|state| state.flow.from == number) {
                state.forget();
            }
        }
        self.start_agent(number);
    }

    /// What served on is gone.
    pub(super) fn former_ends(&mut self, number: u32) {
        if let Some(host) = self.agents.get_mut(number as usize) {
            host.former = None;
        }
    }

    /// Takes in that a packet of a flow never arrived: none may be lost on its way to a host whose
    /// agent is replaced, if nothing else goes wrong. Its answers are another matter: they come from
    /// the new key before the sender has moved there.
    pub(super) fn lost_on_the_way(&mut self, number: u32, flow: &Flow) {
        let Target::Agent(to, _) = flow.to else {
            return;
        };
        if self.scenario.only_replaces()
            && self.scenario.replaces(to)
            && !self.scenario.replaces(flow.from)
            && !flow.echo
            && self.can_work(flow)
        {
            self.broken(Invariant::Handover, || {
                format!("flow {number} to agent {to}, which was replaced, has lost a packet")
            });
        }
    }
}
