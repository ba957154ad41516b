//! How long does the state machine by itself take for an answer? This is figure 8 of the paper that the
//! project began with: the time inside the server, without the network.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use arrayvec::ArrayVec;
use clap::Args as ClapArgs;
use command_line::say;
use lisp_proto::Timestamp;
use map_server::config::{Options, Rate, XtrConfig};
use map_server::{Action, Actions, Answered, Config, Input, MapServer, Via};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use wg_device::BATCH;

use super::data::{self, Dialect, Plan};

/// Who registers, and who asks.
const REGISTRANT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3)), 4342);
const CLIENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 5_000);
/// Records per Map-Register.
const RECORDS: u32 = 100;
/// Questions that are written before the clock starts, and are all asked in each round.
const QUESTIONS: u32 = 20_000;
const ROUNDS: usize = 15;

/// Times the state machine.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[arg(long)]
    mappings: u32,
    /// Registers addresses without keys.
    #[arg(long)]
    keyless: bool,
}

/// What a round has taken for each answer, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Processing {
    pub(super) answer_ns: Vec<f64>,
}

/// Runs the process.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let server = filled(args)?;
    let (mut desk, mut out) = (server.desk(), Vec::new());
    let mut actions = Actions::quiet();
    let mut answer_ns = Vec::with_capacity(ROUNDS);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..ROUNDS {
        let mut questions = Vec::with_capacity(QUESTIONS as usize);
        for nonce in 0..QUESTIONS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mapping = u32::try_from((random >> 8) % u64::from(args.mappings))?;
            let mut question = Vec::with_capacity(96);
            Plan::Mixed.request(mapping, u64::from(nonce), CLIENT, &mut question)?;
            questions.push(question);
        }
        let (before, mut answered) = (thread_ns()?, 0);
        for batch in questions.chunks(BATCH) {
            let mut read = ArrayVec::<_, BATCH>::new();
            for question in batch {
                let datagram = (CLIENT, question.as_slice());
                let question = server.read_question(Timestamp::ZERO, datagram, &desk, &mut actions);
                read.extend(question);
            }
            server.expect_questions(&read);
            for question in &read {
                out.clear();
                let answer =
                    server.answer(Timestamp::ZERO, question, &mut desk, &mut out, &mut actions);
                answered += u32::from(answer == Answered::To(CLIENT));
            }
        }
        let taken = thread_ns()? - before;
        ensure!(answered == QUESTIONS, "{answered} of {QUESTIONS} answers");
        answer_ns.push(taken as f64 / f64::from(QUESTIONS));
    }
    say(&serde_json::to_string(&Processing { answer_ns })?);
    Ok(ExitCode::SUCCESS)
}

/// Nobody is slowed down: what is measured is what a message costs.
pub(super) fn unlimited() -> Options {
    let rate = Rate {
        per_second: 100_000_000,
        burst: 100_000_000,
    };
    Options {
        request_rate: rate,
        register_rate: rate,
        ..Options::default()
    }
}

/// Returns a server with mappings.
fn filled(args: &Args) -> Result<MapServer> {
    let options = Options {
        requests_from: vec![CLIENT.ip().into()],
        ..unlimited()
    };
    let key = Dialect::Ours.key();
    let xtr = XtrConfig {
        name: "all".into(),
        control_address: None,
        xtr_id: None,
        site_id: None,
        auth: key.clone(),
        replay_check: true,
        eid_prefixes: data::configured(),
        more_specifics: true,
    };
    let mut server = MapServer::new(Config::new(options, vec![xtr])?, [1; 32]);
    let mut actions = Actions::quiet();
    let mut message = Vec::new();
    for first in (0..args.mappings).step_by(RECORDS as usize) {
        let numbers = first..args.mappings.min(first + RECORDS);
        let records = numbers.map(|n| Plan::Mixed.record(n, 0, !args.keyless));
        let records: Vec<_> = records.collect();
        message.clear();
        let nonce = u64::from(first) + 1;
        data::register(Dialect::Ours, &key, nonce, &records, &mut message)?;
        let input = Input::Datagram {
            src: REGISTRANT,
            via: Via::Plain,
            bytes: &message,
        };
        server.handle(Timestamp::ZERO, input, &mut actions);
        let mut sent = actions.drain();
        let is_confirmed = sent.any(|action| matches!(action, Action::Send { .. }));
        drop(sent);
        ensure!(is_confirmed, "a Map-Register was refused");
    }
    Ok(server)
}

/// Returns for how long this thread has run.
pub(super) fn thread_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let time = std::time::Duration::from(time);
    Ok(u64::try_from(time.as_nanos())?)
}
