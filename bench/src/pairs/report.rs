//! What was measured of pairs, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testbed::Distribution;

use crate::FLOOR_ROUND_TRIPS;
use crate::plan::write_report;
use crate::slow::Slowest;

/// The name of the file in the output directory.
pub(crate) const FILE: &str = "pairs.json";
/// What the ends themselves may add to the floor, in milliseconds.
const ALLOWANCE_MS: f64 = 50.0;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// By name, the worst of all series.
    pub(crate) ratios: BTreeMap<String, f64>,
    /// One per data plane and loss.
    pub(crate) series: Vec<Series>,
}

/// Pairs on one data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// `embedded` or `kernel`.
    plane: String,
    /// Share of control datagrams that were lost, each way, in percent.
    loss_percent: u8,
    /// From one end to the other and back, without a tunnel.
    round_trip_ms: f64,
    /// From a first packet to its reply.
    first_reply_ms: Distribution,
    /// Pairs that took more than four round trips and 50 ms.
    over_4_round_trips_and_50_ms: usize,
    /// Pairs that took more than a second.
    over_1s: usize,
    /// Pairs of which a first packet got no reply.
    lost: usize,
    /// The slowest, and those without a reply.
    slowest: Slowest,
}

impl Series {
    pub(super) fn new(plane: &str, loss_percent: u8, round_trip: Duration) -> Self {
        Self {
            plane: plane.into(),
            loss_percent,
            round_trip_ms: round_trip.as_secs_f64() * 1e3,
            first_reply_ms: Distribution::default(),
            over_4_round_trips_and_50_ms: 0,
            over_1s: 0,
            lost: 0,
            slowest: Slowest::default(),
        }
    }

    fn floor_ms(&self) -> f64 {
        self.round_trip_ms * FLOOR_ROUND_TRIPS
    }

    /// Whether a pair took more than four round trips and 50 ms.
    pub(super) fn is_slow(&self, reply: Duration) -> bool {
        reply.as_secs_f64() * 1e3 > self.floor_ms() + ALLOWANCE_MS
    }

    /// Takes in what became of one pair.
    pub(super) fn add(&mut self, pair: String, reply: Option<Duration>, way: Option<String>) {
        let ms = reply.map(|reply| reply.as_secs_f64() * 1e3);
        self.over_4_round_trips_and_50_ms +=
            usize::from(reply.is_some_and(|reply| self.is_slow(reply)));
        self.slowest.add(pair, reply, way);
        let Some(ms) = ms else {
            self.lost += 1;
            return;
        };
        self.over_1s += usize::from(ms > 1_000.0);
        self.first_reply_ms.values.push(ms);
    }
}

impl Report {
    /// Sums up the series.
    pub(super) fn of(mut series: Vec<Series>) -> Self {
        for one in &mut series {
            let values = std::mem::take(&mut one.first_reply_ms.values);
            one.first_reply_ms = Distribution::of(values);
        }
        let worst = |lossy: bool, value: &dyn Fn(&Series) -> f64| {
            let these = series.iter().filter(|one| lossy == (one.loss_percent > 0));
            these.map(value).fold(0.0, f64::max)
        };
        let mut ratios = BTreeMap::new();
        for (lossy, suffix) in [(false, ""), (true, "_lossy")] {
            if !series.iter().any(|one| lossy == (one.loss_percent > 0)) {
                continue;
            }
            let mut put = |name: &str, value: &dyn Fn(&Series) -> f64| {
                ratios.insert(format!("{name}{suffix}"), worst(lossy, value));
            };
            put("p50_vs_floor", &|one| {
                one.first_reply_ms.p50 / one.floor_ms()
            });
            put("p99_vs_floor", &|one| {
                one.first_reply_ms.p99 / one.floor_ms()
            });
            put("over_4_round_trips_and_50_ms", &|one| {
                one.over_4_round_trips_and_50_ms as f64
            });
            put("over_1s", &|one| one.over_1s as f64);
            put("lost", &|one| one.lost as f64);
        }
        Self { ratios, series }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_report(f, &self.series, &self.ratios)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} data plane, {} % lost on the way to the map server, {} pairs, round trip {:.1} ms",
            self.plane,
            self.loss_percent,
            self.first_reply_ms.values.len() + self.lost,
            self.round_trip_ms
        )?;
        writeln!(f, "{}", Distribution::head())?;
        let times = &self.first_reply_ms;
        writeln!(f, "{}", times.row("first packet to first reply, ms", 1))?;
        let multiples = times.values.iter().map(|ms| ms / self.round_trip_ms);
        let multiples = Distribution::of(multiples.collect());
        writeln!(f, "{}", multiples.row("as multiples of the round trip", 2))?;
        let (late, over, lost) = (self.over_4_round_trips_and_50_ms, self.over_1s, self.lost);
        writeln!(
            f,
            "  above 4 round trips + 50 ms: {late}; above 1 s: {over}; without a reply: {lost}"
        )?;
        write!(f, "{}", self.slowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_or_lost_is_counted_apart_for_lossy_paths() {
        let mut clean = Series::new("any", 0, Duration::from_millis(20));
        let mut lossy = Series::new("any", 1, Duration::from_millis(20));
        let add = |series: &mut Series, ms: Option<u64>| {
            series.add("a to b".into(), ms.map(Duration::from_millis), None);
        };
        add(&mut clean, Some(120));
        for ms in [131, 1_001] {
            add(&mut lossy, Some(ms));
        }
        add(&mut lossy, None);
        let report = Report::of(vec![clean, lossy]);
        let ratio = |name: &str| report.ratios[name];
        assert_eq!(ratio("over_4_round_trips_and_50_ms"), 0.0);
        assert_eq!(ratio("over_4_round_trips_and_50_ms_lossy"), 2.0);
        assert_eq!((ratio("over_1s_lossy"), ratio("lost_lossy")), (1.0, 1.0));
        assert_eq!(ratio("p50_vs_floor"), 1.5);
        assert_eq!(report.series[1].slowest.longest_ms(), None);
        let long = report.to_string().lines().any(|line| line.len() > 100);
        assert!(!long);
    }
}
