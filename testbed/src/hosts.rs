//! `testbed hosts`: bare hosts around a switch, without daemons, to try things in by hand.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::clock::sleep;
use crate::{LinkParams, Share, Testbed, Topology, Underlay};

/// Makes hosts around a switch and keeps them until Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Number of hosts
    #[arg(default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=200))]
    hosts: u8,
    /// Delay of every link, one way
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// Packets in a million that every link loses
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    loss_per_million: u32,
}

/// Runs `testbed hosts`; a signal ends it.
///
/// # Errors
///
/// When not root, or when the system is out of something.
pub fn run(args: &Args) -> Result<ExitCode> {
    let testbed = Testbed::new(1)?;
    let mut topology = Topology::new(&testbed, Underlay::Dual)?;
    let params = LinkParams::delayed(Duration::from_millis(args.delay_ms))
        .with_loss(Share::per_million(args.loss_per_million));
    let mut hosts = Vec::new();
    let mut out = io::stdout();
    for number in 1..=args.hosts {
        let host = topology.add_host(&format!("host{number}"), params)?;
        let addresses: Vec<_> = host.addresses().iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "ip netns exec {} bash    # {}",
            host.namespace.name(),
            addresses.join(" ")
        )?;
        hosts.push(host);
    }
    writeln!(out, "Ctrl-C removes them.")?;
    loop {
        // The thread that watches signals clears everything up and ends the process.
        sleep(Duration::from_secs(3_600));
    }
}
