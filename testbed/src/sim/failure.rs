//! What does somebody need who looks for the cause of a failure?

use std::fmt;

use super::invariant::Violation;
use super::run::run;
use super::scenario::Scenario;
use super::shrink::shrink;

/// A broken invariant, and the least that breaks it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How the run failed.
    pub violation: Violation,
    /// The smallest scenario that was found to fail in the same way.
    pub smallest: Scenario,
    /// The last events of it, in words.
    pub lines: Vec<String>,
}

impl Failure {
    /// Looks into a failure of `scenario`, which is made smaller if `shrinks`; the last `lines`
    /// events are told.
    #[must_use]
    pub fn investigate(
        scenario: &Scenario,
        violation: Violation,
        shrinks: bool,
        lines: usize,
    ) -> Self {
        let smallest = if shrinks {
            shrink(scenario, violation.invariant)
        } else {
            scenario.clone()
        };
        Self {
            violation,
            lines: run(&smallest, lines, &mut |_| {}).lines,
            smallest,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario {
            agents,
            absent,
            servers,
            flows,
            faults,
            ..
        } = &self.smallest;
        writeln!(f, "BROKEN {}", self.violation)?;
        writeln!(
            f,
            "the least that fails: {} agents, {servers} map servers, {} flows, {} faults; its last events:",
            *agents as usize - absent.len(),
            flows.len(),
            faults.len()
        )?;
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
