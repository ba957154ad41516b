//! `bench establish`: from a first packet to its reply, and from then on at full pace.

pub(crate) mod bare;
mod cold;
mod report;
mod throughput;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use command_line::say;
use testbed::Distribution;

use crate::plan::Plan;
use crate::{FLOOR_ROUND_TRIPS, guest, plane_name};
use report::{Plane, Report};

/// A guest is given so long, plus so long per cold start.
const PATIENCE: Duration = Duration::from_secs(600);
const PATIENCE_EACH: Duration = Duration::from_secs(10);

/// Measures how long tunnels take to come up, and what they carry once they are.
///
/// Both ends are restarted before every first packet, so each one finds agents that know
/// nobody. The floor is four round trips of the path: Map-Request and reply, push and
/// acknowledgement in between, WireGuard's handshake, and the packet itself. Throughput is
/// compared with WireGuard configured by hand, in the same run, in turns.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A short run, to see that it works
    #[arg(long)]
    quick: bool,
    /// Cold starts per data plane [default: 200, with --quick 5]
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    #[command(flatten)]
    plan: Plan,
}

/// What each data plane is measured with.
#[derive(Clone, Copy, Debug)]
struct Effort {
    cold_starts: u32,
    rounds: u32,
    seconds: u32,
}

impl Args {
    const fn effort(&self) -> Effort {
        let (runs, rounds, seconds) = if self.quick { (5, 2, 1) } else { (200, 11, 2) };
        Effort {
            cold_starts: match self.runs {
                Some(runs) => runs,
                None => runs,
            },
            rounds,
            seconds,
        }
    }
}

/// Runs `bench establish`.
///
/// # Errors
///
/// When a network cannot be built, or a first packet gets no answer at all.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let planes = args.plan.measure(
        |plane| Ok(vec![measure(plane, args)?]),
        |out| Ok(in_guest(args, out)?.into_iter().collect()),
    )?;
    args.plan.finish(&Report::of(planes), report::FILE)
}

/// Measures one data plane on this kernel.
fn measure(plane: testbed::DataPlane, args: &Args) -> Result<Plane> {
    let effort = args.effort();
    let cold = cold::measure(plane, effort.cold_starts)?;
    let throughput = throughput::measure(plane, effort)?;
    let floor = cold.round_trip_ms * FLOOR_ROUND_TRIPS;
    let times = Distribution::of(cold.first_reply_ms);
    Ok(Plane {
        name: plane_name(plane).into(),
        round_trip_ms: cold.round_trip_ms,
        floor_ms: floor,
        over_1s: times.values.iter().filter(|ms| **ms > 1_000.0).count(),
        first_reply_ms: times,
        request_and_configure_ms: Distribution::of(cold.configure_ms),
        lost_first_packets: cold.lost,
        throughput,
    })
}

fn in_guest(args: &Args, out: &Path) -> Result<Option<Plane>> {
    let runs = args.effort().cold_starts;
    let arguments = runs.to_string();
    let mut arguments = vec!["establish", "--data-plane", "kernel", "--runs", &*arguments];
    if args.quick {
        arguments.push("--quick");
    }
    let patience = PATIENCE + PATIENCE_EACH * runs;
    let report: Option<Report> = guest::run(&arguments, out, report::FILE, patience)?;
    Ok(report.and_then(|mut report| report.planes.pop()))
}
