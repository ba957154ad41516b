//! How long does it take from a first packet to its reply, over many cold starts?

use std::io::Write;

use anyhow::{Context, Result};

use super::stage::{Stage, ms};
use crate::Distribution;

/// Cold starts between lines of progress.
const PROGRESS: u32 = 10;

/// Restarts alpha and beta `runs` times, each time measures a first packet, and prints how the
/// measurements are distributed.
pub(super) fn measure(stage: &mut Stage, runs: u32, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "{runs} cold starts: alpha and beta are restarted, then alpha pings beta"
    )?;
    let (mut times, mut datagrams) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let start = stage.network.cold_start();
        let start = start.with_context(|| format!("cold start {run}"))?;
        let first_reply = start.first_reply.context("no reply to the first packet");
        let first_reply = ms(first_reply.with_context(|| format!("cold start {run}"))?);
        if run % PROGRESS == 0 {
            writeln!(out, "  {run:>6} done, this one {first_reply:.1} ms")?;
        }
        times.push(first_reply);
        datagrams.push(start.control_datagrams as f64);
    }
    let trip = ms(stage.round_trip).max(f64::EPSILON);
    let multiples = times.iter().map(|time| time / trip).collect();
    writeln!(out, "\n{}", Distribution::head())?;
    for (title, values, digits) in [
        ("first packet to first reply, ms", times, 1),
        ("as multiples of the round trip", multiples, 2),
        ("control datagrams at the server", datagrams, 0),
    ] {
        writeln!(out, "{}", Distribution::of(values).row(title, digits))?;
    }
    writeln!(out, "  the path's round trip is {trip:.1} ms\n")?;
    Ok(())
}
