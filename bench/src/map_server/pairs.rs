//! What does it cost that two meet who have not met before?
//!
//! One asks through its control tunnel, the other is told of it and acknowledges that, and then the first is answered:
//! four messages, of which the server encrypts two and decrypts two, where an echo is two in the plain.

use anyhow::{Result, ensure};
use command_line::say;

use super::Run;

/// Agents, how many others each meets in a round, and asks for at a time, where they meet as fast as the server
/// lets them.
const MEMBERS: u32 = 500;
const EACH: u32 = 32;
const GROUP: u32 = 16;
/// So many rounds there are at most: no two meet twice.
const ROUNDS: u32 = (MEMBERS / 2 - 1) / EACH;
/// The same where each message is alone with the server: each agent meets one other, and so long it is from one
/// pair to the next, in microseconds.
const CALM: (u32, Option<u64>) = (1, Some(3_000));
/// How agents meet.
const SUBJECTS: [(&str, bool); 2] = [("met", false), ("met_calmly", true)];

impl Run {
    /// Lets agents meet.
    pub(super) fn pairs(&mut self) -> Result<()> {
        let rounds = self.rounds.min(ROUNDS);
        for (subject, is_calm) in SUBJECTS {
            say(&format!("{MEMBERS} agents meet each other: {subject}"));
            let (server, key) = self.site.enrolling_map_server(MEMBERS)?;
            let (each, pace) = if is_calm {
                (CALM.0, CALM)
            } else {
                (EACH, (GROUP, None))
            };
            let size = (MEMBERS, each, rounds);
            for round in self.site.meet(&server, key, size, pace)? {
                ensure!(round.met > 0, "nobody has met anybody");
                let each = round.cpu_us / f64::from(round.met);
                self.report.note("pair_us", subject, each);
                let per_second = f64::from(round.met) / round.seconds;
                self.report.note("pairs_per_s", subject, per_second);
                let lost = f64::from(round.lost);
                self.report.note("pairs_lost", subject, lost);
            }
        }
        let [members, each, rounds] = [MEMBERS, EACH, rounds].map(|it| it.to_string());
        let arguments = [
            "meet-alone",
            "--members",
            &members,
            "--each",
            &each,
            "--rounds",
            &rounds,
        ];
        for pair_us in self.site.measure_alone::<Vec<f64>>(&arguments)? {
            self.report.note("pairs_core_us", "met", pair_us);
        }
        Ok(())
    }
}
