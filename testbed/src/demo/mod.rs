//! `testbed demo`: watch a tunnel come up because of a first packet.

mod cold_starts;
mod keep;
mod stage;
mod story;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::error::best_effort;
use crate::network::{DataPlane, Network, NetworkOptions};
use crate::testbed::require_root;
use crate::{Binaries, LinkParams, cleanup};
pub use keep::{CleanArgs, clean};
use stage::Stage;

/// Links must not be slower than what the daemons take for an answer.
const MAX_DELAY_MS: u64 = 1_000;

/// Builds a network of a map server and endpoints in namespaces, and lets a first packet make a
/// tunnel, telling what happens as it happens.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Leaves the network up afterwards and says how to look around in it
    #[arg(long)]
    keep: bool,
    /// Delay of every link, one way; a path crosses two links
    #[arg(long, value_name = "MS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(..=MAX_DELAY_MS))]
    delay_ms: u64,
    /// Number of endpoints
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(2..=200))]
    endpoints: u8,
    /// Cold starts to measure; more than one prints how they are distributed
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Which WireGuard to use
    #[arg(long, value_enum, default_value_t)]
    data_plane: DataPlane,
    /// Holds a kept network: the process behind --keep
    #[arg(long, hide = true)]
    holder: bool,
}

/// Runs `testbed demo`.
///
/// # Errors
///
/// When not root, when the daemons do not build, or when something does not work as it should.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.keep && !args.holder {
        return keep::run_holder();
    }
    let mut out = io::stdout();
    let network = perform(args, &mut out)?;
    if args.keep {
        keep::hold(&network, &mut out)?;
    }
    strike(network, &mut out)?;
    Ok(ExitCode::SUCCESS)
}

/// The demonstration itself; returns the network as it is at its end.
fn perform(args: &Args, out: &mut (impl Write + Send)) -> Result<Network> {
    require_root()?;
    let delay = Duration::from_millis(args.delay_ms);
    let binaries = Binaries::up_to_date(|command| {
        // Only for people: it takes a while.
        best_effort(writeln!(out, "Building the daemons: {command}\n"));
    })?;
    let options = NetworkOptions {
        endpoints: usize::from(args.endpoints),
        links: LinkParams::delayed(delay),
        data_plane: args.data_plane,
        ..NetworkOptions::default()
    };
    let network = Network::prepare(&options, binaries)?;
    let mut stage = Stage::set(network, delay, out)?;
    stage.start_daemons(out)?;
    stage.show_peers("Peers before", out)?;
    for family in 0..2 {
        stage.first_packet(family, out)?;
    }
    stage.show_peers("Peers after", out)?;
    stage.check_strangers()?;
    if args.runs > 1 {
        cold_starts::measure(&mut stage, args.runs, out)?;
    }
    Ok(stage.network)
}

/// Stops everything and makes sure that nothing is left.
fn strike(mut network: Network, out: &mut impl Write) -> Result<()> {
    network.stop_all()?;
    let names: Vec<_> = network
        .nodes()
        .map(|node| node.host.namespace.name().to_owned())
        .collect();
    for node in network.nodes() {
        let left = node.leftovers()?;
        ensure!(
            left.is_empty(),
            "{} left behind:\n{}",
            node.name(),
            left.join("\n")
        );
    }
    let directory = network.testbed().directory().to_owned();
    drop(network);
    let gone = |name: &String| !Path::new(cleanup::NETNS_DIRECTORY).join(name).exists();
    ensure!(
        names.iter().all(gone) && !directory.exists(),
        "namespaces or files are left behind"
    );
    writeln!(
        out,
        "Stopped. No namespace, interface, route, rule or file is left behind."
    )?;
    Ok(())
}
