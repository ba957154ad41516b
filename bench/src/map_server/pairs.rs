//! What does it cost that two meet who have not met before?
//!
//! One asks through its control tunnel, the other is told of it and acknowledges that, and then the first is answered:
//! four messages, of which the server encrypts two and decrypts two, where an echo is two in the plain.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_line::say;
use testbed::{Crowd, CrowdMeetings, Network, NetworkOptions, sleep};

use super::Run;
use crate::usage::Usage;

/// Agents with tunnels.
const MEMBERS: u32 = 100;
/// How many others each meets in a round.
const EACH: u32 = 6;
/// So many rounds there are at most: no two meet twice.
const ROUNDS: u32 = (MEMBERS / 2 - 1) / EACH;
/// From one meeting to the next, of all together: the crowd shakes hands for both.
const PACE: Duration = Duration::from_millis(3);
/// How long nothing happens while it is looked what tunnels cost by themselves.
const IDLE: Duration = Duration::from_secs(1);
/// How long agents may take to register, and packets to arrive.
const REGISTERING: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(4);

impl Run {
    /// Lets agents meet.
    pub(super) fn pairs(&mut self) -> Result<()> {
        say(&format!("{MEMBERS} agents meet each other"));
        let mut network = Network::start(&NetworkOptions {
            endpoints: 1,
            crowd: MEMBERS,
            ..NetworkOptions::default()
        })?;
        let crowd = network.crowd.as_mut().context("there is a crowd")?;
        crowd.register(MEMBERS, REGISTERING)?;
        let crowd = network.crowd.as_ref().context("there is a crowd")?;
        let server = network.server.daemon()?;
        let pid = server.pid().context("the server does not run")?;
        for round in 0..self.rounds.min(ROUNDS) {
            let (cost, met) = round_of(crowd, pid, 1 + round * EACH)?;
            let missing = MEMBERS * EACH - met;
            self.report.note("pair_us", "met", cost);
            self.report.note("pairs_lost", "met", f64::from(missing));
        }
        Ok(network.stop_all()?)
    }
}

/// Each meets those who are from `first` on along the ring; returns how long the server has run per pair, in
/// microseconds, and how many pairs there were.
fn round_of(crowd: &Crowd, server: u32, first: u32) -> Result<(f64, u32)> {
    let interval = PACE * MEMBERS;
    let start = Usage::of(server)?.cpu;
    sleep(IDLE);
    let before = Usage::of(server)?.cpu;
    let met = crowd.meet(CrowdMeetings {
        members: MEMBERS,
        first,
        count: EACH,
        interval,
        timeout: PATIENCE,
    })?;
    let used = Usage::of(server)?.cpu.saturating_sub(before);
    ensure!(met > 0, "nobody has met anybody");
    let idle = before.saturating_sub(start).as_secs_f64() / IDLE.as_secs_f64();
    let besides = idle * (interval * EACH).as_secs_f64();
    let pairs = (used.as_secs_f64() - besides) / f64::from(met);
    Ok((pairs * 1e6, met))
}
