//! The load generator: a process of its own, which sends many datagrams per call of the system.
//!
//! With a rate it sends when it is time, whatever has become of earlier questions, and times each from when
//! it was due. Without one it keeps a window of questions open.

mod ask;
mod flood;
mod lines;
mod register;
mod waiting;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use command_line::say;
use serde::{Deserialize, Serialize};
use testbed::{Distribution, monotonic_ns};

use self::ask::Asker;
use self::flood::Flooder;
use self::register::Registrar;
use super::data::{Dialect, Plan};

pub(super) use self::flood::{Flood, Kind};
pub(super) use self::lines::Lines;

/// What may wait in a socket, in bytes.
pub(super) const RECEIVE_ROOM: usize = 8 << 20;
/// Where an answer, or a message that is not encapsulated, has its nonce.
const NONCE: usize = 4;
/// Where an encapsulated Map-Request has it: behind the headers of the ECM, IPv4 and UDP.
const NONCE_IN_ECM: usize = 4 + 20 + 8 + NONCE;
/// Messages of the same length, one after the other, from the same socket: they take one call.
const GROUP: u32 = 16;

/// Runs one job, told as JSON, and prints what has become of it as JSON.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    job: String,
}

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) server: SocketAddr,
    /// Where questions come from.
    pub(super) client: IpAddr,
    /// Where registrations come from.
    pub(super) registrant: IpAddr,
    /// Lasts until the registrations are done, if there are any.
    pub(super) ask: Option<Ask>,
    pub(super) register: Option<Register>,
    /// Goes on as long as the questions.
    pub(super) flood: Option<Flood>,
}

/// Questions about random mappings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) plan: Plan,
    pub(super) mappings: u32,
    pub(super) milliseconds: u64,
    /// Per second; as many as the server answers if absent.
    pub(super) rate: Option<u64>,
    /// Whether the answers come from a map server, and are to be positive.
    pub(super) checked: bool,
}

/// Map-Registers of mappings, each until it is acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Register {
    pub(super) plan: Plan,
    pub(super) count: u32,
    pub(super) per_message: u32,
    /// How often they have changed.
    pub(super) changes: u16,
    pub(super) keyed: bool,
    pub(super) dialect: Dialect,
    /// Takes them out again instead.
    pub(super) withdraw: bool,
    /// Messages that wait for their acknowledgement, at most.
    pub(super) window: u32,
    /// The nonces begin here.
    pub(super) nonce: u64,
}

/// What has become of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcomes {
    pub(super) asked: Outcome,
    pub(super) registered: Outcome,
    pub(super) flooded: Outcome,
}

/// What has become of questions, or of registrations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// Never answered; registrations are then sent again.
    pub(super) lost: u64,
    /// Answers that say something else than they should.
    pub(super) wrong: u64,
    pub(super) seconds: f64,
    /// From when a message was due to its answer.
    pub(super) latency_us: Latency,
    /// Of all messages, and of all answers.
    pub(super) request_bytes: u64,
    pub(super) reply_bytes: u64,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Latency {
    pub(super) fn of(times_us: Vec<f64>) -> Self {
        let all = Distribution::of(times_us);
        let last = all.values.len().saturating_sub(1);
        let p999 = all.values.get((last * 999).div_ceil(1_000));
        Self {
            p50: all.p50,
            p90: all.p90,
            p99: all.p99,
            p999: p999.copied().unwrap_or_default(),
            max: all.max,
        }
    }
}

impl Outcome {
    /// Length of an answer in bytes, on average.
    pub(super) fn reply_len(&self) -> usize {
        usize::try_from(self.reply_bytes / self.answered.max(1)).unwrap_or(usize::MAX)
    }
}

/// Runs the process.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let job: Job = serde_json::from_str(&args.job).context("read the job")?;
    let flooder = job.flood.map(|flood| Flooder::new(&job, flood));
    let mut flooder = flooder.transpose()?;
    let asker = job.ask.as_ref().map(|ask| Asker::new(&job, ask));
    let mut asker = asker.transpose()?;
    let registrar = job
        .register
        .as_ref()
        .map(|register| Registrar::new(&job, register));
    let mut registrar = registrar.transpose()?;
    let start = monotonic_ns();
    let now = loop {
        let now = monotonic_ns() - start;
        if let Some(flooder) = &mut flooder {
            flooder.step(now)?;
        }
        let goes_on = match (&mut registrar, &mut asker) {
            (Some(registrar), asker) => {
                if let Some(asker) = asker {
                    asker.step(now)?;
                }
                registrar.step(now)?
            }
            (None, Some(asker)) => {
                asker.step(now)?;
                !asker.is_over(now)
            }
            (None, None) => false,
        };
        if !goes_on {
            break now;
        }
    };
    let flooded = flooder.map(|flooder| flooder.finish(now));
    let outcomes = Outcomes {
        asked: asker.map(Asker::finish).transpose()?.unwrap_or_default(),
        registered: registrar.map(Registrar::finish).unwrap_or_default(),
        flooded: flooded.transpose()?.unwrap_or_default(),
    };
    say(&serde_json::to_string(&outcomes)?);
    Ok(ExitCode::SUCCESS)
}

/// Reads the nonce of a message.
pub(super) fn nonce_of(message: &[u8], is_encapsulated: bool) -> [u8; 8] {
    let at = match is_encapsulated {
        true => NONCE_IN_ECM,
        false => NONCE,
    };
    let bytes = message.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().unwrap_or_default()
}
