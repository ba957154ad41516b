//! Hundreds of whole networks, each in virtual time: nothing that must be true breaks, whatever
//! goes wrong; and what is broken on purpose is noticed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sim {
    mod hidden;
    mod pauses;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use clap::ValueEnum;
use testbed::sim::{
    Failure, Fault, FaultClass, FaultClasses, FaultKind, Flow, Invariant, Options, Outcome,
    Sabotage, Scenario, Setting, Target, run, run_twice,
};

/// Seeds with faults of all classes at once.
const SEEDS_OF_ALL: u64 = 200;
/// Seeds without any fault.
const SEEDS_OF_NONE: u64 = 40;
/// Seeds with faults of one class, for every class.
const SEEDS_OF_ONE: u64 = 10;
/// Seeds whose traces are compared, byte by byte.
const SEEDS_TWICE: u64 = 12;
/// Seeds that are tried on every bug.
const SEEDS_PER_BUG: u64 = 32;
/// Events that are shown of a failure.
const LINES: usize = 40;

/// What is known to fail, and why. It is run all the same, and told of.
const KNOWN: &[(&str, u64, &str)] = &[];

/// A seed, and what may go wrong in it.
#[derive(Clone)]
struct Case {
    seed: u64,
    options: Options,
}

impl Case {
    fn new(seed: u64, faults: &str) -> Self {
        let faults = faults.parse().unwrap();
        let options = Options {
            faults,
            ..Options::default()
        };
        Self { seed, options }
    }

    /// The same with agents behind NATs.
    fn hidden(seed: u64, faults: &str) -> Self {
        let mut case = Self::new(seed, faults);
        case.options.setting = Setting::Hidden;
        case
    }

    fn scenario(&self) -> Scenario {
        self.options.scenario(self.seed)
    }

    /// Why it fails, if that is known.
    fn known(&self) -> Option<&'static str> {
        let faults = self.options.faults.to_string();
        let mut known = KNOWN.iter();
        let found = known.find(|(name, seed, _)| *name == faults && *seed == self.seed);
        found.map(|(_, _, why)| *why)
    }

    /// The command that runs this again.
    fn command(&self) -> String {
        let Self { seed, options } = self;
        let faults = &options.faults;
        format!("cargo run --release -p testbed -- sim --seed {seed} --faults {faults}")
    }
}

#[test]
fn no_seed_breaks_an_invariant() {
    let cases = cases();
    let outcomes = run_all(&cases);
    let hours: f64 = outcomes
        .iter()
        .map(|outcome| outcome.report.agent_hours)
        .sum();
    let events: u64 = outcomes.iter().map(|outcome| outcome.report.events).sum();
    println!(
        "{} seeds, {hours:.1} agent-hours, {events} events",
        cases.len()
    );
    let broken = |(_, outcome): &(&Case, &Outcome)| outcome.violation.is_some();
    let (known, failed): (Vec<_>, Vec<_>) = cases
        .iter()
        .zip(&outcomes)
        .filter(broken)
        .partition(|(case, _)| case.known().is_some());
    for (case, _) in known {
        println!(
            "known: {}\n  again: {}",
            case.known().unwrap_or_default(),
            case.command()
        );
    }
    for (case, outcome) in &failed {
        let violation = outcome.violation.as_ref().unwrap();
        println!("BROKEN {violation}\n  again: {}", case.command());
    }
    if let Some((case, outcome)) = failed.first() {
        explain(case, outcome);
    }
    assert!(
        failed.is_empty(),
        "{} of {} seeds",
        failed.len(),
        cases.len()
    );
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in 0..SEEDS_TWICE {
        let scenario = Case::new(seed, "all").scenario();
        let [first, second] = [0, 1].map(|_| run(&scenario, usize::MAX, &mut |_| {}));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert!(first.lines.len() > 1_000, "seed {seed}: that is no trace");
        assert_eq!(first.lines, second.lines, "seed {seed}");
        let other = run(&Case::new(seed + 1, "all").scenario(), 0, &mut |_| {});
        assert_ne!(first.trace, other.trace, "seeds {seed} and the next");
    }
}

/// Seeds in which agents are replaced while others send to them.
const SEEDS_OF_REPLACED: u64 = 60;

#[test]
fn whoever_sends_to_a_host_whose_agent_is_replaced_loses_no_packet() {
    let handovers: usize = (0..SEEDS_OF_REPLACED)
        .map(|seed| replaced(seed, "none"))
        .sum();
    println!("{handovers} handovers");
    assert!(handovers > 300, "{handovers} handovers show little");
}

#[test]
fn agents_that_are_replaced_while_all_goes_wrong_break_nothing() {
    for seed in 0..SEEDS_OF_REPLACED {
        replaced(seed, "all");
    }
}

/// Runs a seed in which every third agent is replaced while others send to it; insists that all
/// invariants hold, and returns how many mappings moved.
fn replaced(seed: u64, faults: &str) -> usize {
    let mut scenario = Case::new(seed, faults).scenario();
    let agents = (0..scenario.agents).step_by(3);
    let replace = |agent| Fault {
        at_ms: 15_000 + 3_000 * u64::from(agent),
        for_ms: 25_000,
        kind: FaultKind::Replace { agent },
    };
    scenario.faults.extend(agents.map(replace));
    scenario.faults.sort_by_key(|fault| fault.at_ms);
    // So dense that a moment without a session loses some.
    scenario.flows.push(Flow {
        from: 1,
        to: Target::Agent(0, 0),
        ipv6: seed.is_multiple_of(2),
        echo: false,
        start_ms: 12_000,
        packets: 8_000,
        interval_us: 1_000,
    });
    moves_in(&format!("replaced-{faults}-{seed}"), &scenario)
}

/// Runs a scenario of this name; insists that all invariants hold, and returns how many mappings moved.
fn moves_in(name: &str, scenario: &Scenario) -> usize {
    let outcome = run(scenario, usize::MAX, &mut |_| {});
    if outcome.violation.is_some() {
        explain_scenario(name, scenario, &outcome);
    }
    assert_eq!(outcome.violation, None, "{name}");
    let lines = outcome.lines.iter();
    lines
        .filter(|line| line.contains("HandoverSwitched"))
        .count()
}

/// Seeds with proxies, of each kind of run.
const SEEDS_OF_PROXIED: u64 = 60;

#[test]
fn clients_that_are_moved_lose_no_packet_on_the_way_out() {
    let moved: usize = (0..SEEDS_OF_PROXIED)
        .map(|seed| proxied(seed, "none", [false, true]))
        .sum();
    println!("{moved} mappings moved");
    assert!(moved > 100, "{moved} moves show little");
}

#[test]
fn clients_leave_proxies_that_fail_and_are_never_without_one_for_long() {
    let moved: usize = (0..SEEDS_OF_PROXIED)
        .map(|seed| proxied(seed, "none", [true, seed % 2 == 0]))
        .sum();
    println!("{moved} mappings moved");
    assert!(moved > 100, "{moved} moves show little");
}

#[test]
fn proxies_and_clients_break_nothing_while_all_goes_wrong() {
    for seed in 0..SEEDS_OF_PROXIED {
        proxied(seed, "all,-nat,-clock,-refuse,-attack", [true, true]);
    }
}

/// A run with proxies: what an operator does, and whether proxies fail besides.
fn with_proxies(seed: u64, faults: &str, [failures, moves]: [bool; 2]) -> Scenario {
    Case::new(seed, faults).scenario().proxied(failures, moves)
}

/// Runs a seed with proxies; insists that all invariants hold, and returns how many mappings moved.
fn proxied(seed: u64, faults: &str, kind: [bool; 2]) -> usize {
    let scenario = with_proxies(seed, faults, kind);
    moves_in(&format!("proxied-{faults}-{seed}"), &scenario)
}

/// Bugs on purpose that only clients of proxies have, and the invariant that notices each.
const BUGS_OF_PROXIES: &[(Sabotage, [bool; 2], Invariant)] = &[
    (Sabotage::SufferInSilence, [true, false], Invariant::Proxied),
    (Sabotage::KeepClients, [false, true], Invariant::Dismissed),
    (Sabotage::HalfMoves, [false, true], Invariant::OneProxy),
];

#[test]
fn bugs_of_proxies_on_purpose_are_noticed() {
    for (bug, kind, expected) in BUGS_OF_PROXIES {
        let mut noticed = BTreeMap::new();
        for seed in 0..SEEDS_PER_BUG {
            let mut scenario = with_proxies(seed, "none", *kind);
            assert_eq!(run(&scenario, 0, &mut |_| {}).violation, None, "{seed}");
            scenario.sabotage = Some(*bug);
            if let Some(violation) = run(&scenario, 0, &mut |_| {}).violation {
                *noticed.entry(violation.invariant).or_insert(0) += 1;
            }
        }
        println!("{}: {noticed:?}", name(*bug));
        assert!(noticed.contains_key(expected), "{bug:?}: {noticed:?}");
    }
}

/// Bugs on purpose, the faults that bring them to light, and the invariants of which at least one
/// must notice them.
const BUGS: &[(Sabotage, &str, &[Invariant])] = &[
    (Sabotage::ReplyFirst, "none", &[Invariant::Convergence]),
    (Sabotage::DropPushes, "none", &[Invariant::Convergence]),
    (Sabotage::ForgedPush, "attack", &[Invariant::Authority]),
    (Sabotage::StolenPrefix, "none", &[Invariant::Authority]),
    (
        Sabotage::KeepRemoved,
        "stop",
        &[Invariant::Freshness, Invariant::BlackHole],
    ),
    (Sabotage::SendTwice, "none", &[Invariant::Once]),
    (Sabotage::SendReversed, "none", &[Invariant::Order]),
    (Sabotage::SendSometimes, "stop", &[Invariant::Accounted]),
    (Sabotage::NonceRestarts, "crash", &[Invariant::Registered]),
    (
        Sabotage::OpenDoor,
        "attack",
        &[Invariant::Silence, Invariant::Amplification],
    ),
    (Sabotage::Chatty, "attack", &[Invariant::Amplification]),
    (
        Sabotage::DropPublications,
        "crash",
        &[Invariant::Subscribed],
    ),
    (Sabotage::Dice, "none", &[Invariant::Determinism]),
];

#[test]
fn bugs_on_purpose_are_noticed() {
    println!(
        "{:>16}  {:>8}  noticed by (seeds of {SEEDS_PER_BUG})",
        "bug", "faults"
    );
    for (bug, faults, expected) in BUGS {
        let (noticed, first) = noticed(*bug, faults);
        let counts = noticed.iter().map(|(by, count)| format!("{by} ({count})"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        println!("{:>16}  {faults:>8}  {counts}", name(*bug));
        let seen = expected.iter().any(|by| noticed.contains_key(by));
        assert!(seen, "{bug:?} with {faults}: {noticed:?}");
        // It was the bug, and not something else.
        let healthy = run(&Case::new(first, faults).scenario(), 0, &mut |_| {});
        assert_eq!(healthy.violation, None, "seed {first} without {bug:?}");
    }
}

#[test]
fn lost_acknowledgements_cost_time_but_nothing_else() {
    let (noticed, _) = noticed(Sabotage::DropAcks, "none");
    assert_eq!(noticed.keys().collect::<Vec<_>>(), [&Invariant::ColdStart]);
}

/// How many seeds showed a bug by which invariant, and the first of them.
fn noticed(bug: Sabotage, faults: &str) -> (BTreeMap<Invariant, usize>, u64) {
    let mut noticed = BTreeMap::new();
    let mut first = None;
    for seed in 0..SEEDS_PER_BUG {
        let mut case = Case::new(seed, faults);
        case.options.sabotage = Some(bug);
        let outcome = run_twice(&case.scenario());
        if let Some(violation) = outcome.violation {
            *noticed.entry(violation.invariant).or_default() += 1;
            first = first.or(Some(seed));
        }
    }
    (noticed, first.unwrap())
}

fn name(bug: Sabotage) -> String {
    bug.to_possible_value().unwrap().get_name().to_owned()
}

#[test]
fn a_failure_is_shrunk_saved_and_replayed_from_the_command_line() {
    let file = scratch("sim-saved.json");
    let path = file.to_str().unwrap();
    let broken = ["--faults", "none", "--break", "send-twice", "--save", path];
    let found = testbed_sim(&[&["--seeds", "0..20"], broken.as_slice()].concat());
    assert_eq!(found.status.code(), Some(1));
    let told = String::from_utf8(found.stderr).unwrap();
    assert!(told.contains("BROKEN once"), "{told}");
    assert!(
        told.contains(&format!("again: testbed sim --replay {path}")),
        "{told}"
    );

    let mut scenario: Scenario = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(scenario.flows.len() <= 2, "{:?}", scenario.flows);
    let again = testbed_sim(&["--replay", path]);
    assert_eq!(again.status.code(), Some(1));
    let told = String::from_utf8(again.stderr).unwrap();
    assert!(told.contains("BROKEN once"), "{told}");

    scenario.sabotage = None;
    fs::write(&file, serde_json::to_string(&scenario).unwrap()).unwrap();
    let traces = ["one", "two"].map(|name| {
        let trace = scratch(&format!("sim-trace-{name}"));
        let repaired = testbed_sim(&["--replay", path, "--trace", trace.to_str().unwrap()]);
        assert_eq!(repaired.status.code(), Some(0));
        let report = String::from_utf8(repaired.stdout).unwrap();
        assert!(report.contains("all hold"), "{report}");
        fs::read(trace).unwrap()
    });
    assert!(!traces[0].is_empty());
    assert_eq!(traces[0], traces[1]);
}

/// The cases of [`no_seed_breaks_an_invariant`].
fn cases() -> Vec<Case> {
    let all = (0..SEEDS_OF_ALL).map(|seed| Case::new(seed, "all"));
    let none = (0..SEEDS_OF_NONE).map(|seed| Case::new(seed, "none"));
    let one = FaultClass::value_variants().iter().flat_map(|class| {
        let name = FaultClasses([*class].into()).to_string();
        (0..SEEDS_OF_ONE).map(move |seed| Case::new(seed, &name))
    });
    all.chain(none).chain(one).collect()
}

/// Runs all cases on all cores.
fn run_all(cases: &[Case]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let work = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(case) = cases.get(number)
        {
            let outcome = run(&case.scenario(), 0, &mut |_| {});
            done.lock().unwrap().insert(number, outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap().into_values().collect()
}

/// Shows the least that fails like `outcome`, and how to run it again.
fn explain(case: &Case, outcome: &Outcome) {
    let name = format!("{}-{}", case.options.faults, case.seed);
    explain_scenario(&name, &case.scenario(), outcome);
}

#[expect(clippy::print_stdout, reason = "the report of a failed test")]
fn explain_scenario(name: &str, scenario: &Scenario, outcome: &Outcome) {
    let violation = outcome.violation.clone().unwrap();
    let failure = Failure::investigate(scenario, violation, true, LINES);
    let file = scratch(&format!("sim-{name}.json"));
    fs::write(&file, serde_json::to_string(&failure.smallest).unwrap()).unwrap();
    println!("\n{failure}");
    println!(
        "again: cargo run --release -p testbed -- sim --replay {}",
        file.display()
    );
}

/// Runs the command as its user does.
fn testbed_sim(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.arg("sim").args(arguments).output().unwrap()
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Seeds with hosts that have two uplinks, of each way in which the first one fails.
const SEEDS_OF_UPLINKS: u64 = 12;

#[test]
fn hosts_with_two_uplinks_are_reached_a_second_after_the_first_one_has_failed() {
    let ways = [
        [true, true, true],
        [true, true, false],
        [true, false, false],
        [false, true, false],
    ];
    let mut moved = 0;
    for seed in 0..SEEDS_OF_UPLINKS {
        for way in ways {
            moved += with_uplinks(seed, way);
        }
    }
    println!("{moved} endpoints moved");
    assert!(moved > 100, "{moved} moves show little");
}

/// Runs a seed in which hosts have two uplinks, and the first one of some fails for good while packets
/// flow; insists that they flow again a second later, and returns how many endpoints moved.
fn with_uplinks(seed: u64, [comes, goes, carrier]: [bool; 3]) -> usize {
    let mut scenario = Case::new(seed, "none").scenario();
    scenario.nat_percent = 0;
    // Those who have nothing to say notice a failure when they register.
    scenario.flows.clear();
    let two: Vec<u32> = (0..scenario.agents).step_by(2).collect();
    scenario.two_uplinks = two.iter().copied().collect();
    let last = scenario.agents - 1;
    let at_ms = 20_000;
    for agent in two.iter().copied().filter(|agent| *agent != last).take(4) {
        for (from, to) in [(agent, last), (last, agent)] {
            scenario.flows.push(Flow {
                from,
                to: Target::Agent(to, 0),
                ipv6: seed.is_multiple_of(2),
                echo: false,
                start_ms: at_ms - 6_000,
                packets: 6_000,
                interval_us: 2_000,
            });
        }
        scenario.faults.push(Fault {
            at_ms,
            for_ms: 1_000,
            kind: FaultKind::Uplink {
                agent,
                comes,
                goes,
                carrier,
                for_good: true,
            },
        });
    }
    let outcome = run(&scenario, usize::MAX, &mut |_| {});
    if outcome.violation.is_some() {
        explain_scenario(&format!("uplinks-{seed}"), &scenario, &outcome);
    }
    assert_eq!(outcome.violation, None, "{seed} {comes} {goes} {carrier}");
    let lines = outcome.lines.iter();
    lines
        .filter(|line| line.contains("LocatorMoved") || line.contains("LocatorRoamed"))
        .count()
}
