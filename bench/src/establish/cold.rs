//! First packets between agents that know nobody.

use std::time::Duration;

use anyhow::{Context, Result};
use command_line::say;
use testbed::{LinkParams, Network, NetworkOptions};

use super::plane_name;

/// Delay of each link, one way; a path crosses two.
const DELAY: Duration = Duration::from_millis(5);
/// Cold starts between lines of progress.
const PROGRESS: u32 = 20;

/// What many cold starts took.
#[derive(Debug, Default)]
pub(super) struct ColdStarts {
    /// From one end to the other and back, without a tunnel.
    pub(super) round_trip_ms: f64,
    /// From the first packet to its reply.
    pub(super) first_reply_ms: Vec<f64>,
    /// From the caught packet to the route.
    pub(super) configure_ms: Vec<f64>,
    /// First packets without a reply.
    pub(super) lost: usize,
}

/// Builds a network with a map server and two endpoints, and measures `runs` first packets.
pub(super) fn measure(plane: testbed::DataPlane, runs: u32) -> Result<ColdStarts> {
    let mut network = Network::start(&NetworkOptions {
        links: LinkParams::delayed(DELAY),
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let mut measured = ColdStarts {
        round_trip_ms: milliseconds(network.round_trip()?),
        ..ColdStarts::default()
    };
    for run in 1..=runs {
        once(&mut network, &mut measured).with_context(|| format!("cold start {run}"))?;
        if run % PROGRESS == 0 || run == runs {
            let last = measured.first_reply_ms.last().copied().unwrap_or_default();
            say(&format!(
                "{}: {run} of {runs} cold starts, the last one {last:.1} ms",
                plane_name(plane)
            ));
        }
    }
    network.stop_all()?;
    Ok(measured)
}

fn once(network: &mut Network, measured: &mut ColdStarts) -> Result<()> {
    let start = network.cold_start()?;
    match start.first_reply {
        Some(time) => measured.first_reply_ms.push(milliseconds(time)),
        None => measured.lost += 1,
    }
    let configured = start.configured.map(milliseconds);
    measured.configure_ms.extend(configured);
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
