//! What was measured of the map server, as JSON and as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use testbed::Distribution;

use super::load::{Kind, Latency, Outcome};
use super::rounds::RATES;

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// By name; what was not measured is not there.
    pub(super) ratios: BTreeMap<String, f64>,
    /// Of the large server.
    pub(super) mappings: u32,
    /// In the order in which they were taken.
    pub(super) samples: Vec<Sample>,
    /// What the load generator has seen, likewise.
    pub(super) loads: Vec<Load>,
}

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) metric: String,
    pub(super) subject: String,
    pub(super) value: f64,
}

/// Questions for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) subject: String,
    pub(super) mappings: u32,
    /// Per second; as many as were answered if absent.
    pub(super) rate: Option<u64>,
    pub(super) outcome: Outcome,
}

impl Report {
    pub(super) fn note(&mut self, metric: &str, subject: &str, value: f64) {
        self.samples.push(Sample {
            metric: metric.to_owned(),
            subject: subject.to_owned(),
            value,
        });
    }

    pub(super) fn load(
        &mut self,
        subject: &str,
        mappings: u32,
        rate: Option<u64>,
        outcome: Outcome,
    ) {
        self.loads.push(Load {
            subject: subject.to_owned(),
            mappings,
            rate,
            outcome,
        });
    }

    /// The figures of one kind.
    pub(super) fn of(&self, metric: &str, subject: &str) -> Distribution {
        let samples = self.samples.iter();
        let these = samples.filter(|it| it.metric == metric && it.subject == subject);
        Distribution::of(these.map(|it| it.value).collect())
    }

    /// The middle one of them; `None` without any.
    pub(super) fn median(&self, metric: &str, subject: &str) -> Option<f64> {
        let all = self.of(metric, subject);
        (!all.values.is_empty()).then_some(all.p50)
    }

    /// Answer times at one rate, by the number of mappings, in microseconds.
    pub(super) fn answer_times(
        &self,
        subject: &str,
        rate: u64,
        which: fn(&Latency) -> f64,
    ) -> BTreeMap<u32, Distribution> {
        let mut times: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for load in &self.loads {
            if load.subject == subject && load.rate == Some(rate) {
                let time = which(&load.outcome.latency_us);
                times.entry(load.mappings).or_default().push(time);
            }
        }
        let times = times.into_iter();
        times
            .map(|(mappings, values)| (mappings, Distribution::of(values)))
            .collect()
    }

    /// Sums up what was measured.
    pub(super) fn finish(mut self) -> Self {
        let all = [
            self.requests(),
            self.grpc(),
            self.registrations(),
            self.alone(),
            self.floods(),
            self.peers(),
        ];
        let measured = all.into_iter().flatten();
        let measured = measured.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        self.ratios = measured.filter(|(_, value)| value.is_finite()).collect();
        self
    }

    fn requests(&self) -> Vec<Ratio> {
        let request = |subject| self.median("request_us", subject);
        let growth = |which| ratio(self.calm("many", which), self.calm("few", which));
        let two_cores = ratio(request("few"), request("two_workers"));
        vec![
            ("requests_vs_echo", ratio(request("echo"), request("many"))),
            (
                "requests_1k_vs_echo",
                ratio(request("echo"), request("few")),
            ),
            // Each core by itself: the generator needs some of one as well.
            ("two_cores_vs_one", two_cores.map(|each| 2.0 * each)),
            // A pair counts as one request.
            (
                "pairs_vs_echo",
                ratio(request("echo"), self.median("pair_us", "met")),
            ),
            ("pairs_core_us", self.median("pairs_core_us", "met")),
            ("p50_10m_vs_1k", growth(|it| it.p50)),
            ("p99_10m_vs_1k", growth(|it| it.p99)),
        ]
    }

    /// An answer time at low load.
    fn calm(&self, subject: &str, which: fn(&Latency) -> f64) -> Option<f64> {
        let times = self.answer_times(subject, RATES[0], which);
        times.values().next().map(|first| first.p50)
    }

    fn grpc(&self) -> Vec<Ratio> {
        let request = |subject| self.median("request_us", subject);
        let calm = |which| ratio(self.calm("grpc", which), self.calm("many", which));
        vec![
            (
                "grpc_requests_ratio",
                ratio(request("grpc"), request("many")),
            ),
            ("grpc_vs_echo", ratio(request("echo"), request("grpc"))),
            ("grpc_p50_ratio", calm(|it| it.p50)),
            ("grpc_p99_ratio", calm(|it| it.p99)),
            (
                "grpc_requests_ratio_oor",
                ratio(request("grpc_many"), request("oor_many")),
            ),
        ]
    }

    fn registrations(&self) -> Vec<Ratio> {
        let register = |subject| self.median("register_us", subject);
        let p99 = |subject| self.median("asked_p99_us", subject);
        vec![
            (
                "register_vs_echo",
                ratio(register("echo"), register("changed")),
            ),
            (
                "refresh_vs_echo",
                ratio(register("echo"), register("refreshed")),
            ),
            // Of a mapping, not of a message.
            (
                "refresh_together_vs_echo",
                ratio(register("echo"), register("refreshed_together")),
            ),
            ("reregister_1m_s", self.median("reregister_s", "storm")),
            ("reregister_p99_ratio", ratio(p99("storm"), p99("calm"))),
        ]
    }

    /// Ratios without an echo server.
    fn alone(&self) -> Vec<Ratio> {
        let processing = |subject| self.median("processing_ns", subject);
        let bytes = |subject| self.median("bytes_per_mapping", subject);
        let left = |subject| self.median("left_of_growth", subject);
        let (few, many) = (processing("few"), processing("many"));
        vec![
            ("processing_10m_vs_1k", ratio(many, few)),
            ("processing_10m_ns", many),
            ("key_overhead", ratio(few, processing("few_keyless"))),
            ("bytes_per_mapping_v4", bytes("v4")),
            ("bytes_per_mapping_v6", bytes("v6")),
            ("left_of_growth_v4", left("v4")),
            ("left_of_growth_v6", left("v6")),
        ]
    }

    /// The worst of all kinds of floods.
    fn floods(&self) -> Vec<Ratio> {
        let worst = |metric| {
            let all = Kind::ALL.iter();
            let all = all.filter_map(|kind| self.median(metric, kind.name()));
            all.max_by(f64::total_cmp)
        };
        let past = self.median("flooded_p99_us", Kind::Past.name());
        vec![
            ("flood_p99_ratio", ratio(worst("flooded_p99_us"), past)),
            ("flood_lost", worst("flooded_lost")),
            ("flood_answered", worst("flood_answered")),
        ]
    }

    fn peers(&self) -> Vec<Ratio> {
        let request = |subject| self.median("request_us", subject);
        let bytes = |subject| self.median("bytes_per_mapping", subject);
        let registers = |subject| self.median("registered_per_s", subject);
        let (oor_many, oor_few) = (request("oor_many"), request("oor_few"));
        vec![
            ("oor_requests_ratio", ratio(oor_many, request("ours_many"))),
            ("oor_requests_ratio_1k", ratio(oor_few, request("ours_few"))),
            ("oor_vs_echo", ratio(request("echo_oor_many"), oor_many)),
            (
                "oor_registers_ratio",
                ratio(registers("ours"), registers("oor")),
            ),
            ("oor_memory_ratio", ratio(bytes("v4"), bytes("oor"))),
        ]
    }
}

/// A ratio by name, if it was measured.
type Ratio = (&'static str, Option<f64>);

fn ratio(above: Option<f64>, below: Option<f64>) -> Option<f64> {
    Some(above? / below?)
}

/// A quantile of answer times by name.
pub(super) type Quantile = (&'static str, fn(&Latency) -> f64);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "map server with {} mappings", self.mappings)?;
        writeln!(f, "{}", Distribution::head())?;
        let kinds = self.samples.iter();
        let kinds: BTreeSet<_> = kinds.map(|it| (&it.metric, &it.subject)).collect();
        for (metric, subject) in kinds {
            let all = self.of(metric, subject);
            writeln!(f, "{}", all.row(&format!("{metric} {subject}"), 2))?;
        }
        for rate in RATES {
            for subject in ["echo", "few", "many", "grpc"] {
                let whiches: [Quantile; 2] = [("p50", |it| it.p50), ("p99", |it| it.p99)];
                for (name, which) in whiches {
                    for all in self.answer_times(subject, rate, which).values() {
                        let title = format!("{name} us {subject} at {rate}/s");
                        writeln!(f, "{}", all.row(&title, 1))?;
                    }
                }
            }
        }
        for (name, value) in &self.ratios {
            writeln!(f, "  {name:<36}{value:>10.3}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_twice_the_time_of_the_echo_is_half_as_good() {
        let mut report = Report::default();
        for (subject, value) in [("echo", 4.0), ("many", 8.0), ("many", 7.0), ("many", 9.0)] {
            report.note("request_us", subject, value);
        }
        let report = report.finish();
        let ratios: Vec<_> = report.ratios.iter().collect();
        assert_eq!(ratios, [(&"requests_vs_echo".to_owned(), &0.5)]);
        assert!(report.to_string().lines().all(|line| line.len() <= 100));
    }
}
