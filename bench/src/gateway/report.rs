//! What was measured of a gateway, as JSON and as a table.

use std::fmt;

use serde::{Deserialize, Serialize};
use testbed::Distribution;

use crate::plan;
use crate::slow::Slowest;

/// The name of the file in the output directory.
pub(crate) const FILE: &str = "gateway.json";

/// What was measured of all data planes.
pub(crate) type Report = plan::Report<Plane>;

/// What was measured of one data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plane {
    /// `embedded` or `kernel`.
    pub(super) name: String,
    /// From one end to the other and back, without a tunnel.
    pub(super) round_trip_ms: f64,
    /// From a first packet to its reply, of all peers.
    pub(super) first_reply_ms: Distribution,
    /// Destinations from which nothing came back.
    pub(super) lost_first_packets: usize,
    /// Destinations at which packets were missing, came twice, or in another order.
    pub(super) not_in_order: usize,
    /// Those that took longest, if it was more than a second.
    pub(super) slowest: Slowest,
    /// With so many peers.
    pub(super) sizes: Vec<Size>,
    /// Scans, from one socket and from many.
    pub(super) storms: Vec<Storm>,
}

/// The agent, with so many peers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Size {
    /// Peers.
    pub(super) peers: u32,
    /// The last that were added, of which the next two tell.
    pub(super) added: usize,
    /// From a first packet to its reply, the middle one.
    pub(super) first_reply_ms: f64,
    /// Time of a core for each, everything that the agent did meanwhile included.
    pub(super) cpu_ms_each: f64,
    /// Memory of the agent's process.
    pub(super) resident_mib: f64,
    /// Cores that it uses while nothing happens.
    pub(super) idle_cores: f64,
}

/// A scan of a /16 in which nobody is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Storm {
    /// Sockets it came from.
    pub(super) sockets: usize,
    /// Packets to nobody.
    pub(super) packets_per_s: f64,
    /// Datagrams to the map server in the worst second.
    pub(super) control_datagrams_per_s_max: u64,
    /// Cores that the agent used.
    pub(super) cores: f64,
    /// Memory of the agent's process, before and after.
    pub(super) resident_mib: [f64; 2],
    /// From first packets, to those who are there, to their replies.
    pub(super) first_replies_ms: Vec<f64>,
    /// Those among them from whom nothing came back.
    pub(super) lost_first_packets: usize,
}

impl Plane {
    /// The cost of one more peer among the most, over that among the fewest.
    fn growth(&self, cost: impl Fn(&Size) -> f64) -> f64 {
        let [few, many] = [self.sizes.first(), self.sizes.last()].map(|size| size.map(&cost));
        few.zip(many).map_or(1.0, |(few, many)| many / few)
    }
}

impl Report {
    /// Sums up the data planes.
    pub(super) fn of(planes: Vec<Plane>) -> Self {
        let worst = |value: &dyn Fn(&Plane) -> f64| planes.iter().map(value).fold(0.0, f64::max);
        let storm = |value: fn(&Storm) -> f64| {
            worst(&|plane| plane.storms.iter().map(value).fold(0.0, f64::max))
        };
        let slowest = |storm: &Storm| storm.first_replies_ms.iter().copied().fold(0.0, f64::max);
        let ratios = [
            (
                "install_cpu_most_vs_fewest",
                worst(&|plane| plane.growth(|size| size.cpu_ms_each)),
            ),
            (
                "first_reply_most_vs_fewest",
                worst(&|plane| plane.growth(|size| size.first_reply_ms)),
            ),
            (
                "lost_first_packets",
                worst(&|plane| plane.lost_first_packets as f64),
            ),
            ("not_in_order", worst(&|plane| plane.not_in_order as f64)),
            (
                "storm_control_datagrams_per_s",
                storm(|storm| storm.control_datagrams_per_s_max as f64),
            ),
            ("storm_cores", storm(|storm| storm.cores)),
            ("storm_first_reply_ms_max", storm(slowest)),
            (
                "storm_lost_first_packets",
                storm(|storm| storm.lost_first_packets as f64),
            ),
        ];
        Self::new(ratios, planes)
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            round_trip_ms,
            ..
        } = self;
        writeln!(f, "{name} data plane, round trip {round_trip_ms:.1} ms")?;
        writeln!(f, "{}", Distribution::head())?;
        let times = self
            .first_reply_ms
            .row("first packet to first reply, ms", 1);
        writeln!(f, "{times}")?;
        write!(f, "{}", self.slowest)?;
        writeln!(
            f,
            "  {:>8}{:>16}{:>16}{:>14}{:>12}",
            "peers", "first reply, ms", "CPU each, ms", "memory, MiB", "idle, cores"
        )?;
        for size in &self.sizes {
            writeln!(
                f,
                "  {:>8}{:>16.1}{:>16.2}{:>14.1}{:>12.3}",
                size.peers,
                size.first_reply_ms,
                size.cpu_ms_each,
                size.resident_mib,
                size.idle_cores
            )?;
        }
        self.storms
            .iter()
            .try_for_each(|storm| write!(f, "{storm}"))
    }
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  scan from {} sockets, {:.0} packets/s: {} control datagrams in the worst second,",
            self.sockets, self.packets_per_s, self.control_datagrams_per_s_max
        )?;
        let [before, after] = self.resident_mib;
        writeln!(
            f,
            "    {:.2} cores, {before:.1} MiB before and {after:.1} after,",
            self.cores
        )?;
        let replies = Distribution::of(self.first_replies_ms.clone());
        writeln!(
            f,
            "    {} first packets to real peers: {} lost, replies after {:.1} ms, at most {:.1} ms",
            replies.values.len() + self.lost_first_packets,
            self.lost_first_packets,
            replies.p50,
            replies.max
        )
    }
}
