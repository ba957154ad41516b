//! How long does it take from a first packet to its reply, over many cold starts?

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use super::answered;
use super::stage::{Stage, ms};
use crate::Ping;
use crate::clock::sleep;
use crate::network::{Network, SERVER_CONTROL_INTERFACE};

/// How long control datagrams of one thing may be under way before the next one is measured.
const QUIET: Duration = Duration::from_millis(100);
/// Cold starts between lines of progress.
const PROGRESS: u32 = 10;

/// What was measured in one cold start.
struct ColdStart {
    first_reply: Duration,
    control_datagrams: u64,
}

/// Restarts alpha and beta `runs` times, each time measures a first packet, and prints how the
/// measurements are distributed.
pub(super) fn measure(stage: &mut Stage, runs: u32, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "{runs} cold starts: alpha and beta are restarted, then alpha pings beta"
    )?;
    let mut measured = Vec::new();
    for run in 1..=runs {
        let cold_start = once(&mut stage.network).with_context(|| format!("cold start {run}"))?;
        if run % PROGRESS == 0 {
            writeln!(
                out,
                "  {run:>6} done, this one {:.1} ms",
                ms(cold_start.first_reply)
            )?;
        }
        measured.push(cold_start);
    }
    let trip = ms(stage.round_trip).max(f64::EPSILON);
    let mut times: Vec<f64> = measured.iter().map(|one| ms(one.first_reply)).collect();
    times.sort_by(f64::total_cmp);
    let multiples: Vec<f64> = times.iter().map(|time| time / trip).collect();
    let mut datagrams: Vec<u64> = measured.iter().map(|one| one.control_datagrams).collect();
    datagrams.sort_unstable();
    writeln!(
        out,
        "\n  {:<38}{:>10}{:>10}{:>10}{:>10}",
        "", "min", "median", "p90", "max"
    )?;
    let mut row = |title: &str, cells: [String; 4]| {
        writeln!(
            out,
            "  {title:<38}{:>10}{:>10}{:>10}{:>10}",
            cells[0], cells[1], cells[2], cells[3]
        )
    };
    row(
        "first packet to first reply, ms",
        quantiles(&times).map(|time| format!("{time:.1}")),
    )?;
    row(
        "as multiples of the round trip",
        quantiles(&multiples).map(|many| format!("{many:.2}")),
    )?;
    row(
        "control datagrams at the server",
        quantiles(&datagrams).map(|many| many.to_string()),
    )?;
    writeln!(
        out,
        "  the path's round trip is {:.1} ms\n",
        ms(stage.round_trip)
    )?;
    Ok(())
}

fn once(network: &mut Network) -> Result<ColdStart> {
    let Network { endpoints, log, .. } = network;
    for endpoint in endpoints.iter_mut().take(2) {
        endpoint.node.stop()?;
        endpoint.node.start(log)?;
        endpoint.wait_until_registered()?;
    }
    sleep(QUIET);
    let [alpha, beta, ..] = network.endpoints.as_slice() else {
        anyhow::bail!("a pair needs two endpoints");
    };
    let before = control_datagrams(network)?;
    let first_reply = answered(&Ping::once(beta.eids[0]), alpha.namespace())?;
    sleep(QUIET);
    let control_datagrams = control_datagrams(network)?.saturating_sub(before);
    Ok(ColdStart {
        first_reply,
        control_datagrams,
    })
}

/// Datagrams that the server has received and sent inside the control tunnels.
fn control_datagrams(network: &Network) -> Result<u64> {
    let counters = network
        .server
        .host
        .namespace
        .counters(SERVER_CONTROL_INTERFACE)?;
    Ok(counters.received_packets + counters.sent_packets)
}

/// Minimum, median, ninetieth percentile and maximum of sorted values.
fn quantiles<T: Copy + Default>(sorted: &[T]) -> [T; 4] {
    let last = sorted.len().saturating_sub(1);
    // Rounded up: the value that so many do not exceed.
    let at = |percent: usize| sorted.get((last * percent).div_ceil(100)).copied();
    [at(0), at(50), at(90), at(100)].map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<u32> = (1..=11).collect();
        assert_eq!(quantiles(&values), [1, 6, 10, 11]);
        assert_eq!(quantiles(&[7]), [7; 4]);
        assert_eq!(quantiles::<u32>(&[]), [0; 4]);
    }
}
