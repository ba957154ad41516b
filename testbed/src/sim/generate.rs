//! Which run does a seed stand for?

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::generate_faults::add_fault;
use super::options::{FaultClass, Options};
use super::scenario::{Flow, Scenario, Subscription, Target};
use super::seeds::stream;

/// Time without faults at the end, in milliseconds: for convergence, for the registrations, and
/// for new pairs.
const QUIET_MS: u64 = 100_000;
/// The same when map servers lose facts, which they hear again within 75 s.
const QUIET_AFTER_LOSS_MS: u64 = 160_000;
/// Time for all agents to register before anything else happens, in milliseconds.
const WARM_UP_MS: u64 = 4_000;
/// Agents that start per second.
const STARTS_PER_S: u32 = 500;

/// Makes the run that `seed` stands for.
#[must_use]
pub fn generate(seed: u64, options: &Options) -> Scenario {
    let mut rng = stream(seed, "scenario");
    let rng = &mut rng;
    let chosen = (rng.random_range(4..=12), rng.random_range(1..=2));
    let agents = options.agents.unwrap_or(chosen.0).max(2);
    let servers = options.servers.unwrap_or(chosen.1).max(1);
    let start_within_ms = u64::from(agents) * 1_000 / u64::from(STARTS_PER_S) + 500;
    let warm = start_within_ms + WARM_UP_MS;
    let has = |class| options.faults.0.contains(&class);
    let quiet_ms = if has(FaultClass::ServerDisk) {
        QUIET_AFTER_LOSS_MS
    } else {
        QUIET_MS
    };
    let troubled = if options.faults.0.is_empty() {
        0
    } else {
        quiet_ms
    };
    let duration_ms = match options.minutes {
        Some(minutes) => minutes_to_ms(minutes),
        None => warm + rng.random_range(40_000..120_000) + troubled,
    };
    let mut scenario = Scenario {
        seed,
        agents,
        absent: BTreeSet::new(),
        two_uplinks: BTreeSet::new(),
        servers,
        duration_ms,
        start_within_ms,
        ipv6_underlay: rng.random_bool(0.3),
        embedded_percent: *[0, 50, 100].choose(rng).unwrap_or(&0),
        nat_percent: if has(FaultClass::Nat) {
            *[0, 30].choose(rng).unwrap_or(&0)
        } else {
            0
        },
        ttl_min: *[1, 2, 15].choose(rng).unwrap_or(&15),
        flows: Vec::new(),
        subscriptions: subscriptions(seed, agents),
        faults: Vec::new(),
        proxies: None,
        routers: Vec::new(),
        sabotage: options.sabotage,
    };
    let flows = agents * rng.random_range(1..=2);
    for _ in 0..flows {
        add_flows(&mut scenario, warm, rng);
    }
    let troubled_until = duration_ms.saturating_sub(quiet_ms).max(warm + 1_000);
    if !options.faults.0.is_empty() {
        let minutes = duration_ms / 60_000;
        let most = u32::try_from(u64::from(agents) * minutes / 100)
            .unwrap_or(0)
            .max(8);
        for _ in 0..rng.random_range(most / 4..=most) {
            let span = warm..troubled_until;
            add_fault(&mut scenario, span, &options.faults.0, rng);
        }
        scenario.faults.sort_by_key(|fault| fault.at_ms);
    }
    scenario
}

/// Chooses who subscribes to whom: nobody in most runs, every third agent in the others.
fn subscriptions(seed: u64, agents: u32) -> Vec<Subscription> {
    let mut rng = stream(seed, "subscriptions");
    if rng.random_bool(0.7) {
        return Vec::new();
    }
    let one = |_| {
        let agent = rng.random_range(0..agents);
        Subscription {
            agent,
            of: (agent + rng.random_range(1..agents)) % agents,
            wide: rng.random_bool(0.3),
        }
    };
    (0..agents.div_ceil(3)).map(one).collect()
}

/// Adds one flow, or two that belong together.
fn add_flows(scenario: &mut Scenario, warm: u64, rng: &mut StdRng) {
    let end = scenario.duration_ms.saturating_sub(2_500).max(warm + 1);
    let from = rng.random_range(0..scenario.agents);
    let to = (from + rng.random_range(1..scenario.agents)) % scenario.agents;
    let start_ms = rng.random_range(warm..end);
    let flow = Flow {
        from,
        to: Target::Agent(to, rng.random_range(0..16)),
        ipv6: rng.random_bool(0.4),
        echo: rng.random_bool(0.6),
        start_ms,
        packets: rng.random_range(1..20),
        interval_us: rng.random_range(50_000..500_000),
    };
    let endless = |start_ms: u64, interval_us: u64| {
        u32::try_from(end.saturating_sub(start_ms) * 1_000 / interval_us)
            .unwrap_or(0)
            .max(1)
    };
    match rng.random_range(0..10) {
        // Lasts to the end.
        0..=4 => {
            let start_ms = warm + (start_ms - warm) / 4;
            let interval_us = rng.random_range(700_000..1_500_000);
            let packets = endless(start_ms, interval_us);
            scenario.flows.push(Flow {
                start_ms,
                interval_us,
                packets,
                ..flow
            });
        }
        // Both ends start at nearly the same time.
        5 | 6 => {
            let later = start_ms + [0, 1, 5, 20, 100].choose(rng).unwrap_or(&0);
            let back = Flow {
                from: to,
                to: Target::Agent(from, 0),
                start_ms: later,
                ..flow
            };
            scenario.flows.extend([flow, back]);
        }
        // Many packets at once.
        7 => {
            let (packets, interval_us) = (rng.random_range(20..100), rng.random_range(100..3_000));
            scenario.flows.push(Flow {
                packets,
                interval_us,
                ..flow
            });
        }
        // To nobody.
        8 => {
            let to = Target::Nobody(rng.random_range(0..1_000));
            scenario.flows.push(Flow { to, ..flow });
        }
        _ => scenario.flows.push(flow),
    }
}

fn minutes_to_ms(minutes: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "years are not simulated"
    )]
    let ms = (minutes * 60_000.0) as u64;
    ms.max(10_000)
}
