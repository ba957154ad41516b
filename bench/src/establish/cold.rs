//! First packets between agents that know nobody.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::{LinkParams, LogEvent, Network, NetworkOptions, Ping, sleep};

use super::{plane_name, say};

/// Delay of each link, one way; a path crosses two.
const DELAY: Duration = Duration::from_millis(5);
/// How long control datagrams of one thing may be under way before the next one is measured.
const QUIET: Duration = Duration::from_millis(100);
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
        round_trip_ms: round_trip(&network)?,
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

fn round_trip(network: &Network) -> Result<f64> {
    let [alpha, beta] = network.endpoints.as_slice() else {
        bail!("a pair needs two endpoints");
    };
    let address = beta.node.host.addresses().first();
    let ping = Ping {
        count: 20,
        interval: Duration::from_millis(2),
        ..Ping::once(*address.context("an endpoint without address")?)
    };
    let report = ping.run(alpha.namespace())?;
    let shortest = report.shortest().context("the underlay does not answer")?;
    Ok(milliseconds(shortest))
}

fn once(network: &mut Network, measured: &mut ColdStarts) -> Result<()> {
    let Network { endpoints, log, .. } = network;
    for endpoint in endpoints.iter_mut() {
        endpoint.node.stop()?;
        endpoint.node.start(log)?;
        endpoint.wait_until_registered()?;
    }
    sleep(QUIET);
    let [alpha, beta] = network.endpoints.as_slice() else {
        bail!("a pair needs two endpoints");
    };
    let position = network.log.position();
    let report = Ping::once(beta.eids[0]).run(alpha.namespace())?;
    match report.shortest() {
        Some(time) => measured.first_reply_ms.push(milliseconds(time)),
        None => measured.lost += 1,
    }
    sleep(QUIET);
    let events = network.log.since(position);
    let own = |name: &str| first(&events, alpha.name(), name);
    let caught = own("caught").context("the first packet was not caught: a warm start")?;
    if let Some(route) = own("route_installed") {
        measured
            .configure_ms
            .push(route.saturating_sub(caught) as f64 / 1e6);
    }
    Ok(())
}

/// When a daemon first said this, in nanoseconds.
fn first(events: &[LogEvent], daemon: &str, event: &str) -> Option<u64> {
    let said = |line: &&LogEvent| line.daemon == daemon && line.event == event;
    events.iter().find(said).map(|line| line.timestamp)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
