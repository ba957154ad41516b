//! Networks whose agents are behind NATs.

use std::collections::BTreeMap;

use testbed::sim::{Invariant, Sabotage, run};

use crate::{Case, SEEDS_PER_BUG, explain_scenario, name};

/// Seeds with agents behind NATs, without and with faults.
const SEEDS_OF_HIDDEN: u64 = 60;

#[test]
fn agents_behind_nats_reach_each_other_and_take_a_relay_only_if_there_is_no_other_way() {
    let hidden = |seed| hidden(seed, "none");
    let (between, relayed) = (0..SEEDS_OF_HIDDEN).map(hidden).fold((0, 0), add);
    println!("{between} packets from NAT to NAT, {relayed} over relays");
    assert!(between > 10_000 && relayed > 5_000, "that shows little");
}

#[test]
fn agents_behind_nats_find_each_other_again_whatever_goes_wrong() {
    let hidden = |seed| hidden(seed, HIDDEN_FAULTS);
    let (between, relayed) = (0..SEEDS_OF_HIDDEN).map(hidden).fold((0, 0), add);
    println!("{between} packets from NAT to NAT, {relayed} over relays");
    assert!(between > 10_000 && relayed > 5_000, "that shows little");
}

/// Seeds in which everybody falls silent.
const SEEDS_OF_SILENCE: u64 = 8;

#[test]
fn relays_that_nobody_uses_any_more_are_forgotten() {
    let mut relayed = 0;
    for seed in 0..SEEDS_OF_SILENCE {
        let mut scenario = Case::hidden(seed, "none").scenario();
        scenario.subscriptions.clear();
        scenario.flows.retain(|flow| flow.start_ms < 60_000);
        for flow in &mut scenario.flows {
            let most = 20_000_000 / flow.interval_us.max(1);
            flow.packets = flow.packets.min(u32::try_from(most).unwrap()).max(1);
        }
        scenario.duration_ms = 4_000_000;
        let outcome = run(&scenario, 0, &mut |_| {});
        if outcome.violation.is_some() {
            explain_scenario(&format!("silent-{seed}"), &scenario, &outcome);
        }
        assert_eq!(outcome.violation, None, "{seed}");
        relayed += outcome.report.relayed;
    }
    assert!(relayed > 100, "{relayed} packets over relays show little");
}

/// What goes wrong with agents behind NATs.
const HIDDEN_FAULTS: &str = "all";

fn add(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (one.0 + other.0, one.1 + other.1)
}

/// Runs a seed with agents behind NATs; insists that all invariants hold, and returns how many packets went from one NAT
/// to another one, and over relays.
fn hidden(seed: u64, faults: &str) -> (u64, u64) {
    let scenario = Case::hidden(seed, faults).scenario();
    let outcome = run(&scenario, 0, &mut |_| {});
    if outcome.violation.is_some() {
        explain_scenario(&format!("hidden-{faults}-{seed}"), &scenario, &outcome);
    }
    assert_eq!(outcome.violation, None, "{seed}");
    (outcome.report.between_nats, outcome.report.relayed)
}

/// Bugs on purpose that only agents behind NATs have, and the invariants of which at least one must notice each.
const BUGS_OF_HIDDEN: &[(Sabotage, &[Invariant])] = &[
    (Sabotage::BlindAgents, &[Invariant::Convergence]),
    (
        Sabotage::NoHello,
        &[Invariant::Convergence, Invariant::ColdStart],
    ),
    (Sabotage::SufferInSilence, &[Invariant::Convergence]),
    (Sabotage::Distrust, &[Invariant::Direct]),
];

#[test]
fn bugs_of_agents_behind_nats_on_purpose_are_noticed() {
    for (bug, expected) in BUGS_OF_HIDDEN {
        let mut noticed = BTreeMap::new();
        for seed in 0..SEEDS_PER_BUG {
            let mut case = Case::hidden(seed, "none");
            case.options.sabotage = Some(*bug);
            if let Some(violation) = run(&case.scenario(), 0, &mut |_| {}).violation {
                *noticed.entry(violation.invariant).or_insert(0) += 1;
            }
        }
        println!("{}: {noticed:?}", name(*bug));
        let seen = expected.iter().any(|by| noticed.contains_key(by));
        assert!(seen, "{bug:?}: {noticed:?}");
    }
}
