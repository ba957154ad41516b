//! All agents register at once, while somebody asks.

use anyhow::{Result, ensure};
use command_line::say;

use super::Run;
use super::data::Plan;
use super::load::Ask;
use super::rounds::RATES;
use super::servers::Server;

/// Registrations in a storm, one per message.
const STORM: u32 = 1_000_000;

impl Run {
    /// Lets a million registrations come as fast as they are acknowledged, and compares answer times with
    /// those before.
    pub(super) fn storm(&mut self, server: &Server) -> Result<()> {
        say("storm");
        let count = STORM.min(self.mappings);
        let ask = Ask {
            plan: Plan::Mixed,
            mappings: self.mappings,
            milliseconds: self.each_ms,
            rate: Some(RATES[0]),
            checked: true,
        };
        server.rest()?;
        let calm = self.site.load(server, Some(ask.clone()), None)?.asked;
        let register = self.register(Plan::Mixed, count);
        let outcomes = self.site.load(server, Some(ask), Some(register))?;
        let (asked, registered) = (outcomes.asked, outcomes.registered);
        ensure!(
            registered.answered >= u64::from(count),
            "registrations were lost"
        );
        let report = &mut self.report;
        report.note("reregister_s", "storm", registered.seconds);
        report.note("reregister_messages", "storm", f64::from(count));
        report.note("reregister_again", "storm", registered.lost as f64);
        for (subject, outcome) in [("calm", calm), ("storm", asked)] {
            report.note("asked_p50_us", subject, outcome.latency_us.p50);
            report.note("asked_p99_us", subject, outcome.latency_us.p99);
            report.note("asked_lost", subject, outcome.lost as f64);
        }
        Ok(())
    }
}
