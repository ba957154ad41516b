//! `bench handover`: hosts that move to another address while packets flow.

mod report;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use command_line::say;
use testbed::{
    LinkParams, Namespace, Network, NetworkOptions, Ping, TestbedError, UdpProbe, sleep,
};

use crate::by_hand::ByHand;
use crate::plan::Plan;
use crate::{guest, plane_name};
use report::{FILE, Gaps, Plane, Report};

/// Delay of each link, one way; a path crosses two.
const DELAY: Duration = Duration::from_millis(5);
/// Time from one packet of a stream to the next.
const PACE: Duration = Duration::from_millis(1);
/// Packets of a stream.
const COUNT: u32 = 1_500;
/// Packets have flowed for so long when hosts move.
const BEFORE: Duration = Duration::from_millis(300);
/// How long packets are waited for after the last one.
const PATIENCE: Duration = Duration::from_millis(200);
/// A guest is given so long, plus so long per move.
const GUEST: Duration = Duration::from_secs(600);
const GUEST_EACH: Duration = Duration::from_secs(60);
const PORT: u16 = 9_000;
/// Last bytes of the addresses that hosts move to.
const FIRST_FRESH: u8 = 10;
const LAST_FRESH: u8 = 250;

/// Measures how long nothing arrives when hosts move to another address.
///
/// One end moves while packets flow both ways, in turns with WireGuard by itself, which follows
/// what the moved end sends. Then one end moves that sends nothing, and then both ends move at the
/// same instant: WireGuard by itself follows neither before a timer of it runs out, if ever.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Few moves, to see that it works
    #[arg(long)]
    quick: bool,
    /// Moves of each kind per data plane [default: 20, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
    #[command(flatten)]
    plan: Plan,
}

impl Args {
    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 2 } else { 20 })
    }
}

/// Runs `bench handover`.
///
/// # Errors
///
/// When a network cannot be built, or no packet arrives any more after a move.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let planes = args.plan.measure(
        |plane| Ok(vec![measure(plane, args.runs())?]),
        |out| Ok(in_guest(args.runs(), out)?.into_iter().collect()),
    )?;
    args.plan.finish(&Report::of(planes), FILE)
}

fn in_guest(runs: u32, out: &Path) -> Result<Option<Plane>> {
    let count = runs.to_string();
    let arguments = ["handover", "--data-plane", "kernel", "--runs", &count];
    let report: Option<Report> = guest::run(&arguments, out, FILE, GUEST + GUEST_EACH * runs)?;
    Ok(report.and_then(|report| report.planes.into_iter().next()))
}

/// Which way packets flow: from the first end to the second, and back.
#[derive(Clone, Copy)]
enum Flow {
    Both,
    /// Only from the second end to the first.
    ToTheFirst,
}

/// Measures one data plane on this kernel.
fn measure(plane: testbed::DataPlane, runs: u32) -> Result<Plane> {
    let links = LinkParams::delayed(DELAY);
    let mut network = Network::start(&NetworkOptions {
        links,
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let round_trip = network.round_trip()?;
    let mut by_hand = ByHand::start(plane, links)?;
    let ours = places(&network)?;
    let theirs = {
        let [left, right] = &by_hand.ends;
        [left, right].map(|end| (end.host.namespace.clone(), end.inner))
    };
    for [one, other] in [&ours, &theirs] {
        let reply = Ping::once(other.1).run(&one.0)?.shortest();
        ensure!(reply.is_some(), "no tunnel before the first move");
    }
    let mut gaps = Gaps::default();
    // Nobody had these lately.
    let mut fresh = (FIRST_FRESH..=LAST_FRESH)
        .cycle()
        .map(|last| IpAddr::from([192, 0, 2, last]));
    let mut next = || fresh.next().context("no address");
    for number in 1..=runs {
        let to = next()?;
        let gap = |places, flow, go: &mut dyn FnMut() -> Result<()>| gap(places, flow, go);
        gaps.by_hand
            .push(gap(&theirs, Flow::Both, &mut || by_hand.move_end(0, to))?);
        gaps.handover.push(gap(&ours, Flow::Both, &mut || {
            Ok(network.move_endpoint(0, to)?)
        })?);
        let to = next()?;
        gaps.silent.push(gap(&ours, Flow::ToTheFirst, &mut || {
            Ok(network.move_endpoint(0, to)?)
        })?);
        let both = [next()?, next()?];
        gaps.double_jump.push(gap(&ours, Flow::Both, &mut || {
            network.move_endpoint(0, both[0])?;
            Ok(network.move_endpoint(1, both[1])?)
        })?);
        say(&format!(
            "{}: {number} of {runs} moves of each kind",
            plane_name(plane)
        ));
    }
    network.stop_all()?;
    Ok(Plane::new(plane_name(plane), round_trip, gaps))
}

/// A host, and its address in the tunnel.
type Place = (Namespace, IpAddr);

fn places(network: &Network) -> Result<[Place; 2]> {
    let [alpha, beta] = network.endpoints.as_slice() else {
        bail!("a pair needs two endpoints");
    };
    Ok([alpha, beta].map(|end| (end.namespace().clone(), end.eids[0])))
}

/// The longest time without an arrival while `go` moves hosts, in milliseconds; of the two ways the
/// longer one.
fn gap(
    [first, second]: &[Place; 2],
    flow: Flow,
    go: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let stream = |from: &Place, to: &Place| {
        let probe = UdpProbe {
            source: Some(from.1),
            count: COUNT,
            interval: PACE,
            timeout: PATIENCE,
            ..UdpProbe::thousand_to(SocketAddr::new(to.1, PORT))
        };
        let report = probe.run(&from.0, &to.0)?;
        Ok::<_, TestbedError>(report.longest_gap(PACE))
    };
    thread::scope(|scope| {
        let to_first = scope.spawn(|| stream(second, first));
        let to_second = match flow {
            Flow::Both => Some(scope.spawn(|| stream(first, second))),
            Flow::ToTheFirst => None,
        };
        sleep(BEFORE);
        let gone = go();
        let gaps = [Some(to_first), to_second].into_iter().flatten();
        let gaps: Vec<_> = gaps.map(thread::ScopedJoinHandle::join).collect();
        gone?;
        let mut longest = Duration::ZERO;
        for gap in gaps {
            let Ok(gap) = gap else {
                bail!("a thread that sends packets panicked");
            };
            longest = longest.max(gap?);
        }
        Ok(longest.as_secs_f64() * 1e3)
    })
}
