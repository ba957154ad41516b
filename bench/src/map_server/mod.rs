//! `bench map-server`: the whole daemon against what the machine allows, against another map server, and against
//! a directory that speaks gRPC.
//!
//! Subject and limit take turns in one run, and the processor time of the server's threads per answer is what
//! is compared: other work on the machine disturbs that least.

pub(crate) mod echo;
pub(crate) mod grpc;
pub(crate) mod load;
pub(crate) mod meet;
pub(crate) mod processing;

mod attack;
mod data;
mod memory;
mod pairs;
mod peer;
mod plot;
mod report;
mod rounds;
mod servers;
mod storm;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use command_line::say;
use testbed::Binaries;

use data::{Dialect, Plan};
use load::{Ask, Outcome, Outcomes, Register};
use report::Report;
use servers::{Server, Site};

/// Mappings of the small server.
const FEW: u32 = 1_000;
/// Records per Map-Register where many mappings are loaded, and such messages at a time.
const PER_MESSAGE: u32 = 200;
const MESSAGES: u32 = 32;
/// Map-Registers with one record that wait for their acknowledgement at a time.
const WINDOW: u32 = 512;

/// Measures the map server: requests, registrations, memory and storms.
///
/// Compares it in one run with a server that only echoes, which is what the machine allows. The main figure is
/// the processor time of the server per answer. The processor's first core is the load generator's, the
/// second the server's.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A million mappings, and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Mappings of the large server [default: 10000000, with --quick 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    mappings: Option<u32>,
    /// Times that everything is measured [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each figure is measured in a round, in milliseconds [default: 2000, with --quick 200]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..))]
    each_ms: Option<u64>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',',
        default_values = ["requests", "grpc", "pairs", "memory", "processing", "storm", "attack", "oor"])]
    parts: Vec<Part>,
    /// Directory for the report: `map-server.json` and plots
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Requests and registrations against the limit.
    Requests,
    /// A gRPC server with the same mappings, in turn with the others; with `requests` and `oor` only
    Grpc,
    /// Agents that meet for the first time.
    Pairs,
    /// Memory per mapping.
    Memory,
    /// The state machine by itself.
    Processing,
    /// All agents register at once; with `requests` only.
    Storm,
    /// Floods, while somebody asks.
    Attack,
    /// Open Overlay Router, if it is installed.
    Oor,
}

/// What is measured, and how far it has come.
struct Run {
    site: Site,
    report: Report,
    /// Map-Registers of one xTR need growing nonces.
    nonce: u64,
    each_ms: u64,
    rounds: u32,
    mappings: u32,
    parts: Vec<Part>,
}

/// Runs `bench map-server`.
///
/// # Errors
///
/// When a server cannot be started, or does not answer.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let out = &args.out;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let (mappings, rounds, each_ms) = match args.quick {
        true => (1_000_000, 3, 200),
        false => (10_000_000, 5, 2_000),
    };
    let mut run = Run {
        site: Site::new(Binaries::up_to_date(say)?)?,
        report: Report::default(),
        nonce: testbed::wall_ns() / 1_000,
        each_ms: args.each_ms.unwrap_or(each_ms),
        rounds: args.rounds.unwrap_or(rounds),
        mappings: args.mappings.unwrap_or(mappings),
        parts: args.parts.clone(),
    };
    run.report.mappings = run.mappings;
    run.all()?;
    let report = run.report.finish();
    let path = out.join("map-server.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    plot::all(&report, out)?;
    say(&report.to_string());
    say(&format!("written to {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

impl Run {
    fn all(&mut self) -> Result<()> {
        if self.wants(Part::Memory) {
            self.memory()?;
        }
        if self.wants(Part::Processing) {
            self.processing()?;
        }
        if self.wants(Part::Requests) {
            self.requests()?;
        }
        if self.wants(Part::Pairs) {
            self.pairs()?;
        }
        if self.wants(Part::Attack) {
            self.attack()?;
        }
        if self.wants(Part::Oor) {
            self.peer()?;
        }
        Ok(())
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Times the state machine with few mappings and with many, with keys and without.
    fn processing(&mut self) -> Result<()> {
        for (subject, mappings, keyless) in [
            ("few", FEW, false),
            ("many", self.mappings, false),
            ("few_keyless", FEW, true),
        ] {
            say(&format!("processing time: {subject}"));
            let mappings = mappings.to_string();
            let mut arguments = vec!["processing", "--mappings", &mappings];
            arguments.extend(keyless.then_some("--keyless"));
            let measured: processing::Processing = self.site.measure_alone(&arguments)?;
            for value in measured.answer_ns {
                self.report.note("processing_ns", subject, value);
            }
        }
        Ok(())
    }

    /// Fills `server` as fast as possible, or empties it, with the mappings from the first on, so many in all.
    fn fill(&mut self, server: &Server, plan: Plan, count: u32, withdraw: bool) -> Result<Outcome> {
        let register = Register {
            per_message: PER_MESSAGE,
            window: MESSAGES,
            withdraw,
            ..self.register(plan, count)
        };
        let outcomes = self.site.load(server, None, Some(register))?;
        server.rest()?;
        Ok(outcomes.registered)
    }

    /// Returns what registers so many mappings one by one.
    fn register(&mut self, plan: Plan, count: u32) -> Register {
        let nonce = self.nonce;
        // Room for as many repetitions.
        self.nonce += 2 * u64::from(count) + 1_000;
        Register {
            plan,
            count,
            per_message: 1,
            changes: 0,
            keyed: true,
            dialect: Dialect::Ours,
            withdraw: false,
            window: WINDOW,
            nonce,
        }
    }

    /// Asks `server` for a while; as fast as it answers without a rate.
    fn ask(
        &mut self,
        subject: &str,
        server: &Server,
        (plan, mappings): (Plan, u32),
        rate: Option<u64>,
    ) -> Result<Outcome> {
        let ask = Ask {
            plan,
            mappings,
            milliseconds: self.each_ms,
            rate,
            checked: !subject.starts_with("echo"),
        };
        let (Outcomes { asked, .. }, cpu_us) = self.costs(server, Some(ask), None)?;
        ensure!(asked.wrong == 0, "{subject}: {} wrong answers", asked.wrong);
        ensure!(asked.answered > 0, "{subject} does not answer");
        if rate.is_none() {
            let each = cpu_us / asked.answered as f64;
            self.report.note("request_us", subject, each);
        }
        self.report.load(subject, mappings, rate, asked.clone());
        Ok(asked)
    }

    /// Lets the generator work; returns as well how long the server has run for it, in microseconds.
    fn costs(
        &self,
        server: &Server,
        ask: Option<Ask>,
        register: Option<Register>,
    ) -> Result<(Outcomes, f64)> {
        let before = server.usage()?.cpu;
        let outcomes = self.site.load(server, ask, register)?;
        let cpu = server.usage()?.cpu.saturating_sub(before);
        Ok((outcomes, cpu.as_secs_f64() * 1e6))
    }
}
