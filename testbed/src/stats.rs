//! How are measurements distributed?

use serde::{Deserialize, Serialize};

/// A distribution: what every so-many-th value does not exceed, and all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub p50: f64,
    /// Nine of ten do not exceed it.
    pub p90: f64,
    /// 99 of 100 do not exceed it.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// All of them, sorted.
    pub values: Vec<f64>,
}

impl Distribution {
    /// Sorts `values` and looks at them.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        // Rounded up: the value that so many do not exceed.
        let at = |percent: usize| values.get((last * percent).div_ceil(100)).copied();
        let [min, p50, p90, p99, max] = [0, 50, 90, 99, 100].map(|p| at(p).unwrap_or_default());
        Self {
            min,
            p50,
            p90,
            p99,
            max,
            values,
        }
    }

    /// A row of a table, with so many digits after the point, under [`Self::head`].
    #[must_use]
    pub fn row(&self, title: &str, digits: usize) -> String {
        let cells = [self.min, self.p50, self.p90, self.p99, self.max];
        let cells = cells.map(|cell| format!("{cell:>10.digits$}"));
        format!("  {title:<36}{}", cells.concat())
    }

    /// The head over [`Self::row`]s.
    #[must_use]
    pub fn head() -> String {
        let names = ["min", "median", "p90", "p99", "max"].map(|name| format!("{name:>10}"));
        format!("  {:<36}{}", "", names.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let one = Distribution::of((1..=11).rev().map(f64::from).collect());
        assert_eq!([one.min, one.p50, one.p90, one.max], [1.0, 6.0, 10.0, 11.0]);
        assert_eq!(Distribution::of(Vec::new()).max, 0.0);
        assert!(one.row("anything", 2).len() <= 100);
    }
}
