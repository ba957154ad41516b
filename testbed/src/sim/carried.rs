//! What relays pass on. Between a relay and the far end a packet is another one with a number of its own, so that all that
//! must be true of packets is true of each part of its way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::addresses;
use super::packet::Probe;
use super::scenario::Target;
use super::wireguard::Inner;
use super::world::World;

/// The first flow from a relay to a far end.
const FIRST_FLOW: u32 = 1 << 31;
/// No packet goes over more relays.
const RELAYS_MAX: u8 = 2;

/// Packets that relays have passed on.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// By the number that they have got.
    packets: BTreeMap<u64, Passed>,
    /// Flows through relays, and how many packets each had: by relay, flow and direction.
    flows: BTreeMap<(u32, u32, bool), (u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    original: Probe,
    by: u32,
    relays: u8,
}

impl Carried {
    /// Returns a packet as relay `by` passes it on.
    fn pass(&mut self, id: u64, original: Probe, by: u32, relays: u8) -> Probe {
        let number = u32::try_from(self.flows.len()).unwrap_or(u32::MAX);
        let flow = self.flows.entry((by, original.flow, original.echo));
        let (flow, next) = flow.or_insert_with(|| (FIRST_FLOW.saturating_add(number), 0));
        let sequence = *next;
        *next += 1;
        let flow = *flow;
        let passed = Passed {
            original,
            by,
            relays,
        };
        self.packets.insert(id, passed);
        Probe {
            id,
            flow,
            sequence,
            echo: false,
            about: sequence,
        }
    }
}

impl World {
    /// Whether what comes to an agent for `dst` is for somebody else, whom it passes it on to.
    pub(super) fn is_passed_on(&self, number: u32, dst: IpAddr) -> bool {
        let is_own = addresses::owner(dst, self.scenario.agents) == Some(number);
        self.scenario.is_relay(number) && !is_own
    }

    /// Passes a packet on that came out of a tunnel, if this is a relay and the packet is for somebody else.
    pub(super) fn passes_on(&mut self, number: u32, probe: &Probe, inner: &Inner) -> bool {
        if !self.is_passed_on(number, inner.dst) {
            return false;
        }
        self.comes_through(number, probe);
        let before = self.carried.packets.get(&probe.id).copied();
        let original = before.map_or(*probe, |it| it.original);
        let relays = before.map_or(0, |it| it.relays) + 1;
        let flow = self.flows.get(original.flow as usize);
        let is_for_agent = flow.is_some_and(|it| matches!(it.flow.to, Target::Agent(..)));
        let is_deaf = self
            .agents
            .get(number as usize)
            .is_some_and(|host| host.is_deaf);
        if is_deaf || !is_for_agent || relays > RELAYS_MAX {
            return true;
        }
        let id = self.ledger.issue();
        let passed = self.carried.pass(id, original, number, relays);
        if let Some(packet) = passed.packet(inner.src, inner.dst) {
            let now = self.now();
            self.trace.say(now, || {
                let Probe { about, flow, .. } = original;
                format!("agent {number} passes packet {about} of flow {flow} on")
            });
            self.local_send(number, &passed, packet, inner.dst);
        }
        true
    }

    /// Returns a packet as it was sent, and the relay that passed it on, if any did; nothing if it is none that is known.
    pub(super) fn unwrap_carried(&mut self, number: u32, probe: &Probe) -> (Probe, Option<u32>) {
        let Some(passed) = self.carried.packets.get(&probe.id).copied() else {
            return (*probe, None);
        };
        self.comes_through(number, probe);
        (passed.original, Some(passed.by))
    }
}
