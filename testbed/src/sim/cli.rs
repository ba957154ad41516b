//! `testbed sim`: what is asked for, and what is printed.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;

use super::failure::Failure;
use super::invariant::Violation;
use super::options::{FaultClasses, Options, Setting};
use super::run::{self, Outcome, Progress, run_twice};
use super::sabotage::Sabotage;
use super::scenario::Scenario;
use crate::clock::monotonic_ns;

/// Nanoseconds per second.
const SECOND_NS: u64 = 1_000_000_000;
/// Least time between two lines of progress, in nanoseconds.
const PROGRESS_NS: u64 = SECOND_NS;
/// The same if they go into a file.
const PROGRESS_LOGGED_NS: u64 = 10 * SECOND_NS;

/// Simulates a whole network in virtual time
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Number that everything follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run many seeds one after the other, for example 0..300
    #[arg(long, value_parser = seeds, conflicts_with_all = ["seed", "replay"])]
    seeds: Option<Range<u64>>,
    /// Number of agents; the seed chooses if not given
    #[arg(long)]
    agents: Option<u32>,
    /// Number of map servers; the seed chooses if not given
    #[arg(long)]
    servers: Option<u32>,
    /// Length of a run in minutes of virtual time; the seed chooses if not given
    #[arg(long)]
    minutes: Option<f64>,
    /// What may go wrong: all, none, or names separated by commas ("all,-nat" leaves one out)
    #[arg(long, default_value = "all", allow_hyphen_values = true)]
    faults: FaultClasses,
    /// Agents that lead the others out of the overlay: clients are moved, and proxies fail
    #[arg(long)]
    proxied: bool,
    /// Agents behind NATs that they find out about, and relays for those whom these keep apart
    #[arg(long, conflicts_with = "proxied")]
    hidden: bool,
    /// Flows that pause for one to three minutes, besides the others
    #[arg(long)]
    pauses: bool,
    /// Run the scenario in this file
    #[arg(long, conflicts_with_all = [
        "agents", "servers", "minutes", "faults", "proxied", "hidden", "pauses",
    ])]
    replay: Option<PathBuf>,
    /// Write the smallest scenario that fails to this file instead of the terminal
    #[arg(long)]
    save: Option<PathBuf>,
    /// Report a failure as it is, without looking for a smaller one
    #[arg(long)]
    no_shrink: bool,
    /// Go on with the next seed after a failure, and only list the failures
    #[arg(long)]
    keep_going: bool,
    /// Events that are shown of a failure
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Run everything twice and compare
    #[arg(long)]
    twice: bool,
    /// Write everything that happens to this file, in words
    #[arg(long, conflicts_with_all = ["seeds", "twice"])]
    trace: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Break something on purpose
    #[arg(long = "break", hide = true)]
    sabotage: Option<Sabotage>,
}

/// Runs what is asked for; exit code 1 says that an invariant is broken.
///
/// # Errors
/// A file cannot be read or written, or nothing can be printed.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(seeds) = &args.seeds {
        return many(args, seeds.clone());
    }
    let scenario = match &args.replay {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => args.options().scenario(args.seed),
    };
    let started = monotonic_ns();
    let outcome = if args.twice {
        run_twice(&scenario)
    } else {
        let lines = args.trace.as_ref().map_or(0, |_| usize::MAX);
        run::run(&scenario, lines, &mut progress_lines(started))
    };
    let wall_s = seconds_since(started);
    if let Some(path) = &args.trace {
        let text = outcome.lines.join("\n") + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(violation) = &outcome.violation {
        failed(args, &scenario, violation)?;
        return Ok(ExitCode::FAILURE);
    }
    print_report(args, &outcome, wall_s)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self) -> Options {
        Options {
            agents: self.agents,
            servers: self.servers,
            minutes: self.minutes,
            faults: self.faults.clone(),
            setting: match (self.proxied, self.hidden) {
                (true, _) => Setting::Proxied,
                (false, true) => Setting::Hidden,
                (false, false) => Setting::Plain,
            },
            pauses: self.pauses,
            sabotage: self.sabotage,
        }
    }
}

/// Runs many seeds; stops at the first failure unless told otherwise.
fn many(args: &Args, seeds: Range<u64>) -> Result<ExitCode> {
    let started = monotonic_ns();
    let (mut runs, mut events, mut agent_hours, mut failures) = (0u64, 0u64, 0.0, 0u64);
    let mut shown = started;
    for seed in seeds {
        let scenario = args.options().scenario(seed);
        let outcome = if args.twice {
            run_twice(&scenario)
        } else {
            run::run(&scenario, 0, &mut |_| {})
        };
        runs += 1;
        events += outcome.report.events;
        agent_hours += outcome.report.agent_hours;
        if monotonic_ns().saturating_sub(shown) >= PROGRESS_NS {
            shown = monotonic_ns();
            writeln!(io::stderr(), "seed {seed}, {runs} runs, {failures} failed")?;
        }
        let Some(violation) = &outcome.violation else {
            continue;
        };
        failures += 1;
        if !args.keep_going {
            failed(args, &scenario, violation)?;
            return Ok(ExitCode::FAILURE);
        }
        writeln!(io::stdout(), "seed {seed}: {violation}")?;
    }
    let wall_s = seconds_since(started);
    writeln!(
        io::stdout(),
        "{runs} runs, {failures} failed; {events} events, {agent_hours:.1} agent-hours in {wall_s:.1} s"
    )?;
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Shows a failure: where it came from, what led to it, and the least that still fails.
fn failed(args: &Args, scenario: &Scenario, violation: &Violation) -> Result<()> {
    let mut out = io::stderr().lock();
    writeln!(
        out,
        "seed {}, {} agents, {} servers: BROKEN {violation}",
        scenario.seed, scenario.agents, scenario.servers
    )?;
    if !args.no_shrink {
        writeln!(out, "looking for the least that still fails ...")?;
    }
    let failure = Failure::investigate(scenario, violation.clone(), !args.no_shrink, args.lines);
    write!(out, "{failure}")?;
    let text = serde_json::to_string(&failure.smallest)?;
    match &args.save {
        Some(path) => {
            fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
            writeln!(out, "again: testbed sim --replay {}", path.display())?;
        }
        None => writeln!(
            out,
            "again: write this into FILE and run testbed sim --replay FILE\n{text}"
        )?,
    }
    Ok(())
}

fn print_report(args: &Args, outcome: &Outcome, wall_s: f64) -> Result<()> {
    let mut out = io::stdout().lock();
    let report = &outcome.report;
    let (events_per_s, hours_per_s) = (report.events as f64 / wall_s, report.agent_hours / wall_s);
    if args.json {
        let mut json = serde_json::to_value(report)?;
        if let Some(object) = json.as_object_mut() {
            object.insert("trace".to_owned(), format!("{:016x}", outcome.trace).into());
            object.insert("wall_s".to_owned(), wall_s.into());
            object.insert("events_per_wall_s".to_owned(), events_per_s.into());
            object.insert("agent_hours_per_wall_s".to_owned(), hours_per_s.into());
        }
        writeln!(out, "{json}")?;
        return Ok(());
    }
    write!(out, "{report}")?;
    writeln!(
        out,
        "{:>24}  {wall_s:.2} s, {events_per_s:.0} events/s, {hours_per_s:.2} agent-hours/s",
        "wall time"
    )?;
    writeln!(out, "{:>24}  {:016x}", "trace", outcome.trace)?;
    writeln!(out, "{:>24}  all hold", "invariants")?;
    Ok(())
}

/// Prints now and then how far a run is.
fn progress_lines(started: u64) -> impl FnMut(Progress) {
    let mut shown = started;
    let pause_ns = if io::stderr().is_terminal() {
        PROGRESS_NS
    } else {
        PROGRESS_LOGGED_NS
    };
    move |progress| {
        if monotonic_ns().saturating_sub(shown) < pause_ns {
            return;
        }
        shown = monotonic_ns();
        let Progress {
            now,
            end,
            events,
            packets,
        } = progress;
        let (now_s, end_s) = (now.0 / SECOND_NS, end.0 / SECOND_NS);
        let wall_s = shown.saturating_sub(started) / SECOND_NS;
        let line =
            format!("{now_s} of {end_s} s after {wall_s} s: {events} events, {packets} packets\n");
        // Nobody may be reading any more: that is no reason to stop.
        io::stderr().write_all(line.as_bytes()).unwrap_or_default();
    }
}

fn seconds_since(started: u64) -> f64 {
    (monotonic_ns().saturating_sub(started) as f64 / 1e9).max(1e-9)
}

/// Reads `A..B`.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let range = text
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.ok_or_else(|| "two numbers with .. between them, for example 0..300".to_owned())
}
