//! What a run showed, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::stats::SetUp;
use super::world::World;

/// Numbers of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Agents that took part.
    pub agents: u32,
    /// Map servers.
    pub servers: u32,
    /// Length of the run in virtual seconds.
    pub seconds: f64,
    /// Hours that agents were up, in all.
    pub agent_hours: f64,
    /// Events that happened.
    pub events: u64,
    /// Packets sent by applications, answers included.
    pub packets: usize,
    /// Share of them that arrived.
    pub arrived: f64,
    /// Control messages sent by agents, by type, per agent.
    pub messages_per_agent: BTreeMap<&'static str, f64>,
    /// Control messages sent by the map servers, by type, per agent.
    pub messages_to_agent: BTreeMap<&'static str, f64>,
    /// Packets that arrived over a relay.
    pub relayed: u64,
    /// Packets that came from behind one NAT and arrived behind another one without a relay.
    pub between_nats: u64,
    /// WireGuard initiations sent, per agent.
    pub initiations_per_agent: f64,
    /// How long after the last fault flows still failed, in seconds.
    pub convergence_s: Percentiles,
    /// Set-ups of cold pairs without faults around, in milliseconds.
    pub set_up_ms: Percentiles,
    /// The same as multiples of the pair's round-trip time.
    pub set_up_rtts: Percentiles,
    /// The same as multiples of the least that the path allows.
    pub set_up_floors: Percentiles,
    /// How many of them took more than a second.
    pub set_ups_over_1s: usize,
    /// Set-ups of cold pairs during faults, or shortly after, in milliseconds.
    pub troubled_set_up_ms: Percentiles,
    /// Largest tables of any agent.
    pub peak_agent: BTreeMap<&'static str, usize>,
    /// What the agents' tables hold at the end, on average.
    pub mean_agent: BTreeMap<&'static str, f64>,
    /// Largest tables of any map server.
    pub peak_server: BTreeMap<&'static str, usize>,
    /// What the agents dropped, by reason.
    pub agent_drops: BTreeMap<String, u64>,
    /// What the map servers dropped, by reason.
    pub server_drops: BTreeMap<&'static str, u64>,
    /// Packets that WireGuard gave up, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// The distribution of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many values there are.
    pub count: usize,
    /// The middle one.
    pub p50: f64,
    /// Nine of ten are not above it.
    pub p90: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Report {
    pub(super) fn of(world: &World) -> Self {
        let stats = &world.stats;
        let agents = (0..world.scenario.agents)
            .filter(|agent| world.scenario.has(*agent))
            .count();
        let each = |count: u64| count as f64 / agents.max(1) as f64;
        let per_agent = |counts: &BTreeMap<&'static str, u64>| {
            counts
                .iter()
                .map(|(name, count)| (*name, each(*count)))
                .collect()
        };
        let of = |value: fn(&SetUp) -> f64| Percentiles::of(stats.set_ups.iter().map(value));
        let millis = |set_up: &SetUp| set_up.took.as_secs_f64() * 1e3;
        let packets = world.ledger.len();
        Self {
            agents: u32::try_from(agents).unwrap_or(u32::MAX),
            servers: world.scenario.servers,
            seconds: Duration::from_nanos(world.now().0).as_secs_f64(),
            agent_hours: stats.agent_ns as f64 / 3.6e12,
            events: stats.events,
            packets,
            arrived: world.ledger.arrived() as f64 / packets.max(1) as f64,
            messages_per_agent: per_agent(&stats.from_agents),
            messages_to_agent: per_agent(&stats.from_servers),
            relayed: stats.relayed,
            between_nats: stats.between_nats,
            initiations_per_agent: each(stats.initiations),
            convergence_s: Percentiles::of(stats.converged.iter().map(Duration::as_secs_f64)),
            set_up_ms: of(millis),
            set_up_rtts: of(|set_up| ratio(set_up.took, set_up.rtt)),
            set_up_floors: of(|set_up| ratio(set_up.took, set_up.floor)),
            set_ups_over_1s: stats
                .set_ups
                .iter()
                .filter(|set_up| set_up.took > Duration::from_secs(1))
                .count(),
            troubled_set_up_ms: Percentiles::of(stats.troubled_set_ups.iter().map(millis)),
            peak_agent: named(&stats.peak_agent).into(),
            mean_agent: mean_sizes(world),
            peak_server: stats.peak_server.clone(),
            agent_drops: stats.agent_drops.clone(),
            server_drops: stats.server_drops.clone(),
            lost: stats
                .lost
                .iter()
                .map(|(why, count)| (format!("{why:?}"), *count))
                .collect(),
        }
    }
}

impl Percentiles {
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let at = |per_cent: usize| {
            values
                .get((count * per_cent / 100).min(count.saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        Self {
            count,
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            p50,
            p90,
            p99,
            max,
        } = self;
        write!(
            f,
            "p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  max {max:.2}  of {count}"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: [(&str, String); 19] = [
            (
                "hosts",
                format!("{} agents, {} map servers", self.agents, self.servers),
            ),
            (
                "time",
                format!(
                    "{:.0} s, {:.1} agent-hours, {} events",
                    self.seconds, self.agent_hours, self.events
                ),
            ),
            (
                "packets",
                format!("{}, {:.2} % arrived", self.packets, self.arrived * 100.0),
            ),
            (
                "between NATs",
                format!("{} directly, {} relayed", self.between_nats, self.relayed),
            ),
            ("per agent, sent", list(&self.messages_per_agent)),
            ("per agent, received", list(&self.messages_to_agent)),
            (
                "per agent, initiations",
                format!("{:.1}", self.initiations_per_agent),
            ),
            ("convergence, s", self.convergence_s.to_string()),
            ("set-up, ms", self.set_up_ms.to_string()),
            ("set-up / RTT", self.set_up_rtts.to_string()),
            ("set-up / least", self.set_up_floors.to_string()),
            ("set-ups over 1 s", self.set_ups_over_1s.to_string()),
            ("set-up in faults, ms", self.troubled_set_up_ms.to_string()),
            ("agent tables, mean", list(&self.mean_agent)),
            ("agent tables, peak", list(&self.peak_agent)),
            ("map server tables, peak", list(&self.peak_server)),
            ("agents dropped", list(&self.agent_drops)),
            ("map servers dropped", list(&self.server_drops)),
            ("WireGuard gave up", list(&self.lost)),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:>24}  {value}")?;
        }
        Ok(())
    }
}

fn ratio(took: Duration, of: Duration) -> f64 {
    took.as_secs_f64() / of.as_secs_f64().max(1e-9)
}

/// Names with their numbers; the precision is meant for those that are not whole.
fn list<K: fmt::Display, V: fmt::Display>(values: &BTreeMap<K, V>) -> String {
    let words = values
        .iter()
        .map(|(name, value)| format!("{name} {value:.1}"));
    words.collect::<Vec<_>>().join(", ")
}

fn named(sizes: &xtr_agent::agent::Sizes) -> [(&'static str, usize); 7] {
    [
        ("map-cache", sizes.map_cache),
        ("peers", sizes.peers),
        ("requests", sizes.requests),
        ("held", sizes.held),
        ("changes", sizes.changes),
        ("acks", sizes.acks),
        ("handovers", sizes.handovers),
    ]
}

fn mean_sizes(world: &World) -> BTreeMap<&'static str, f64> {
    let mut totals: BTreeMap<&'static str, usize> = BTreeMap::new();
    let running: Vec<_> = world
        .agents
        .iter()
        .filter_map(|host| host.running.as_ref())
        .collect();
    for running in &running {
        for (name, size) in named(&running.agent.sizes()) {
            *totals.entry(name).or_default() += size;
        }
        *totals.entry("routes").or_default() += running.plane.routes();
    }
    let count = running.len().max(1) as f64;
    totals
        .into_iter()
        .map(|(name, total)| (name, total as f64 / count))
        .collect()
}
