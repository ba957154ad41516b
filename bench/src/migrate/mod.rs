//! `bench migrate`: clients that move from one proxy to another while packets flow.

mod baseline;
mod failover;
mod report;
mod scene;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use command_line::say;
use testbed::{LinkParams, Share};

use crate::plan::Plan;
use crate::{guest, plane_name};
use baseline::Baseline;
use report::{FILE, Measured, Plane, Report};
use scene::Scene;

/// A guest is given so long, plus so long per move.
const GUEST: Duration = Duration::from_secs(900);
const GUEST_EACH: Duration = Duration::from_secs(120);

/// Measures what clients notice when they move from one proxy to another.
///
/// One client sends 10,000 packets a second and holds a TCP connection while it moves; so does, in the
/// same run, one whose tunnel is taken down and set up anew to the other proxy, as one does with
/// `wg-quick down` and `wg-quick up`. Then many clients, which send as much together, move at once.
/// What is lost while nobody moves is what the machine loses by itself, and the links, if they are to. At last proxies fail while a
/// client sends: their process is killed, their link is cut, or they forward nothing any more.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Few moves of few clients, to see that it works
    #[arg(long)]
    quick: bool,
    /// Moves of one client, and failures of each kind, per data plane [default: 20, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
    /// Clients that move at once [default: 200, with --quick 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<u32>,
    /// Packets per second [default: 10000, with --quick 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Share of what each link loses, each way, in percent; a path crosses two
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=50))]
    loss: u8,
    #[command(flatten)]
    plan: Plan,
}

impl Args {
    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 2 } else { 20 })
    }

    fn clients(&self) -> u32 {
        self.clients.unwrap_or(if self.quick { 20 } else { 200 })
    }

    fn rate(&self) -> u32 {
        let usual = if self.quick { 1_000 } else { 10_000 };
        self.rate.unwrap_or(usual)
    }
}

/// Runs `bench migrate`.
///
/// # Errors
///
/// When a network cannot be built, or a migration fails.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let planes = args.plan.measure(
        |plane| Ok(vec![measure(plane, args)?]),
        |out| Ok(in_guest(args, out)?.into_iter().collect()),
    )?;
    args.plan.finish(&Report::of(planes), FILE)
}

fn in_guest(args: &Args, out: &Path) -> Result<Option<Plane>> {
    let [runs, clients, rate, loss] =
        [args.runs(), args.clients(), args.rate(), args.loss.into()].map(|n| n.to_string());
    let arguments = [
        "migrate",
        "--data-plane",
        "kernel",
        "--runs",
        &runs,
        "--clients",
        &clients,
        "--rate",
        &rate,
        "--loss",
        &loss,
    ];
    let patience = GUEST + GUEST_EACH * args.runs();
    let report: Option<Report> = guest::run(&arguments, out, FILE, patience)?;
    Ok(report.and_then(|report| report.planes.into_iter().next()))
}

/// Measures one data plane on this kernel.
fn measure(plane: testbed::DataPlane, args: &Args) -> Result<Plane> {
    let runs = args.runs();
    let pace = Duration::from_secs(1) / args.rate();
    let links = LinkParams {
        loss: Share::percent(args.loss.into()),
        ..LinkParams::delayed(scene::DELAY)
    };
    let mut scene = Scene::start(plane, args.clients(), pace, links)?;
    let round_trip = scene.round_trip()?;
    let name = plane_name(plane);
    let mut measured = Measured::at(pace, args.loss);
    let mut baseline = Baseline::start(plane, &scene)?;
    for number in 1..=runs {
        measured.still.push(&scene.stay()?, pace);
        measured.baseline.push(&scene.under(&mut baseline)?, pace);
        let one = scene.move_one()?;
        measured.one.push(&one.sent, pace);
        measured.tcp.push(one.tcp);
        say(&format!("{name}: {number} of {runs} moves"));
        if let Some(failed) = one.failed {
            say(&format!("{name}: {failed}"));
            measured.failed.push(failed);
        }
    }
    let many = scene.move_many().context("many clients at once")?;
    measured.many_still = many.still;
    measured.many = many.moved;
    measured.moves_ms = many.moves_ms;
    measured.told_ms = many.told_ms;
    let by = baseline.name();
    drop(baseline);
    scene.stop()?;
    measured.failovers = failover::measure(plane, runs, links)?;
    Ok(Plane::new(name, by, round_trip, measured))
}
