//! What a list of migrations looks like.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::table;

/// What a server answers about migrations.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Report {
    pub(super) counts: Counts,
    #[serde(default)]
    pub(super) clients: Vec<Client>,
    #[serde(default)]
    drained: Vec<String>,
    #[serde(default)]
    relaying: BTreeMap<String, u64>,
}

/// How many clients have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Counts {
    queued: u64,
    armed: u64,
    switched: u64,
    confirmed: u64,
    pub(super) failed: u64,
}

/// How far one client has come.
#[derive(Debug, Deserialize)]
pub(super) struct Client {
    run: u64,
    client: String,
    prefixes: Vec<String>,
    from: String,
    to: Option<String>,
    state: String,
    took_ms: Option<u64>,
    move_ms: Option<u64>,
    gap_ms: Option<u64>,
    connections: Option<Connections>,
    step: Option<String>,
    why: Option<String>,
    remedy: Option<String>,
}

/// What became of connections whose addresses the source translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Connections {
    pub(super) moved: u64,
    pub(super) reset: u64,
}

impl Connections {
    /// Both in a few words.
    pub(super) fn words(self) -> String {
        let Self { moved, reset } = self;
        format!("{moved} moved, {reset} reset")
    }
}

impl Counts {
    /// How many clients there are.
    pub(super) const fn total(&self) -> u64 {
        self.queued + self.armed + self.switched + self.confirmed + self.failed
    }

    /// How many are on their way, or wait for it.
    pub(super) const fn under_way(&self) -> u64 {
        self.queued + self.armed + self.switched
    }

    /// All of them in a line.
    pub(super) fn line(&self) -> String {
        let Self {
            queued,
            armed,
            switched,
            confirmed,
            failed,
        } = self;
        format!(
            "queued {queued}, armed {armed}, switched {switched}, confirmed {confirmed}, failed {failed}"
        )
    }
}

impl Report {
    /// Reads an answer.
    ///
    /// # Errors
    /// It is not that of a server of this version.
    pub(super) fn read(answer: Value) -> Result<Self> {
        serde_json::from_value(answer).context("the server is of another version")
    }

    /// Which xTRs get no new clients.
    pub(super) fn drained(&self) -> String {
        match &*self.drained {
            [] => "drained: none".to_owned(),
            drained => format!("drained: {}", drained.join(", ")),
        }
    }

    /// Which xTRs that are drained still relay packets, and what to do about it.
    pub(super) fn relaying(&self) -> Vec<String> {
        let relaying = self.relaying.iter().map(|(relay, pairs)| {
            format!(
                "{relay} still relays the packets of {pairs} pairs that NATs keep apart, and no other relay serves both \
                 ends of each: start one, and drain {relay} again"
            )
        });
        relaying.collect()
    }

    /// A table of all clients.
    pub(super) fn table(&self) -> Vec<String> {
        let heading = [
            "RUN",
            "CLIENT",
            "PREFIXES",
            "FROM",
            "TO",
            "STATE",
            "GAP",
            "MOVE",
            "TOOK",
            "CONNECTIONS",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for it in &self.clients {
            let ms = |span: Option<u64>| span.map_or_else(String::new, |span| format!("{span} ms"));
            rows.push(vec![
                it.run.to_string(),
                it.client.clone(),
                it.prefixes.join(" "),
                it.from.clone(),
                it.to.clone().unwrap_or_else(|| "-".into()),
                it.state.clone(),
                ms(it.gap_ms),
                ms(it.move_ms),
                ms(it.took_ms),
                it.connections.map_or_else(String::new, Connections::words),
            ]);
        }
        table::lines(&rows, 2)
    }

    /// Who has failed, why, and what to do about it.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for it in &self.clients {
            if let (Some(step), Some(why)) = (&it.step, &it.why) {
                let failure = match &**step {
                    "plan" => "cannot move".to_owned(),
                    step => format!("failed to {step}"),
                };
                lines.push(format!("{}: {failure}: {why}", it.client));
                lines.extend(it.remedy.as_ref().map(|remedy| format!("    {remedy}")));
            }
        }
        lines
    }

    /// The longest time in which nothing came to a client that moved, if any could tell, the longest
    /// from telling a client to its having moved, and the longest in all, each in milliseconds, of
    /// those that are confirmed.
    pub(super) fn longest_ms(&self) -> (Option<u64>, u64, u64) {
        let confirmed = self.clients.iter().filter(|it| it.state == "confirmed");
        let longest = |span: fn(&Client) -> Option<u64>| confirmed.clone().filter_map(span).max();
        let (moves, all) = (longest(|it| it.move_ms), longest(|it| it.took_ms));
        let gap = longest(|it| it.gap_ms);
        (gap, moves.unwrap_or(0), all.unwrap_or(0))
    }
}

impl Report {
    /// What became of all connections, if somebody has said.
    pub(super) fn connections(&self) -> Option<Connections> {
        let mut said = self
            .clients
            .iter()
            .filter_map(|it| it.connections)
            .peekable();
        said.peek()?;
        Some(said.fold(Connections::default(), |all, one| Connections {
            moved: all.moved + one.moved,
            reset: all.reset + one.reset,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_names_everybody_who_failed_with_the_reason_and_what_to_do() {
        let entry = |client: &str, state: &str| {
            json!({
                "run": 3, "client": client, "prefixes": ["0.0.0.0/0", "::/0"], "from": "proxy-a",
                "to": "proxy-b", "state": state, "started_ms": 1, "ended_ms": 1201, "took_ms": 1200, "move_ms": 48,
                "gap_ms": 12, "connections": { "moved": 3, "reset": 1 },
            })
        };
        let mut failed = entry("host-2", "failed");
        failed["move_ms"] = json!(null);
        failed["gap_ms"] = json!(null);
        failed["connections"] = json!(null);
        failed["step"] = json!("switch");
        failed["why"] = json!("host-2 has not acknowledged");
        failed["remedy"] = json!("look at its log");
        let answer = json!({
            "counts": { "queued": 0, "armed": 0, "switched": 0, "confirmed": 1, "failed": 1 },
            "clients": [entry("host-1", "confirmed"), failed],
            "drained": ["proxy-a"],
            "relaying": { "proxy-a": 3 },
        });
        let report = Report::read(answer).unwrap();
        assert_eq!(
            report.table(),
            [
                "  RUN  CLIENT  PREFIXES        FROM     TO       STATE      GAP    MOVE   TOOK     CONNECTIONS",
                "  3    host-1  0.0.0.0/0 ::/0  proxy-a  proxy-b  confirmed  12 ms  48 ms  1200 ms  3 moved, 1 reset",
                "  3    host-2  0.0.0.0/0 ::/0  proxy-a  proxy-b  failed                   1200 ms",
            ]
        );
        assert_eq!(
            report.failures(),
            [
                "host-2: failed to switch: host-2 has not acknowledged",
                "    look at its log"
            ]
        );
        assert_eq!(
            report.counts.line(),
            "queued 0, armed 0, switched 0, confirmed 1, failed 1"
        );
        assert_eq!(
            (report.drained().as_str(), report.longest_ms()),
            ("drained: proxy-a", (Some(12), 48, 1_200))
        );
        let relaying = report.relaying();
        assert!(
            matches!(&relaying[..], [line] if line.starts_with("proxy-a still relays the packets of 3 pairs"))
        );
        let connections = report.connections().map(Connections::words);
        assert_eq!(connections.as_deref(), Some("3 moved, 1 reset"));
        assert_eq!((report.counts.total(), report.counts.under_way()), (2, 0));
    }
}
