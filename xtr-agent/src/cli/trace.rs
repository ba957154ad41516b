//! `xtr-agent trace EID`: how far the first packet to a destination has come.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use command_line::say;
use serde::Deserialize;
use xtr_agent::shell::Request;

use super::table::{milliseconds, span};
use super::{Target, ask_running};

/// What an agent answers.
#[derive(Deserialize)]
struct Trace {
    age_ms: u64,
    requests: u32,
    mapping: Option<String>,
    key: Option<String>,
    stages: Vec<Reached>,
    failed: Option<Failure>,
}

#[derive(Deserialize)]
struct Reached {
    stage: String,
    after_us: u64,
}

#[derive(Deserialize)]
struct Failure {
    stage: String,
    reason: String,
    after_us: u64,
}

/// The stages in order, with what each says.
const STAGES: [(&str, &str, &str); 7] = [
    (
        "caught",
        "caught",
        "the first packet left the host's routing",
    ),
    ("asked", "asked", "a Map-Request went to the map server"),
    ("answered", "answered", "a Map-Reply came back"),
    (
        "far_end_ready",
        "far end ready",
        "the answer implies it; with reply_after = \"send\", that it was told",
    ),
    ("installed", "installed", "the data plane has the peer"),
    ("handshake", "handshake", "WireGuard has a session"),
    (
        "first_reply",
        "first reply",
        "bytes came back from the far end",
    ),
];

/// Runs the command; whether the packet has not failed.
///
/// # Errors
/// No agent runs, or it knows of no packet to `eid`.
pub(crate) fn run(target: &Target, eid: IpAddr, json: bool) -> Result<bool> {
    let answer = ask_running(target, &Request::Trace { eid })?;
    let failed = |trace: &Trace| trace.failed.is_some();
    let traces: Vec<Trace> =
        serde_json::from_value(answer.clone()).context("the agent is of another version")?;
    if traces.is_empty() {
        bail!(
            "no packet to {eid} was caught lately; send one, for instance with `ping -c 1 {eid}`"
        );
    }
    if json {
        say(&answer.to_string());
    } else {
        for trace in &traces {
            lines(eid, trace).iter().for_each(|line| say(line));
        }
    }
    Ok(!traces.iter().any(failed))
}

fn lines(eid: IpAddr, trace: &Trace) -> Vec<String> {
    let mapping = trace.mapping.as_deref().unwrap_or("no mapping yet");
    let key = trace.key.as_deref().unwrap_or("no peer yet");
    let mut lines = vec![
        format!("{eid}: first packet caught {} ago", span(trace.age_ms)),
        format!("  {mapping}, peer {key}, {} Map-Request(s)", trace.requests),
    ];
    for (name, title, meaning) in STAGES {
        let reached = trace.stages.iter().find(|reached| reached.stage == name);
        let failure = trace.failed.as_ref().filter(|failed| failed.stage == name);
        let (time, note) = match (reached, failure) {
            (Some(reached), _) => (milliseconds(reached.after_us), meaning.to_owned()),
            (None, Some(failed)) => (
                milliseconds(failed.after_us),
                format!("FAILED: {}", failed.reason.replace('_', " ")),
            ),
            (None, None) => ("-".to_owned(), String::new()),
        };
        let line = format!("  {title:<14} {time:>10}  {note}");
        lines.push(line.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_its_line_and_the_failed_one_its_reason() {
        let trace = Trace {
            age_ms: 3_200,
            requests: 2,
            mapping: None,
            key: None,
            stages: vec![
                Reached {
                    stage: "caught".into(),
                    after_us: 0,
                },
                Reached {
                    stage: "asked".into(),
                    after_us: 80,
                },
            ],
            failed: Some(Failure {
                stage: "answered".into(),
                reason: "no_answer".into(),
                after_us: 3_000_000,
            }),
        };
        let lines = lines("10.0.0.2".parse().unwrap(), &trace);
        assert_eq!(lines.len(), 2 + STAGES.len());
        let widest = STAGES.iter().map(|(.., meaning)| 29 + meaning.len()).max();
        assert!(widest.unwrap() <= super::super::table::WIDTH);
        assert!(
            lines[3].starts_with("  asked             0.08 ms"),
            "{}",
            lines[3]
        );
        assert!(
            lines[4].ends_with("3000 ms  FAILED: no answer"),
            "{}",
            lines[4]
        );
        assert!(lines[8].ends_with('-'), "{}", lines[8]);
        let ready = STAGES.iter().find(|(name, ..)| *name == "far_end_ready");
        let (_, _, meaning) = ready.unwrap();
        assert!(meaning.contains("implies") && meaning.contains("reply_after"));
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() <= super::super::table::WIDTH)
        );
    }
}
