//! What was measured, as JSON and as a table.

use std::fmt;

use serde::{Deserialize, Serialize};

use testbed::Distribution;

use crate::plan;

/// The name of the file in the output directory.
pub(crate) const FILE: &str = "establish.json";

/// What was measured of all data planes.
pub(crate) type Report = plan::Report<Plane>;

/// What was measured of one data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plane {
    /// `embedded` or `kernel`.
    pub(crate) name: String,
    /// From one end to the other and back, without a tunnel.
    pub(crate) round_trip_ms: f64,
    /// The least that the path allows for a first packet and its reply.
    pub(crate) floor_ms: f64,
    /// From a first packet to its reply (figure 5 of the paper).
    pub(crate) first_reply_ms: Distribution,
    /// From the caught packet to the finished peer and route (figure 7 of the paper).
    pub(crate) request_and_configure_ms: Distribution,
    /// First packets that took more than a second.
    pub(crate) over_1s: usize,
    /// First packets that got no reply.
    pub(crate) lost_first_packets: usize,
    /// One TCP stream.
    pub(crate) throughput: Throughput,
}

/// What one TCP stream carries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Throughput {
    /// Through a tunnel that the agents made, in Mbit/s.
    pub(crate) lispwire_mbit_s: Vec<f64>,
    /// Through one configured by hand, in turns with the other.
    pub(crate) bare_mbit_s: Vec<f64>,
}

impl Throughput {
    /// Ratio of the medians.
    fn ratio(&self) -> f64 {
        let [ours, bare] = [&self.lispwire_mbit_s, &self.bare_mbit_s];
        Distribution::of(ours.clone()).p50 / Distribution::of(bare.clone()).p50.max(1e-9)
    }
}

impl Report {
    /// Sums up the data planes.
    pub(crate) fn of(planes: Vec<Plane>) -> Self {
        let worst = |value: fn(&Plane) -> f64| planes.iter().map(value).fold(0.0, f64::max);
        let least = |value: fn(&Plane) -> f64| {
            let values = planes.iter().map(value);
            values.fold(f64::INFINITY, f64::min)
        };
        let ratios = [
            (
                "establish_p50_vs_floor",
                worst(|plane| plane.first_reply_ms.p50 / plane.floor_ms),
            ),
            (
                "establish_p99_vs_floor",
                worst(|plane| plane.first_reply_ms.p99 / plane.floor_ms),
            ),
            ("over_1s", worst(|plane| plane.over_1s as f64)),
            (
                "lost_first_packets",
                worst(|plane| plane.lost_first_packets as f64),
            ),
            (
                "throughput_vs_bare",
                least(|plane| plane.throughput.ratio()),
            ),
        ];
        Self::new(ratios, planes)
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} data plane, {} cold starts, round trip {:.1} ms, floor {:.1} ms",
            self.name,
            self.first_reply_ms.values.len(),
            self.round_trip_ms,
            self.floor_ms
        )?;
        writeln!(f, "{}", Distribution::head())?;
        let times = &self.first_reply_ms;
        writeln!(f, "{}", times.row("first packet to first reply, ms", 1))?;
        let multiples = times.values.iter().map(|ms| ms / self.round_trip_ms);
        let multiples = Distribution::of(multiples.collect());
        writeln!(f, "{}", multiples.row("as multiples of the round trip", 2))?;
        let configure = &self.request_and_configure_ms;
        writeln!(f, "{}", configure.row("caught to peer and route, ms", 1))?;
        let Throughput {
            lispwire_mbit_s,
            bare_mbit_s,
        } = &self.throughput;
        for (title, values) in [
            ("one TCP stream, Mbit/s", lispwire_mbit_s),
            ("configured by hand, Mbit/s", bare_mbit_s),
        ] {
            writeln!(f, "{}", Distribution::of(values.clone()).row(title, 0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_data_plane_counts() {
        let plane = |ms: f64, ours: f64| Plane {
            name: "any".into(),
            round_trip_ms: 20.0,
            floor_ms: 80.0,
            first_reply_ms: Distribution::of(vec![ms]),
            request_and_configure_ms: Distribution::default(),
            over_1s: 0,
            lost_first_packets: 0,
            throughput: Throughput {
                lispwire_mbit_s: vec![ours],
                bare_mbit_s: vec![100.0],
            },
        };
        let report = Report::of(vec![plane(160.0, 99.0), plane(80.0, 98.0)]);
        assert_eq!(report.ratios["establish_p50_vs_floor"], 2.0);
        assert_eq!(report.ratios["throughput_vs_bare"], 0.98);
        let long = report.to_string().lines().any(|line| line.len() > 100);
        assert!(!long);
    }
}
