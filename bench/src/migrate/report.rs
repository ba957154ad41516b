//! What was measured of migrations, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testbed::{Distribution, Failure, TcpReport, UdpReport};

use super::failover::{self, Failovers};
use crate::plan;

/// The name of the file in the output directory.
pub(crate) const FILE: &str = "migrate.json";

/// What was measured of all data planes.
pub(crate) type Report = plan::Report<Plane>;

/// What became of the packets of several streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    sent: u64,
    lost: u64,
    disordered: u64,
    gaps_ms: Vec<f64>,
}

impl Streams {
    /// Adds a stream with a packet after so much time each.
    pub(super) fn push(&mut self, report: &UdpReport, pace: Duration) {
        self.sent += u64::from(report.sent);
        self.lost += u64::try_from(report.lost.len()).unwrap_or(u64::MAX);
        self.disordered += u64::from(report.reordered + report.duplicates);
        self.gaps_ms.push(milliseconds(report.longest_gap(pace)));
    }
}

/// Everything that was measured of one data plane.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pace: Duration,
    loss_percent: u8,
    pub(super) still: Streams,
    pub(super) baseline: Streams,
    pub(super) one: Streams,
    pub(super) tcp: Vec<TcpReport>,
    /// Why single clients have not moved that were to.
    pub(super) failed: Vec<String>,
    pub(super) many_still: Vec<UdpReport>,
    pub(super) many: Vec<UdpReport>,
    pub(super) moves_ms: Vec<f64>,
    /// The longest gap in what came to each, as it has told the map server, in milliseconds.
    pub(super) told_ms: Vec<f64>,
    pub(super) failovers: Failovers,
}

impl Measured {
    /// Nothing yet, with a packet after so much time each, on links that lose so much.
    pub(super) fn at(pace: Duration, loss_percent: u8) -> Self {
        Self {
            pace,
            loss_percent,
            ..Self::default()
        }
    }
}

/// Streams, summed up.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Summary {
    /// Packets.
    sent: u64,
    lost: u64,
    /// Packets that arrived after a later one, or twice.
    disordered: u64,
    /// The longest time without an arrival in each stream.
    gap_ms: Distribution,
}

impl From<Streams> for Summary {
    fn from(streams: Streams) -> Self {
        Self {
            sent: streams.sent,
            lost: streams.lost,
            disordered: streams.disordered,
            gap_ms: Distribution::of(streams.gaps_ms),
        }
    }
}

/// What was measured of one data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plane {
    /// `embedded` or `kernel`.
    plane: String,
    /// From one host to another and back, without a tunnel.
    round_trip_ms: f64,
    /// Packets per second, of one client or of many together.
    rate: f64,
    /// What each link loses, each way; a path crosses two.
    loss_percent: u8,
    /// Nobody moves.
    still: Summary,
    /// One client moves.
    one: Summary,
    /// Why it has not moved, each time that it has not: what it has lost then counts all the same.
    failed: Vec<String>,
    /// Its connections that lived on, of how many.
    tcp_survived: [usize; 2],
    /// The longest time in which nothing came back on one.
    tcp_gap_ms: Distribution,
    /// How the tunnel of the baseline is moved.
    baseline_by: String,
    /// One client is moved by hand.
    baseline: Summary,
    /// How many clients move at once.
    clients: usize,
    /// From one packet of a client to its next.
    interval_ms: f64,
    /// Each of as many clients while nobody moves.
    many_still: Summary,
    /// Each client that moves at once.
    many: Summary,
    /// From telling a client to its having moved.
    move_ms: Distribution,
    /// The longest time in which nothing came to each that moves at once, as the map server reports it.
    told_gap_ms: Distribution,
    /// The longest time without an arrival while the proxy in use fails, by the kind of failure.
    failover_gap_ms: BTreeMap<String, Distribution>,
}

impl Plane {
    pub(super) fn new(
        plane: &str,
        baseline_by: &str,
        round_trip: Duration,
        measured: Measured,
    ) -> Self {
        let Measured {
            pace,
            loss_percent,
            still,
            baseline,
            one,
            tcp,
            failed,
            many_still,
            many,
            moves_ms,
            told_ms,
            failovers,
        } = measured;
        let clients = many.len();
        let interval = pace * u32::try_from(clients).unwrap_or(u32::MAX);
        let each = |reports: &[UdpReport]| {
            let mut each = Streams::default();
            for report in reports {
                each.push(report, interval);
            }
            Summary::from(each)
        };
        let survived = tcp.iter().filter(|report| report.survived).count();
        let gaps = tcp.iter().map(|report| milliseconds(report.longest_gap));
        Self {
            plane: plane.into(),
            round_trip_ms: milliseconds(round_trip),
            rate: 1.0 / pace.as_secs_f64().max(1e-9),
            loss_percent,
            still: still.into(),
            one: one.into(),
            failed,
            tcp_survived: [survived, tcp.len()],
            tcp_gap_ms: Distribution::of(gaps.collect()),
            baseline_by: baseline_by.into(),
            baseline: baseline.into(),
            clients,
            interval_ms: milliseconds(interval),
            many_still: each(&many_still),
            many: each(&many),
            move_ms: Distribution::of(moves_ms),
            told_gap_ms: Distribution::of(told_ms),
            failover_gap_ms: failovers.distributions(),
        }
    }

    /// The median of the longest time without an arrival in failures of one kind.
    fn failover_p50(&self, failure: Failure) -> f64 {
        let gaps = self.failover_gap_ms.get(failover::name(failure));
        gaps.map_or(f64::NAN, |gaps| gaps.p50)
    }

    /// Moves of one client that failed.
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
    const fn failures(&self) -> f64 {
        self.failed.len() as f64
    }

    /// Packets lost or out of order while clients move.
    fn lost(&self) -> f64 {
        missed([&self.one, &self.many])
    }

    /// The same in as many streams while nobody moves.
    fn lost_still(&self) -> f64 {
        missed([&self.still, &self.many_still])
    }
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^52")]
fn missed(streams: [&Summary; 2]) -> f64 {
    let each = streams.map(|it| it.lost + it.disordered);
    each.iter().sum::<u64>() as f64
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Report {
    pub(super) fn of(planes: Vec<Plane>) -> Self {
        let values: [plan::Value<'_, Plane>; 11] = [
            ("migrate_failed", Plane::failures),
            ("migrate_lost", Plane::lost),
            ("still_lost", Plane::lost_still),
            ("migrate_gap_p50_ms", |plane| plane.one.gap_ms.p50),
            ("migrate_gap_max_ms", |plane| plane.one.gap_ms.max),
            ("migrate_many_gap_max_ms", |plane| plane.many.gap_ms.max),
            ("still_gap_max_ms", |plane| plane.still.gap_ms.max),
            ("wgquick_gap_p50_ms", |plane| plane.baseline.gap_ms.p50),
            ("failover_killed_p50_ms", |plane| {
                plane.failover_p50(Failure::Killed)
            }),
            ("failover_link_cut_p50_ms", |plane| {
                plane.failover_p50(Failure::LinkCut)
            }),
            ("failover_not_forwarding_p50_ms", |plane| {
                plane.failover_p50(Failure::NotForwarding)
            }),
        ];
        Self::of_greatest(values, planes)
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} data plane, round trip {:.1} ms, {} % lost, {:.0} packets/s; longest time without arrival, ms:",
            self.plane, self.round_trip_ms, self.loss_percent, self.rate
        )?;
        writeln!(f, "{}", Distribution::head())?;
        let many = format!("{} clients move at once", self.clients);
        let rows = [
            ("nobody moves", &self.still.gap_ms),
            ("one client moves", &self.one.gap_ms),
            ("  its TCP connection", &self.tcp_gap_ms),
            (self.baseline_by.as_str(), &self.baseline.gap_ms),
            ("  as many, and nobody moves", &self.many_still.gap_ms),
            (many.as_str(), &self.many.gap_ms),
            ("  each, told to moved", &self.move_ms),
            ("  what came back, as they say", &self.told_gap_ms),
        ];
        for (title, gaps) in rows {
            writeln!(f, "{}", gaps.row(title, 1))?;
        }
        for (kind, gaps) in &self.failover_gap_ms {
            writeln!(f, "{}", gaps.row(&format!("its proxy fails: {kind}"), 1))?;
        }
        let rows = [
            ("nobody moves", &self.still),
            ("one client moves", &self.one),
            ("moved by hand", &self.baseline),
            ("many, and nobody moves", &self.many_still),
            ("many clients move", &self.many),
        ];
        for (title, it) in rows {
            let Summary {
                sent,
                lost,
                disordered,
                ..
            } = it;
            writeln!(
                f,
                "  {title:<36}{sent:>10} sent {lost:>8} lost {disordered:>8} out of order"
            )?;
        }
        for failed in &self.failed {
            writeln!(f, "  not moved: {failed}")?;
        }
        let [survived, all] = self.tcp_survived;
        let interval = self.interval_ms;
        writeln!(
            f,
            "  {survived} of {all} connections lived on; each of many sends every {interval:.1} ms"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_worst_data_plane_and_count_what_is_lost_by_one_and_by_many() {
        let streams = |gap: f64, lost| Streams {
            sent: 100,
            lost,
            disordered: 0,
            gaps_ms: vec![gap],
        };
        let plane = |name: &str, gap: f64, lost| {
            let mut failovers = Failovers::default();
            failovers.push(Failure::LinkCut, gap * 100.0);
            let measured = Measured {
                still: streams(1.0, 0),
                baseline: streams(500.0, 90),
                one: streams(gap, lost),
                failed: vec!["gamma is failed: it uses alpha".into(); lost.min(1) as usize],
                failovers,
                ..Measured::at(Duration::from_micros(100), 0)
            };
            Plane::new(
                name,
                "wg-quick down; wg-quick up",
                Duration::from_millis(20),
                measured,
            )
        };
        let report = Report::of(vec![plane("one", 2.0, 0), plane("other", 1.5, 3)]);
        assert_eq!(report.ratios["migrate_lost"], 3.0);
        assert_eq!(report.ratios["migrate_failed"], 1.0);
        assert_eq!(report.ratios["migrate_gap_max_ms"], 2.0);
        assert_eq!(report.ratios["wgquick_gap_p50_ms"], 500.0);
        assert_eq!(report.ratios["failover_link_cut_p50_ms"], 200.0);
        let text = report.to_string();
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
