//! How much memory does a mapping take, and is it given back?

use anyhow::Result;
use command_line::say;

use super::Run;
use super::data::Plan;

impl Run {
    /// Fills a server with host mappings of each family, and empties it.
    pub(super) fn memory(&mut self) -> Result<()> {
        for (plan, subject) in [(Plan::Hosts4, "v4"), (Plan::Hosts6, "v6")] {
            say(&format!("memory: {subject}"));
            let server = self.site.map_server(1)?;
            let count = self.mappings;
            // What a first registration leaves behind is no matter of how many there are.
            self.fill(&server, plan, 1, false)?;
            let empty = server.usage()?.resident as f64;
            let loaded = self.fill(&server, plan, count, false)?;
            let full = server.usage()?.resident as f64;
            self.fill(&server, plan, count, true)?;
            let left = server.usage()?.resident as f64;
            let report = &mut self.report;
            report.note("loaded_per_s", subject, f64::from(count) / loaded.seconds);
            report.note(
                "bytes_per_mapping",
                subject,
                (full - empty) / f64::from(count),
            );
            report.note("resident_mib", &format!("{subject} empty"), mib(empty));
            report.note("resident_mib", &format!("{subject} full"), mib(full));
            report.note("resident_mib", &format!("{subject} withdrawn"), mib(left));
            report.note("left_of_growth", subject, (left - empty) / (full - empty));
        }
        Ok(())
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
