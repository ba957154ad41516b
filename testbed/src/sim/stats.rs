//! What is counted during a run.

use std::collections::BTreeMap;
use std::time::Duration;

use lisp_proto::Timestamp;
use xtr_agent::agent::Sizes;

use super::wireguard::Lost;

/// The first packet of a pair that knew nothing of each other, and its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetUp {
    /// From the first packet to its confirmation.
    pub(super) took: Duration,
    /// Time that the path between the two takes, there and back.
    pub(super) rtt: Duration,
    /// The least it can take: ask, push, acknowledge, answer, handshake, data.
    pub(super) floor: Duration,
}

/// Counters of a run.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// Events that happened.
    pub(super) events: u64,
    /// Control messages sent by agents, by type.
    pub(super) from_agents: BTreeMap<&'static str, u64>,
    /// Control messages sent by map servers, by type.
    pub(super) from_servers: BTreeMap<&'static str, u64>,
    /// What agents dropped, by reason.
    pub(super) agent_drops: BTreeMap<String, u64>,
    /// What map servers dropped, by reason.
    pub(super) server_drops: BTreeMap<&'static str, u64>,
    /// Packets that WireGuard gave up, by reason.
    pub(super) lost: BTreeMap<Lost, u64>,
    /// Set-ups of cold pairs.
    pub(super) set_ups: Vec<SetUp>,
    /// Set-ups of cold pairs while something was wrong, or had been shortly before.
    pub(super) troubled_set_ups: Vec<SetUp>,
    /// The largest tables of any agent.
    pub(super) peak_agent: Sizes,
    /// The largest tables of any map server, by name.
    pub(super) peak_server: BTreeMap<&'static str, usize>,
    /// How long after the last fault the last packet of each flow failed.
    pub(super) converged: Vec<Duration>,
    /// Nanoseconds that agents were up, in all.
    pub(super) agent_ns: u128,
    /// Packets that arrived over a relay.
    pub(super) relayed: u64,
    /// When the last of them did.
    pub(super) last_relayed: Option<Timestamp>,
    /// Packets that came from behind one NAT and arrived behind another one without a relay.
    pub(super) between_nats: u64,
    /// WireGuard handshake initiations sent.
    pub(super) initiations: u64,
}

impl Stats {
    pub(super) fn agent_sent(&mut self, bytes: &[u8]) {
        *self.from_agents.entry(message_type(bytes)).or_default() += 1;
    }

    pub(super) fn server_sent(&mut self, bytes: &[u8]) {
        *self.from_servers.entry(message_type(bytes)).or_default() += 1;
    }
}

/// The name of the type of a control message (RFC 9301 §5.1).
pub(super) fn message_type(bytes: &[u8]) -> &'static str {
    match bytes.first().map(|byte| byte >> 4) {
        Some(1) => "map-request",
        Some(2) => "map-reply",
        Some(3) => "map-register",
        Some(4) => "map-notify",
        Some(5) => "map-notify-ack",
        Some(7) => "info",
        Some(8) => "ecm",
        Some(_) | None => "other",
    }
}

/// Raises every number of `peak` to that of `sizes`.
pub(super) fn peak(peak: &mut Sizes, sizes: &Sizes) {
    *peak = Sizes {
        map_cache: peak.map_cache.max(sizes.map_cache),
        peers: peak.peers.max(sizes.peers),
        requests: peak.requests.max(sizes.requests),
        held: peak.held.max(sizes.held),
        changes: peak.changes.max(sizes.changes),
        acks: peak.acks.max(sizes.acks),
        handovers: peak.handovers.max(sizes.handovers),
    };
}
