//! `map-server migrate`, `drain` and `migrations`.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_line::say;
use map_server::shell::Request;
use serde_json::Value;

use super::report::{Counts, Report};
use super::{Target, ask};

/// How often a server is asked how far it has come.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks for a migration, and says how it goes until it is over; returns whether nobody has failed.
///
/// # Errors
/// No server is reached, it refuses, or it has ended in the middle.
pub(crate) fn run(target: &Target, request: &Request, json: bool) -> Result<bool> {
    let socket = target.socket()?;
    let answer = ask(&socket, request)?;
    if let Request::Undrain { from } = request {
        print(json, &answer, &[format!("{from} may have clients again")]);
        return Ok(true);
    }
    let Some(run) = answer.get("run").and_then(Value::as_u64) else {
        return planned(answer, json);
    };
    follow(&socket, run, json)?;
    let request = Request::Migrations {
        run: Some(run),
        counts: false,
    };
    let answer = ask(&socket, &request)?;
    let report = Report::read(answer.clone())?;
    let mut lines = match report.counts.total() {
        0 => vec!["no client uses it".to_owned()],
        1..=SHOWN => report.table(),
        _ => Vec::new(),
    };
    lines.extend(report.failures());
    lines.extend(report.relaying());
    let (gap, moves, all) = report.longest_ms();
    let counts = report.counts.line();
    let gap = gap.map_or_else(String::new, |gap| {
        format!("; the longest gap in what came to a client was {gap} ms")
    });
    if let Some(connections) = report.connections() {
        let connections = connections.words();
        lines.push(format!("translated connections: {connections}"));
    }
    lines.push(format!(
        "{counts}{gap}; the longest move took {moves} ms, the longest migration {all} ms"
    ));
    print(json, &answer, &lines);
    Ok(report.counts.failed == 0)
}

/// Clients that are listed one by one when all has gone well.
const SHOWN: u64 = 20;

/// Says what would be done.
fn planned(answer: Value, json: bool) -> Result<bool> {
    let report = Report::read(answer.clone())?;
    let mut lines = match report.clients.is_empty() {
        true => vec!["no client uses it".to_owned()],
        false => report.table(),
    };
    lines.extend(report.failures());
    lines.push("nothing was changed: this is a dry run".to_owned());
    print(json, &answer, &lines);
    Ok(report.counts.failed == 0)
}

/// Waits until the command `run` is done, and says how far it is.
#[expect(
    clippy::disallowed_methods,
    reason = "this command has nothing else to do meanwhile"
)]
fn follow(socket: &Path, run: u64, json: bool) -> Result<()> {
    let request = Request::Migrations {
        run: Some(run),
        counts: true,
    };
    let mut seen = Counts::default();
    loop {
        let answer = ask(socket, &request).context("in the middle of the migration")?;
        let counts = Report::read(answer)?.counts;
        ensure!(
            counts.total() >= seen.total(),
            "the server has restarted in the middle; every client is with one of the two: repeat the command"
        );
        if counts != seen && !json {
            say(&counts.line());
        }
        seen = counts;
        if counts.under_way() == 0 {
            return Ok(());
        }
        sleep(PAUSE);
    }
}

/// Prints what is remembered, and what goes on.
///
/// # Errors
/// No server is reached, or it refuses.
pub(crate) fn list(target: &Target, json: bool) -> Result<bool> {
    let socket = target.socket()?;
    let request = Request::Migrations {
        run: None,
        counts: false,
    };
    let answer = ask(&socket, &request)?;
    let report = Report::read(answer.clone())?;
    let mut lines = match report.clients.is_empty() {
        true => vec!["nobody was migrated since the server started".to_owned()],
        false => report.table(),
    };
    lines.extend(report.failures());
    lines.push(report.counts.line());
    lines.push(report.drained());
    lines.extend(report.relaying());
    print(json, &answer, &lines);
    Ok(true)
}

fn print(json: bool, answer: &Value, lines: &[String]) {
    match json {
        true => say(&answer.to_string()),
        false => say(&lines.join("\n")),
    }
}
