//! The network on show, and what is done with it.

use std::io::Write;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::story::{Cast, Story};
use crate::Ping;
use crate::clock::monotonic_ns;
use crate::link::LinkKind;
use crate::network::Network;

/// The network and what has been measured of it.
pub(super) struct Stage {
    pub(super) network: Network,
    /// Time from one endpoint to another and back, without any tunnel.
    pub(super) round_trip: Duration,
    /// The names behind keys and addresses.
    cast: Cast,
}

impl Stage {
    /// Shows the network before anything runs in it.
    pub(super) fn set(network: Network, delay: Duration, out: &mut impl Write) -> Result<Self> {
        let cast = Cast::of(&network);
        let mut stage = Self {
            network,
            round_trip: Duration::ZERO,
            cast,
        };
        let network = &stage.network;
        writeln!(
            out,
            "One map server and {} endpoints around a switch",
            network.endpoints.len()
        )?;
        for node in network.nodes() {
            let eids = network.endpoint(node.name()).map_or_else(
                || "knows who may register what".into(),
                |endpoint| format!("EIDs {} {}", endpoint.eids[0], endpoint.eids[1]),
            );
            let addresses: Vec<_> = node
                .host
                .addresses()
                .iter()
                .map(ToString::to_string)
                .collect();
            let namespace = node.host.namespace.name();
            writeln!(
                out,
                "  {:<10}{:<24}{eids:<28}{namespace}",
                node.name(),
                addresses.join(" ")
            )?;
        }
        let round_trip = stage.network.round_trip()?;
        let [alpha, _] = stage.network.pair()?;
        let kind = match alpha.node.host.link.kind() {
            LinkKind::Plain => "veth",
            LinkKind::Netem => "veth and netem",
            LinkKind::Relay => "the testbed's own relay: this kernel has no netem",
        };
        writeln!(out, "  links: {} ms one way ({kind})", delay.as_millis())?;
        writeln!(
            out,
            "  alpha to beta and back over two links: {:.1} ms\n",
            ms(round_trip)
        )?;
        stage.round_trip = round_trip;
        Ok(stage)
    }

    /// Starts all daemons; all are registered afterwards.
    pub(super) fn start_daemons(&mut self, out: &mut impl Write) -> Result<()> {
        let position = self.network.log.position();
        let start = monotonic_ns();
        self.network.start_all()?;
        let took = Duration::from_nanos(monotonic_ns().saturating_sub(start));
        let events = self.network.log.since(position);
        let started = events.iter().find(|event| event.event == "started");
        let backend = started.map_or("", |event| event.text("backend"));
        let words = if backend == "embedded" {
            "embedded in the daemons (this kernel has none, or the embedded one was asked for)"
        } else {
            "the kernel's"
        };
        writeln!(out, "WireGuard: {words}")?;
        for endpoint in &self.network.endpoints {
            let registered: Vec<_> = events
                .iter()
                .filter(|event| event.is(endpoint.name(), "registered"))
                .map(|event| event.text("eid"))
                .collect();
            writeln!(
                out,
                "  {:<10}registered {}",
                endpoint.name(),
                registered.join(" and ")
            )?;
        }
        writeln!(
            out,
            "  all started and registered after {:.0} ms\n",
            ms(took)
        )?;
        Ok(())
    }

    /// Shows the peers of every endpoint.
    pub(super) fn show_peers(&self, title: &str, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{title}")?;
        for endpoint in &self.network.endpoints {
            let peers = endpoint.report_peers(&self.network.log)?;
            write!(out, "  {:<10}{}", endpoint.name(), peers.len())?;
            if peers.is_empty() {
                write!(out, "  holds no key of any other endpoint")?;
            }
            for peer in &peers {
                let name = self.cast.name_of_key(&peer.key);
                let handshake = peer.since_handshake.map_or_else(
                    || "no handshake".into(),
                    |since| format!("handshake {:.1} s ago", since.as_secs_f64()),
                );
                let endpoint = peer.endpoint.as_deref().unwrap_or("nowhere");
                write!(
                    out,
                    "  {name} at {endpoint}, {}, {handshake}",
                    peer.eids.join(" ")
                )?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
        Ok(())
    }

    /// Pings beta from alpha and tells what happens: 0 by IPv4, 1 by IPv6.
    pub(super) fn first_packet(&self, family: usize, out: &mut (impl Write + Send)) -> Result<()> {
        let [alpha, beta] = self.network.pair()?;
        let eid = *beta.eids.get(family).context("two families")?;
        writeln!(out, "alpha pings beta at {eid}")?;
        let story = Story::begin(&self.network.log, &self.cast, alpha.name(), eid);
        let first = thread::scope(|scope| {
            let teller = scope.spawn(|| story.tell(out));
            let first = Ping::once(eid)
                .run_announced(alpha.namespace(), |now| story.start_clock(now))
                .map(|report| report.shortest());
            if let Ok(Some(round_trip)) = first {
                story.reply(round_trip, self.round_trip);
            }
            story.end();
            let told = teller
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            told.context("cannot write")?;
            anyhow::Ok(first?)
        })?;
        first.with_context(|| format!("{} does not answer", eid))?;
        let ping = Ping {
            count: 5,
            interval: Duration::from_millis(20),
            ..Ping::once(eid)
        };
        let report = ping.run(alpha.namespace())?;
        let shortest = report.shortest().unwrap_or_default();
        let answered = report.replies.len();
        ensure!(
            answered == 5,
            "{answered} of 5 echo requests to {eid} were answered"
        );
        writeln!(
            out,
            "  then 5 of 5 echo requests answered, the fastest in {:.1} ms\n",
            ms(shortest)
        )?;
        Ok(())
    }

    /// Makes sure that only alpha and beta know each other.
    pub(super) fn check_strangers(&self) -> Result<()> {
        for (number, endpoint) in self.network.endpoints.iter().enumerate() {
            let expected = usize::from(number < 2);
            let peers = endpoint.report_peers(&self.network.log)?;
            ensure!(
                peers.len() == expected,
                "{} has {} peers, not {expected}",
                endpoint.name(),
                peers.len()
            );
        }
        Ok(())
    }
}

/// Milliseconds, for people.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
