//! First packets that took too long, and where their time went.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use testbed::Endpoint;

/// So many of the slowest are named.
const SLOWEST: usize = 5;

/// The slowest first packets, and those without a reply, slowest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Slowest(Vec<Slow>);

/// A first packet that took long.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slow {
    /// From where to where.
    pair: String,
    /// Until the reply, if there was one.
    ms: Option<f64>,
    /// How far it came when, as the agent tells it; of those that took too long.
    way: Option<String>,
}

impl Slowest {
    /// Takes in what became of one first packet.
    pub(crate) fn add(&mut self, pair: String, reply: Option<Duration>, way: Option<String>) {
        let ms = reply.map(|reply| reply.as_secs_f64() * 1e3);
        self.0.push(Slow { pair, ms, way });
        let time = |slow: &Slow| slow.ms.unwrap_or(f64::INFINITY);
        self.0.sort_by(|a, b| time(b).total_cmp(&time(a)));
        self.0.truncate(SLOWEST);
    }

    /// How long the slowest took, in ms; `None` if there was none or it got no reply.
    #[cfg(test)]
    pub(crate) fn longest_ms(&self) -> Option<f64> {
        self.0.first()?.ms
    }
}

impl fmt::Display for Slowest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Slow { pair, ms, way } in &self.0 {
            let ms = ms.map_or_else(|| "no reply".into(), |ms| format!("{ms:.1} ms"));
            writeln!(f, "  slow: {pair}, {ms}")?;
            for line in way.iter().flat_map(|way| way.lines()) {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// What the agent of `from` says of its first packet to `eid`, while it remembers.
///
/// # Errors
///
/// When the agent cannot be asked.
pub(crate) fn way(from: &Endpoint, eid: IpAddr) -> Result<String> {
    let said = from.node.ask(&["trace", &eid.to_string()])?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}
