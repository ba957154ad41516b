//! What was measured of moves, as JSON and as a table.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testbed::Distribution;

use crate::plan;

/// The name of the file in the output directory.
pub(crate) const FILE: &str = "handover.json";

/// What was measured of all data planes.
pub(crate) type Report = plan::Report<Plane>;

/// The longest time without an arrival in each move, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Gaps {
    pub(super) by_hand: Vec<f64>,
    pub(super) handover: Vec<f64>,
    pub(super) silent: Vec<f64>,
    pub(super) double_jump: Vec<f64>,
}

/// What was measured of one data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plane {
    /// `embedded` or `kernel`.
    plane: String,
    /// From one end to the other and back, without a tunnel.
    round_trip_ms: f64,
    /// One end moves, packets flow both ways, WireGuard is by itself.
    by_hand_ms: Distribution,
    /// The same with Lispwire.
    handover_ms: Distribution,
    /// One end moves that sends nothing.
    silent_ms: Distribution,
    /// Both ends move at the same instant.
    double_jump_ms: Distribution,
}

impl Plane {
    pub(super) fn new(plane: &str, round_trip: Duration, gaps: Gaps) -> Self {
        Self {
            plane: plane.into(),
            round_trip_ms: round_trip.as_secs_f64() * 1e3,
            by_hand_ms: Distribution::of(gaps.by_hand),
            handover_ms: Distribution::of(gaps.handover),
            silent_ms: Distribution::of(gaps.silent),
            double_jump_ms: Distribution::of(gaps.double_jump),
        }
    }

    /// A Map-Register on its way, a publication, and the packet that follows it: each half a round
    /// trip of the same path.
    fn floor_ms(&self) -> f64 {
        self.round_trip_ms * 1.5
    }
}

impl Report {
    pub(super) fn of(planes: Vec<Plane>) -> Self {
        let values: [plan::Value<'_, Plane>; 5] = [
            ("handover_vs_roaming", |plane| {
                plane.handover_ms.p50 / plane.by_hand_ms.p50
            }),
            ("handover_p50_ms", |plane| plane.handover_ms.p50),
            ("silent_handover_p50_ms", |plane| plane.silent_ms.p50),
            ("double_jump_p50_ms", |plane| plane.double_jump_ms.p50),
            ("double_jump_vs_floor", |plane| {
                plane.double_jump_ms.p50 / plane.floor_ms()
            }),
        ];
        Self::of_greatest(values, planes)
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} data plane, round trip {:.1} ms; longest time without an arrival, ms:",
            self.plane, self.round_trip_ms
        )?;
        writeln!(f, "{}", Distribution::head())?;
        let rows = [
            ("one end moves, WireGuard by itself", &self.by_hand_ms),
            ("one end moves", &self.handover_ms),
            ("one end moves that sends nothing", &self.silent_ms),
            ("both ends move at once", &self.double_jump_ms),
        ];
        for (title, gaps) in rows {
            writeln!(f, "{}", gaps.row(title, 1))?;
        }
        let moves = self.handover_ms.values.len();
        writeln!(
            f,
            "  {moves} moves of each kind; floor {:.1} ms",
            self.floor_ms()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_worst_data_plane() {
        let plane = |name: &str, ours: f64| {
            let gaps = Gaps {
                by_hand: vec![20.0],
                handover: vec![ours],
                silent: vec![60.0],
                double_jump: vec![ours * 3.0],
            };
            Plane::new(name, Duration::from_millis(20), gaps)
        };
        let report = Report::of(vec![plane("one", 22.0), plane("other", 20.0)]);
        assert_eq!(report.ratios["handover_vs_roaming"], 1.1);
        assert_eq!(report.ratios["double_jump_p50_ms"], 66.0);
        assert_eq!(report.ratios["double_jump_vs_floor"], 2.2);
        let text = report.to_string();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
