//! Floods from one side, while somebody well-behaved asks from the other.

use anyhow::Result;
use command_line::say;

use super::data::Plan;
use super::load::{Ask, Flood, Kind, Outcomes};
use super::{FEW, Run};

/// Questions per second of who behaves well: less than the server allows each source.
const ASKED: u64 = 1_000;
/// Datagrams of the flood per second.
const FLOOD: u64 = 100_000;

impl Run {
    /// Compares answer times during floods with those while the same flood goes past the server.
    pub(super) fn attack(&mut self) -> Result<()> {
        let server = self.site.limited_map_server(2 * ASKED)?;
        self.fill(&server, Plan::Mixed, FEW, false)?;
        for round in 0..self.rounds {
            say(&format!("floods, round {} of {}", round + 1, self.rounds));
            for kind in [Kind::Past].into_iter().chain(Kind::ALL) {
                server.rest()?;
                let ask = Ask {
                    plan: Plan::Mixed,
                    mappings: FEW,
                    milliseconds: self.each_ms,
                    rate: Some(ASKED),
                    checked: true,
                };
                let flood = Flood { kind, rate: FLOOD };
                let before = server.usage()?;
                let Outcomes { asked, flooded, .. } = self.site.flood(&server, ask, flood)?;
                let after = server.usage()?;
                let report = &mut self.report;
                let subject = kind.name();
                let lost = asked.lost as f64 / asked.sent.max(1) as f64;
                let back = flooded.reply_bytes as f64 / flooded.request_bytes.max(1) as f64;
                let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
                report.note("flood_per_s", subject, flooded.sent as f64 / asked.seconds);
                report.note("flooded_p50_us", subject, asked.latency_us.p50);
                report.note("flooded_p99_us", subject, asked.latency_us.p99);
                report.note("flooded_lost", subject, lost);
                report.note("flood_answered", subject, back);
                report.note("flooded_cores", subject, cpu / asked.seconds);
                report.note("flooded_mib", subject, after.mib() - before.mib());
            }
        }
        Ok(())
    }
}
