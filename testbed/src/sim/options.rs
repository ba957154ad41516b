//! What kind of run is wanted?

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

use super::generate::generate;
use super::sabotage::Sabotage;
use super::scenario::Scenario;

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FaultClass {
    /// Lost datagrams.
    Loss,
    /// Datagrams that arrive twice.
    Duplicate,
    /// Datagrams that overtake each other.
    Reorder,
    /// Datagrams that take long.
    Delay,
    /// Hosts that cannot reach each other.
    Partition,
    /// Hosts that are not heard.
    Cut,
    /// Agents that crash and come back.
    Crash,
    /// Agents that come back with an empty disk.
    Disk,
    /// Agents that are stopped in good order.
    Stop,
    /// Map servers that crash and come back.
    Server,
    /// Map servers that come back with a damaged or an empty disk.
    ServerDisk,
    /// Addresses that change.
    Move,
    /// Agents behind NATs, and NATs that restart.
    Nat,
    /// Wall clocks that are set.
    Clock,
    /// Data planes that refuse changes.
    Refuse,
    /// Data planes that are slow.
    Slow,
    /// Datagrams from people without a key.
    Attack,
    /// Port scans by local applications.
    Scan,
}

/// The classes of faults that a run may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultClasses(pub BTreeSet<FaultClass>);

impl FromStr for FaultClasses {
    type Err = String;

    /// Reads `all`, `none`, or names separated by commas, each of which a `-` in front takes away
    /// again.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut classes = BTreeSet::new();
        for word in text.split(',').map(str::trim) {
            match (word, word.strip_prefix('-')) {
                ("all", _) => classes.extend(FaultClass::value_variants()),
                ("none", _) => classes.clear(),
                (_, Some(name)) => {
                    classes.remove(&FaultClass::from_str(name, true)?);
                }
                (name, None) => {
                    classes.insert(FaultClass::from_str(name, true)?);
                }
            }
        }
        Ok(Self(classes))
    }
}

impl fmt::Display for FaultClasses {
    /// Writes what [`Self::from_str`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        if self.0.len() == FaultClass::value_variants().len() {
            return f.write_str("all");
        }
        let values = self.0.iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        f.write_str(&names.join(","))
    }
}

/// What kind of network a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Setting {
    /// Agents that reach each other, but for NATs among the faults.
    #[default]
    Plain,
    /// Proxies and their clients ([`Scenario::proxied`]): an operator moves clients, and proxies fail in half of the runs, in all
    /// that have other faults.
    Proxied,
    /// Agents behind NATs ([`Scenario::hidden`]): NATs forget and move, and relays fail, where there are other faults.
    Hidden,
}

impl Options {
    /// The run that `seed` stands for.
    #[must_use]
    pub fn scenario(&self, seed: u64) -> Scenario {
        let scenario = generate(seed, self);
        let troubled = !self.faults.0.is_empty();
        let scenario = match self.setting {
            Setting::Plain => scenario,
            Setting::Proxied => scenario.proxied(troubled || seed.is_multiple_of(2), true),
            Setting::Hidden => scenario.hidden(troubled),
        };
        match self.pauses {
            true => scenario.with_pauses(),
            false => scenario,
        }
    }
}

/// What kind of run is wanted. What is left open is chosen by the seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many agents.
    pub agents: Option<u32>,
    /// How many map servers.
    pub servers: Option<u32>,
    /// Length of the run.
    pub minutes: Option<f64>,
    /// What may go wrong.
    pub faults: FaultClasses,
    /// What kind of network it is.
    pub setting: Setting,
    /// Whether some flows pause for a long time.
    pub pauses: bool,
    /// What is broken on purpose.
    pub sabotage: Option<Sabotage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_listed_added_and_taken_away() {
        let parse = |text: &str| text.parse::<FaultClasses>().map(|classes| classes.0.len());
        let all = FaultClass::value_variants().len();
        assert_eq!(parse("all"), Ok(all));
        assert_eq!(parse("none"), Ok(0));
        assert_eq!(parse("loss,server-disk"), Ok(2));
        assert_eq!(parse("all,-nat,-clock"), Ok(all - 2));
        assert!(parse("lost").is_err());
    }

    #[test]
    fn what_is_written_can_be_read() {
        for text in ["all", "none", "loss,server-disk"] {
            let classes: FaultClasses = text.parse().unwrap();
            assert_eq!(classes.to_string(), text);
        }
    }
}
