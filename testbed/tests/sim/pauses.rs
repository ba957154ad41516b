//! Hosts that have nothing to say to each other for a minute or three.

use testbed::sim::run;

use crate::{Case, explain_scenario};

/// Seeds of each kind.
const SEEDS_OF_PAUSES: u64 = 30;

#[test]
fn whoever_says_something_after_a_long_pause_is_heard() {
    for faults in ["none", "all"] {
        for seed in 0..SEEDS_OF_PAUSES {
            paused("plain", Case::new(seed, faults));
            paused("hidden", Case::hidden(seed, faults));
        }
    }
}

/// Runs a seed with flows that pause; insists that all invariants hold.
fn paused(setting: &str, mut case: Case) {
    case.options.pauses = true;
    let scenario = case.scenario();
    let outcome = run(&scenario, 0, &mut |_| {});
    let name = format!("paused-{setting}-{}-{}", case.options.faults, case.seed);
    if outcome.violation.is_some() {
        explain_scenario(&name, &scenario, &outcome);
    }
    assert_eq!(outcome.violation, None, "{name}");
}
