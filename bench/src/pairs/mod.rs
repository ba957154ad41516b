//! `bench pairs`: thousands of pairs that have never met, with and without loss.

mod report;

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use command_line::say;
use testbed::{Endpoint, LinkParams, Network, NetworkOptions, Ping, Share, sleep};

use crate::plan::Plan;
use crate::slow::way;
use crate::{guest, plane_name};
use report::{FILE, Report, Series};

/// Delay of each link, one way; a path crosses two.
const DELAY: Duration = Duration::from_millis(5);
/// Time between one pair and the next.
const PAUSE: Duration = Duration::from_millis(20);
/// One pair in so many starts at both ends at the same instant.
const BOTH_ENDS: usize = 4;
/// Pairs of one network. More need more agents, and those of one network share one machine: they
/// would wait for its processor, not for each other.
const PAIRS_OF_A_NETWORK: u32 = 200;
/// A guest is given so long, plus so long per pair.
const PATIENCE: Duration = Duration::from_secs(600);
const PATIENCE_EACH: Duration = Duration::from_secs(10);

/// Measures first packets of pairs that have never met, at one end or both ends at once, with and
/// without loss on the way to the map server.
///
/// Networks of some twenty agents follow each other, and no two agents meet twice.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs per data plane and loss
    #[arg(long, value_name = "N", default_value_t = 2_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Shares of control datagrams that are lost, each way, in percent
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_values_t = [0, 1],
        value_parser = clap::value_parser!(u8).range(..=50))]
    loss: Vec<u8>,
    #[command(flatten)]
    plan: Plan,
}

/// Runs `bench pairs`.
///
/// # Errors
///
/// When a network cannot be built.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let measure = |plane| {
        let series = args
            .loss
            .iter()
            .map(|loss| measure(plane, *loss, args.count));
        series.collect()
    };
    let series = args.plan.measure(measure, |out| in_guest(args, out))?;
    args.plan.finish(&Report::of(series), FILE)
}

fn in_guest(args: &Args, out: &Path) -> Result<Vec<Series>> {
    let count = args.count.to_string();
    let loss: Vec<_> = args.loss.iter().map(u8::to_string).collect();
    let loss = loss.join(",");
    let arguments = [
        "pairs",
        "--data-plane",
        "kernel",
        "--count",
        &count,
        "--loss",
        &loss,
    ];
    let series = u32::try_from(args.loss.len())?;
    let patience = (PATIENCE + PATIENCE_EACH * args.count) * series;
    let report: Option<Report> = guest::run(&arguments, out, FILE, patience)?;
    Ok(report.map_or_else(Vec::new, |report| report.series))
}

/// Lets `count` pairs meet, in as many networks as it takes.
fn measure(plane: testbed::DataPlane, loss: u8, count: u32) -> Result<Series> {
    let mut series = None;
    let mut met = 0;
    while met < count {
        let pairs = PAIRS_OF_A_NETWORK.min(count - met);
        measure_network(plane, loss, pairs, &mut series)?;
        met += pairs;
        say(&format!(
            "{}, {loss} % lost: {met} of {count} pairs",
            plane_name(plane)
        ));
    }
    series.context("there are pairs to measure")
}

/// Lets `pairs` pairs of one network meet, and adds what became of them to `series`.
fn measure_network(
    plane: testbed::DataPlane,
    loss: u8,
    pairs: u32,
    series: &mut Option<Series>,
) -> Result<()> {
    let agents = agents_for(pairs);
    let links = LinkParams::delayed(DELAY);
    let mut network = Network::start(&NetworkOptions {
        endpoints: agents,
        links,
        server_links: Some(LinkParams {
            loss: Share::percent(loss.into()),
            ..links
        }),
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let round_trip = network.round_trip()?;
    let series = series.get_or_insert_with(|| Series::new(plane_name(plane), loss, round_trip));
    for (number, (one, other)) in pairs_of(agents).take(usize::try_from(pairs)?).enumerate() {
        let pick = |at: usize| network.endpoints.get(at).context("no such endpoint");
        let (one, other) = (pick(one)?, pick(other)?);
        let reply = meet(one, other, number)?;
        // Only while it is fresh does the agent know what took so long.
        let way = match reply {
            Some(reply) if !series.is_slow(reply) => None,
            Some(_) | None => Some(way(one, other.eids[0])?),
        };
        series.add(format!("{} to {}", one.name(), other.name()), reply, way);
        sleep(PAUSE);
    }
    network.stop_all()?;
    Ok(())
}

/// Pairs of so many `agents`, first of those who stand beside each other in a circle.
fn pairs_of(agents: usize) -> impl Iterator<Item = (usize, usize)> {
    (1..).flat_map(move |apart| (0..agents).map(move |one| (one, (one + apart) % agents)))
}

/// The time until the first packet is answered, the longer one if both ends start; `None` if one
/// gets no reply.
fn meet(one: &Endpoint, other: &Endpoint, number: usize) -> Result<Option<Duration>> {
    let first = |from: &Endpoint, to: &Endpoint| -> Result<Option<Duration>> {
        Ok(Ping::once(to.eids[0]).run(from.namespace())?.shortest())
    };
    if !number.is_multiple_of(BOTH_ENDS) {
        return first(one, other);
    }
    let [there, back] = thread::scope(|scope| {
        let back = scope.spawn(|| first(other, one));
        [Ok(first(one, other)), back.join()]
    });
    let (Ok(there), Ok(back)) = (there, back) else {
        bail!("a thread that pings panicked");
    };
    Ok(there?.zip(back?).map(|(there, back)| there.max(back)))
}

/// The fewest agents of which `count` pairs can be made, each once.
fn agents_for(count: u32) -> usize {
    let enough = |agents: &usize| agents * (agents - 1) / 2 >= count as usize;
    // Walking around the circle meets every pair once only while it is not half way around.
    (2..).find(enough).unwrap_or(2) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_agents_meet_twice() {
        for count in [1, 3, 20, 500, 2_000] {
            let agents = agents_for(count);
            let mut met = BTreeSet::new();
            for (one, other) in pairs_of(agents).take(count as usize) {
                assert_ne!(one, other);
                assert!(met.insert((one.min(other), one.max(other))), "{count}");
            }
        }
    }
}
