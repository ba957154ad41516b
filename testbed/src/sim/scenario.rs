//! What happens in a run: hosts, traffic and faults. Together with the code it decides everything,
//! so writing it to a file keeps the run.

use std::collections::BTreeSet;
use std::time::Duration;

use lisp_proto::Timestamp;
use serde::{Deserialize, Serialize};

use super::net::Host;
use super::proxies::Proxies;
use super::routers::Router;
use super::sabotage::Sabotage;
use super::seeds::{mix, stream};
use super::wireguard::Backend;

use rand::Rng;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// All chance comes from it.
    pub seed: u64,
    /// How many agents there are; they are numbered from 0.
    pub agents: u32,
    /// Agents that are never started.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub absent: BTreeSet<u32>,
    /// Agents with a second uplink.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub two_uplinks: BTreeSet<u32>,
    /// How many map servers there are; every agent registers with all of them.
    pub servers: u32,
    /// Length of the run in milliseconds of virtual time.
    pub duration_ms: u64,
    /// Agents start one after the other during this time, in milliseconds.
    pub start_within_ms: u64,
    /// Whether the underlay is IPv6.
    pub ipv6_underlay: bool,
    /// Share of agents on the embedded data plane, in per cent; the others have the kernel's.
    pub embedded_percent: u8,
    /// Share of agents behind a NAT, in per cent.
    pub nat_percent: u8,
    /// TTL of every mapping, in minutes.
    pub ttl_min: u32,
    /// Who sends packets to whom.
    pub flows: Vec<Flow>,
    /// Who subscribes to what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscription>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Who leads the others out of the overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxies: Option<Proxies>,
    /// Who is behind NATs that agents find out about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Router>,
    /// What is broken on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sabotage: Option<Sabotage>,
}

/// An agent that keeps the mappings of others ready (RFC 9437).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The subscriber.
    pub agent: u32,
    /// The agent that it wants to hear of.
    pub of: u32,
    /// Whether it subscribes to everybody around that one, too.
    pub wide: bool,
}

/// Packets from one agent to another, or to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The agent that sends.
    pub from: u32,
    /// Where the packets go.
    pub to: Target,
    /// Whether they are IPv6.
    pub ipv6: bool,
    /// Whether each packet is answered by one in the other direction.
    pub echo: bool,
    /// When the first packet is sent, in milliseconds.
    pub start_ms: u64,
    /// How many packets there are.
    pub packets: u32,
    /// Time between two of them, in microseconds.
    pub interval_us: u64,
}

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// To an EID of this agent; sites have 16 of them.
    Agent(u32, u32),
    /// To an EID that nobody has.
    Nobody(u32),
    /// To an address of the world, through a proxy.
    Outside(u32),
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// What it is.
    pub kind: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The network is bad for everybody.
    Weather {
        /// Datagrams that are lost, in per cent.
        #[serde(default, skip_serializing_if = "is_zero")]
        loss: u8,
        /// Datagrams that arrive twice, in per cent.
        #[serde(default, skip_serializing_if = "is_zero")]
        duplicate: u8,
        /// Datagrams that are overtaken, by up to 2 s, in per cent.
        #[serde(default, skip_serializing_if = "is_zero")]
        reorder: u8,
        /// What is added to the delay at most, in hundredths of a second.
        #[serde(default, skip_serializing_if = "is_zero")]
        delay_cs: u8,
    },
    /// These and all other hosts cannot reach each other.
    Cut {
        /// One side.
        side: BTreeSet<Host>,
        /// Whether they still hear the others, but are not heard.
        one_way: bool,
    },
    /// An agent's host crashes and starts again at the end.
    Crash {
        /// Which.
        agent: u32,
        /// Whether its disk is gone: it starts with a new data key.
        disk_lost: bool,
    },
    /// An agent is stopped in good order.
    Stop {
        /// Which.
        agent: u32,
        /// Whether it does not start again at the end.
        for_good: bool,
    },
    /// An agent is replaced by one with another key at another port; the interface that it had
    /// serves on until the end. One behind a NAT is left alone.
    Replace {
        /// Which.
        agent: u32,
    },
    /// A map server crashes and starts again at the end.
    CrashServer {
        /// Which.
        server: u32,
        /// What is left of its disk.
        disk: Disk,
    },
    /// An agent gets another address.
    Move {
        /// Which.
        agent: u32,
    },
    /// The first uplink of an agent that has two fails.
    Uplink {
        /// Whose.
        agent: u32,
        /// Whether what comes is lost.
        comes: bool,
        /// Whether what goes is lost.
        goes: bool,
        /// Whether the agent is told.
        carrier: bool,
        /// Whether it does not work again at the end.
        for_good: bool,
    },
    /// A NAT forgets all its mappings.
    NatRestart {
        /// The agent behind it.
        agent: u32,
    },
    /// A wall clock is set.
    ClockJump {
        /// Whose.
        host: Host,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// A data plane is in trouble.
    DataPlane {
        /// Whose.
        agent: u32,
        /// Changes that it refuses, in per cent.
        refuses: u8,
        /// How many times as slow as usual it is.
        slowness: u32,
    },
    /// A proxy forwards nothing, though its tunnels are up.
    NotForwarding {
        /// Which.
        agent: u32,
    },
    /// Somebody who has no key sends datagrams to the control port.
    Attack {
        /// Of this host.
        host: Host,
        /// How many.
        datagrams: u32,
    },
    /// An application sends one packet to each of many EIDs that nobody has.
    Scan {
        /// On this agent's host.
        agent: u32,
        /// How many.
        packets: u32,
    },
}

/// What is left on a map server's disk after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// Everything.
    Kept,
    /// All but the last so many facts.
    Torn(u32),
    /// Nothing.
    Lost,
}

impl Scenario {
    /// When the run ends.
    #[must_use]
    pub fn end(&self) -> Timestamp {
        millis(self.duration_ms)
    }

    /// When the last fault is over; the start if there is none.
    #[must_use]
    pub fn quiet_from(&self) -> Timestamp {
        let ends = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms);
        millis(ends.max().unwrap_or(0))
    }

    /// Which data plane an agent has.
    pub(super) fn backend(&self, agent: u32) -> Backend {
        if self.share(agent, "backend") < self.embedded_percent {
            return Backend::Embedded;
        }
        Backend::Kernel
    }

    /// Whether an agent is behind a NAT.
    pub(super) fn behind_nat(&self, agent: u32) -> bool {
        self.share(agent, "nat") < self.nat_percent
    }

    /// Whether the agent takes part.
    pub(super) fn has(&self, agent: u32) -> bool {
        agent < self.agents && !self.absent.contains(&agent)
    }

    /// When an agent starts for the first time.
    pub(super) fn starts(&self, agent: u32) -> Timestamp {
        let mut rng = stream(self.seed ^ mix(u64::from(agent)), "start");
        millis(rng.random_range(0..=self.start_within_ms))
    }

    /// A number below 100 that is the same for the same agent.
    fn share(&self, agent: u32, concern: &str) -> u8 {
        stream(self.seed ^ mix(u64::from(agent)), concern).random_range(0..100)
    }
}

/// Whether a number can be left out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// The moment that is `ms` milliseconds after the start.
pub(super) fn millis(ms: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(ms)
}
