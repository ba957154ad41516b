//! Runs a scenario from its start to its end, or to the first broken invariant.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lisp_proto::Timestamp;

use super::invariant::{Invariant, Violation};
use super::report::Report;
use super::scenario::Scenario;
use super::world::World;

/// Events between two calls of the progress function.
const PROGRESS_EVERY: u64 = 4_096;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The invariant that was broken, if any was.
    pub violation: Option<Violation>,
    /// A digest of everything that happened.
    pub trace: u64,
    /// The last events in words, if they were asked for.
    pub lines: Vec<String>,
    /// What was counted.
    pub report: Report,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Virtual time.
    pub now: Timestamp,
    /// When the run ends.
    pub end: Timestamp,
    /// Events so far.
    pub events: u64,
    /// Packets so far.
    pub packets: usize,
}

/// Runs `scenario`; the last `lines` events are kept in words.
pub fn run(scenario: &Scenario, lines: usize, progress: &mut dyn FnMut(Progress)) -> Outcome {
    let mut world = World::new(scenario.clone(), lines);
    let result = catch_unwind(AssertUnwindSafe(|| {
        while world.step() {
            if world.stats.events.is_multiple_of(PROGRESS_EVERY) {
                progress(Progress {
                    now: world.now(),
                    end: world.scenario.end(),
                    events: world.stats.events,
                    packets: world.ledger.len(),
                });
            }
        }
        if world.violation.is_none() {
            world.final_check();
        }
    }));
    if result.is_err() {
        world.broken(Invariant::NoPanic, || "the message is above".to_owned());
    }
    let report = Report::of(&world);
    Outcome {
        violation: world.violation,
        trace: world.trace.hash(),
        lines: world.trace.into_lines(),
        report,
    }
}

/// Runs `scenario` twice, and compares.
pub fn run_twice(scenario: &Scenario) -> Outcome {
    let first = run(scenario, 0, &mut |_| {});
    let mut second = run(scenario, 0, &mut |_| {});
    if first.trace != second.trace && second.violation.is_none() {
        second.violation = Some(Violation {
            invariant: Invariant::Determinism,
            at: scenario.end(),
            detail: format!("traces {:016x} and {:016x}", first.trace, second.trace),
        });
    }
    second
}
