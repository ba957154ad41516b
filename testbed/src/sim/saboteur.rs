//! Where the bugs on purpose are put in: between the state machines and the world.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use lisp_proto::{
    Action, EidPrefix, InstanceId, Locator, Message, Nonce, NotifyParams, Record, Rloc, Ttl,
    decode, encode_map_notify,
};
use xtr_agent::agent::{Change, Input};

use super::addresses::{self, Role};
use super::data_plane::Task;
use super::packet::{Probe, echo_request};
use super::sabotage::Sabotage;
use super::world::{Event, World};

/// What a slow push takes longer.
const SLOW_PUSH: Duration = Duration::from_millis(200);
/// One in so many held packets is lost.
const LOSE_EVERY: u64 = 7;

impl World {
    /// Whether a message of an agent is kept from the map server.
    pub(super) fn sabotage_agent_send(&self, bytes: &[u8]) -> bool {
        self.sabotaged(Sabotage::DropAcks) && matches!(decode(bytes), Ok(Message::MapNotifyAck(_)))
    }

    /// Whether a change never reaches the data plane.
    pub(super) fn sabotage_change(&self, change: &Change) -> bool {
        self.sabotaged(Sabotage::KeepRemoved)
            && matches!(change, Change::RemovePeer(_) | Change::RemoveRoute(_))
    }

    /// Hands a held packet to the data plane.
    pub(super) fn sabotage_reinject(&mut self, number: u32, packet: Bytes) {
        if let Some(way) = echo_request(&packet) {
            return self.greet(number, way);
        }
        let now = self.now();
        self.trace.say(now, || {
            let probe = Probe::of_packet(&packet);
            let what = probe.map(|probe| (probe.flow, probe.sequence));
            format!("agent {number} sends on {what:?}")
        });
        if self.sabotaged(Sabotage::SendSometimes)
            && Probe::of_packet(&packet).is_some_and(|probe| probe.id % LOSE_EVERY == 0)
        {
            return;
        }
        if self.sabotaged(Sabotage::SendTwice) {
            self.task(number, Task::Reinject(packet.clone()));
        }
        if self.sabotaged(Sabotage::SendReversed) {
            let mut packet = Some(packet);
            self.with_plane(number, |plane| {
                packet = packet.take().and_then(|packet| plane.overtake(packet))
            });
            if let Some(packet) = packet {
                self.task(number, Task::Reinject(packet));
            }
            return;
        }
        self.task(number, Task::Reinject(packet));
    }

    /// What is left of a message of a map server to the agent at `dst`.
    pub(super) fn sabotage_push(
        &mut self,
        server: u32,
        dst: SocketAddr,
        bytes: Bytes,
    ) -> Option<Bytes> {
        let agent = addresses::control_owner(dst.ip())?;
        if self.sabotage_publication(agent, &bytes) || self.sabotage_dismissal(agent, &bytes) {
            return None;
        }
        match self.scenario.sabotage {
            Some(Sabotage::BlindAgents)
                if matches!(decode(&bytes), Ok(Message::InfoRequest(_))) =>
            {
                None
            }
            Some(Sabotage::DropPushes) if self.is_push(agent, &bytes) => None,
            Some(Sabotage::ReplyFirst) if self.is_push(agent, &bytes) => {
                self.queue
                    .after(SLOW_PUSH, Event::LatePush(server, dst, bytes));
                None
            }
            _ => Some(bytes),
        }
    }

    /// Whose EID-prefixes an agent registers.
    pub(super) fn registers_for(&self, agent: u32) -> u32 {
        match agent {
            0 if self.sabotaged(Sabotage::StolenPrefix) => 1,
            1 if self.sabotaged(Sabotage::StolenPrefix) => 0,
            _ => agent,
        }
    }

    /// Tells an agent that the EIDs of another one are at the attacker's.
    pub(super) fn forge_push(&mut self, agent: u32) {
        let victim = (agent + 1) % self.scenario.agents.max(1);
        let seed = self.scenario.seed;
        let Ok(endpoint) = "192.0.2.66:6666".parse() else {
            return;
        };
        let key = addresses::key(seed, Role::Attacker, 0, 0);
        let [prefix, _] = addresses::eid_prefixes(victim);
        let record = Record {
            eid: EidPrefix::new(InstanceId(0), prefix),
            ttl: Ttl::from_minutes(15),
            action: Action::NoAction,
            authoritative: false,
            locators: vec![Locator {
                priority: 1,
                weight: 100,
                local: false,
                probed: false,
                reachable: true,
                rloc: Rloc::WireGuard { endpoint, key },
            }],
        };
        let params = NotifyParams {
            nonce: Nonce(u64::MAX >> 1),
            records: &[record],
            handoff: None,
        };
        let mut bytes = Vec::new();
        if encode_map_notify(&params, &addresses::secret(seed, agent, 0), &mut bytes).is_ok() {
            let src = addresses::server(0);
            self.agent_input(agent, Input::Datagram { src, bytes: &bytes });
        }
    }

    /// Whether a Map-Notify speaks of somebody else's EIDs.
    fn is_push(&self, agent: u32, bytes: &[u8]) -> bool {
        let Ok(Message::MapNotify(notify)) = decode(bytes) else {
            return false;
        };
        let mut eids = notify.records().filter_map(|record| record.eid());
        eids.any(|eid| addresses::owner(eid.net().addr(), self.scenario.agents) != Some(agent))
    }
}
