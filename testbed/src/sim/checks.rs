//! The invariants that are not a by-product of what happens.

use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use xtr_agent::agent::limits;

use super::hidden::NOTICED;
use super::invariant::Invariant;
use super::scenario::{Disk, FaultKind, Scenario, Target, millis};
use super::stats::peak;
use super::world::World;

/// The longest time between two Map-Registers of an agent.
const REFRESH_INTERVAL: Duration = Duration::from_secs(75);
/// All traffic flows again this long after the last fault.
pub(super) const RECOVERY: Duration = Duration::from_secs(30);
/// A live agent has been acknowledged by every live map server within this time: the longest
/// refresh interval (75 s), and three tries. A longer pause between tries (60 s) is over by then
/// if the last fault is that long ago.
pub(super) const REGISTERED_WITHIN: Duration = Duration::from_secs(90);
/// A withdrawal that can be told is told within this time: the first tries of a Map-Notify, and
/// the data plane.
pub(super) const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// A registration ends this long after the last Map-Register (RFC 9301 §8.2).
const REGISTRATION_LIFETIME: Duration = Duration::from_secs(180);
/// A first registration takes no longer than this.
const WARM_UP: Duration = Duration::from_secs(3);

impl Scenario {
    /// How long after the last fault all traffic must flow again.
    ///
    /// Without faults: at once. With them a one-way flow to a host that came back with nothing is
    /// the slowest to recover: its agent notices the silence after 12 s, up to 4 s late, and asks;
    /// the far end installs the peer and hears the next initiation up to 5.3 s later. A far end
    /// behind a NAT that still has the old session learns from that second question that it is not
    /// heard, and makes a new one, 20 s after the first packet at the latest. What a map
    /// server has lost from its disk it hears again within one refresh interval of the agents.
    #[must_use]
    pub fn convergence_bound(&self) -> Duration {
        let noticed = match self.detects_nats() {
            true => NOTICED,
            false => Duration::ZERO,
        };
        let bounds = self.faults.iter().map(|fault| match &fault.kind {
            // It lasts as long as it may take to leave the uplink.
            FaultKind::Attack { .. } | FaultKind::Scan { .. } | FaultKind::Uplink { .. } => {
                Duration::ZERO
            }
            FaultKind::CrashServer {
                disk: Disk::Torn(_) | Disk::Lost,
                ..
            } => REFRESH_INTERVAL + RECOVERY,
            FaultKind::Weather { .. }
            | FaultKind::Cut { .. }
            | FaultKind::Crash { .. }
            | FaultKind::Stop { .. }
            | FaultKind::Replace { .. }
            | FaultKind::CrashServer {
                disk: Disk::Kept, ..
            }
            | FaultKind::ClockJump { .. }
            | FaultKind::NotForwarding { .. }
            | FaultKind::DataPlane { .. } => RECOVERY,
            FaultKind::Move { .. } | FaultKind::NatRestart { .. } => RECOVERY + noticed,
        });
        bounds.max().unwrap_or(Duration::ZERO)
    }

    /// How long a mapping that is no longer true may be used after the last fault.
    ///
    /// Where subscribers can be told they are told at once. A fault that keeps the news from the
    /// map server or from them leaves them what is longer: the TTL, or the time after which the map
    /// server takes whoever has not registered for gone, and says so.
    fn freshness_bound(&self) -> Duration {
        if self.keeps_news_away() {
            let ttl = Duration::from_secs(u64::from(self.ttl_min) * 60);
            return ttl.max(REGISTRATION_LIFETIME) + TOLD_WITHIN;
        }
        TOLD_WITHIN
    }
}

impl Scenario {
    /// Whether a fault may keep news from an agent that is up.
    pub(super) fn keeps_news_away(&self) -> bool {
        let deaf = |kind: &FaultKind| {
            !matches!(
                kind,
                FaultKind::Crash { .. }
                    | FaultKind::Stop { .. }
                    | FaultKind::Replace { .. }
                    | FaultKind::Attack { .. }
                    | FaultKind::Scan { .. }
            )
        };
        self.faults.iter().any(|fault| deaf(&fault.kind))
    }
}

/// How long what may take: it follows from the scenario alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// When the last fault is over.
    pub(super) quiet_from: Timestamp,
    /// How long after that all traffic flows again.
    pub(super) convergence: Duration,
    /// From when on all agents have had time to register for the first time.
    pub(super) warm_from: Timestamp,
    freshness: Duration,
    /// How long after the last fault subscribers have what they subscribed to.
    pub(super) subscribed: Duration,
}

impl Bounds {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            quiet_from: scenario.quiet_from(),
            convergence: scenario.convergence_bound(),
            warm_from: millis(scenario.start_within_ms) + WARM_UP + scenario.finds_out_within(),
            freshness: scenario.freshness_bound(),
            subscribed: scenario.subscribed_bound(),
        }
    }
}

impl World {
    /// Checks everything that is checked now and then.
    pub(super) fn inspect(&mut self) {
        for flow in (0..).take(self.flows.len()) {
            self.judge(flow);
        }
        if let Some((agent, packet)) = self.ledger.overdue(self.now()) {
            self.broken(Invariant::Accounted, || {
                format!("agent {agent} neither sent nor refused packet number {packet}")
            });
        }
        self.check_limits();
        self.check_freshness();
        self.check_subscribed();
        self.check_proxied();
    }

    /// Checks what must be true when the run is over.
    pub(super) fn final_check(&mut self) {
        self.inspect();
        self.check_registered();
        self.check_relays_rest();
        let quiet = self.bounds.quiet_from;
        for state in &self.flows {
            if !matches!(state.flow.to, Target::Agent(..)) || !self.can_work(&state.flow) {
                continue;
            }
            if state.last_confirmed.is_some_and(|last| last > quiet) {
                let failed = state.last_failed.map(|(_, sent)| sent + state.interval());
                self.stats.converged.push(failed.unwrap_or(quiet) - quiet);
            }
        }
        let now = self.now();
        for host in &self.agents {
            if let Some(running) = &host.running {
                self.stats.agent_ns += (now - running.started).as_nanos();
            }
        }
    }

    /// Whether no fault is active at `since` or was shortly before, and none since.
    pub(super) fn is_healthy(&self, since: Timestamp) -> bool {
        let Bounds {
            quiet_from,
            convergence,
            warm_from,
            ..
        } = self.bounds;
        since > quiet_from + convergence && since >= warm_from
    }

    fn check_limits(&mut self) {
        let mut beyond = None;
        for (number, host) in (0u32..).zip(&self.agents) {
            let Some(running) = &host.running else {
                continue;
            };
            let sizes = running.agent.sizes();
            let bounds = [
                (
                    "map-cache entries",
                    sizes.map_cache,
                    limits::MAP_CACHE_ENTRIES,
                ),
                (
                    "outstanding requests",
                    sizes.requests,
                    limits::OUTSTANDING_REQUESTS,
                ),
                ("held packets", sizes.held, limits::HELD_IN_ALL),
                (
                    "changes in flight",
                    sizes.changes,
                    limits::CHANGES_IN_FLIGHT,
                ),
                ("peers", sizes.peers, limits::MAP_CACHE_ENTRIES),
                ("acknowledgements", sizes.acks, limits::CHANGES_IN_FLIGHT),
                // Those under way, and those that were put off.
                ("handovers", sizes.handovers, 2 * limits::HANDOVERS),
            ];
            peak(&mut self.stats.peak_agent, &sizes);
            beyond = beyond.or_else(|| {
                bounds
                    .into_iter()
                    .find(|(_, size, bound)| size > bound)
                    .map(|found| (number, found))
            });
        }
        if let Some((agent, (what, size, bound))) = beyond {
            self.broken(Invariant::Limits, || {
                format!("agent {agent} has {size} {what}, more than {bound}")
            });
        }
        self.check_server_limits();
    }

    fn check_server_limits(&mut self) {
        let mut beyond = None;
        for (number, host) in (0u32..).zip(&self.servers) {
            let Some(running) = &host.running else {
                continue;
            };
            let bounds = map_server::Sizes::LIMITS.named().into_iter();
            for ((what, size), (_, bound)) in running.server.sizes().named().into_iter().zip(bounds)
            {
                let peak = self.stats.peak_server.entry(what).or_default();
                *peak = size.max(*peak);
                if size > bound {
                    beyond = Some((number, what, size, bound));
                }
            }
        }
        if let Some((server, what, size, bound)) = beyond {
            self.broken(Invariant::Limits, || {
                format!("map server {server} has {size} {what}, more than {bound}")
            });
        }
    }

    fn check_freshness(&mut self) {
        let now = self.now();
        let bound = self.bounds.freshness;
        if now <= self.bounds.quiet_from + bound {
            return;
        }
        let mut stale = None;
        for (number, host) in (0u32..).zip(&self.agents) {
            let Some(running) = &host.running else {
                continue;
            };
            if self.refusers.contains(&number) {
                continue;
            }
            let table = running.plane.interface.table();
            stale = table
                .iter()
                .find(|(_, key)| self.is_stale(key, now, bound))
                .map(|(prefix, key)| (number, prefix, key));
            if stale.is_some() {
                break;
            }
        }
        if let Some((agent, prefix, key)) = stale {
            self.broken(Invariant::Freshness, || {
                format!("agent {agent} still gives {prefix} to key {}", key.short())
            });
        }
    }

    /// Whether nobody should use `key` any more.
    fn is_stale(&self, key: &PublicKey, now: Timestamp, bound: Duration) -> bool {
        let Some(host) = self
            .keys
            .get(key)
            .and_then(|owner| self.agents.get(*owner as usize))
        else {
            return false;
        };
        let Some(running) = &host.running else {
            return host.stale_since.is_some_and(|since| now > since + bound);
        };
        running.key != *key && now > running.started + bound
    }

    fn check_registered(&mut self) {
        let now = self.now();
        if now < self.bounds.quiet_from + REGISTERED_WITHIN {
            return;
        }
        let mut missing = None;
        for (number, host) in (0u32..).zip(&self.agents) {
            let Some(running) = host.running.as_ref().filter(|running| !running.stopping) else {
                continue;
            };
            if self.is_unheard(number) {
                continue;
            }
            for (index, server) in self.servers.iter().enumerate() {
                let last = running.agent.acknowledged(index);
                let recent = last.is_some_and(|last| {
                    now - (running.started + (last - Timestamp::ZERO)) <= REGISTERED_WITHIN
                });
                if server.running.is_some() && !recent {
                    missing = Some((number, index));
                }
            }
        }
        if let Some((agent, server)) = missing {
            self.broken(Invariant::Registered, || {
                format!("agent {agent} is not registered with server {server}")
            });
        }
    }
}
