//! How long does the state machine by itself take for two that meet for the first time?

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args as ClapArgs;
use command_line::say;
use lisp_proto::{Message, PublicKey, Timestamp, decode};
use map_server::config::XtrConfig;
use map_server::{Action, Actions, Config, Input, MapServer, Via};
use wg_device::PrivateKey;

use super::super::processing::{thread_ns, unlimited};
use super::voice::{Voice, eid};

/// How many ask before the first acknowledgement comes.
const BATCH: u32 = 64;
/// From one message to the next.
const PACE: Duration = Duration::from_micros(5);

/// Times the state machine.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[arg(long)]
    members: u32,
    /// How many others each meets in a round.
    #[arg(long)]
    each: u32,
    #[arg(long)]
    rounds: u32,
}

/// Runs the process: prints what each round has taken for a pair, in microseconds.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args {
        members,
        each,
        rounds,
    } = *args;
    let mut bench = Bench::new(members)?;
    let mut pair_us = Vec::new();
    for round in 0..rounds {
        let mut taken = 0;
        for along in 0..each {
            for first in (0..members).step_by(BATCH as usize) {
                let who = first..members.min(first + BATCH);
                taken += bench.meet(who, 1 + round * each + along)?;
            }
        }
        pair_us.push(taken as f64 / 1e3 / f64::from(members * each));
    }
    say(&serde_json::to_string(&pair_us)?);
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    server: MapServer,
    voices: Vec<Voice>,
    actions: Actions,
    now: Timestamp,
    nonce: u64,
}

/// What is to be sent.
type Sent = Vec<(SocketAddr, Bytes)>;

impl Bench {
    fn new(members: u32) -> Result<Self> {
        let key: PublicKey = PrivateKey::from_bytes([1; 32]).public();
        let voices: Vec<_> = (0..members)
            .map(|number| Voice::new(number, &key))
            .collect();
        let options = unlimited();
        let xtrs = (0..).zip(&voices).map(|(number, voice)| XtrConfig {
            name: format!("agent-{number}").into(),
            control_address: Some(voice.inside.ip()),
            xtr_id: None,
            site_id: None,
            auth: voice.key.clone(),
            replay_check: true,
            eid_prefixes: vec![eid(number)],
            more_specifics: false,
        });
        let mut bench = Self {
            server: MapServer::new(Config::new(options, xtrs.collect())?, [1; 32]),
            voices,
            actions: Actions::new(),
            now: Timestamp::ZERO,
            nonce: 0,
        };
        for number in 0..members {
            let mut message = Vec::new();
            bench.voice(number)?.register(&mut message)?;
            let message = (bench.voice(number)?.inside, message);
            let (sent, _) = bench.handle(&[message])?;
            ensure!(sent.len() == 1, "a Map-Register was refused");
        }
        Ok(bench)
    }

    fn voice(&self, number: u32) -> Result<&Voice> {
        let voice = self.voices.get(usize::try_from(number)?);
        voice.context("no such agent")
    }

    /// Lets each of `who` meet the one that is `along` further; returns how long that has taken, in nanoseconds.
    fn meet(&mut self, who: std::ops::Range<u32>, along: u32) -> Result<u64> {
        let members = u32::try_from(self.voices.len())?;
        let mut requests = Vec::new();
        for number in who.clone() {
            self.nonce += 1;
            let (voice, mut message) = (self.voice(number)?, Vec::new());
            voice.ask((number + along) % members, self.nonce, &mut message)?;
            requests.push((voice.inside, message));
        }
        let (pushes, asking) = self.handle(&requests)?;
        ensure!(pushes.len() == who.len(), "not each is told");
        let mut acks = Vec::new();
        for (number, (to, push)) in who.clone().zip(&pushes) {
            let voice = self.voice((number + along) % members)?;
            ensure!(*to == voice.inside, "another is told");
            let Message::MapNotify(notify) = decode(push)? else {
                bail!("somebody is told something else");
            };
            let mut ack = Vec::new();
            voice.acknowledge(&notify, &mut ack)?;
            acks.push((voice.inside, ack));
        }
        let (answers, acknowledging) = self.handle(&acks)?;
        ensure!(answers.len() == who.len(), "not each is answered");
        Ok(asking + acknowledging)
    }

    /// Lets the server handle datagrams; returns what it sends, and how long it has taken.
    fn handle(&mut self, datagrams: &[(SocketAddr, Vec<u8>)]) -> Result<(Sent, u64)> {
        let mut sent = Sent::with_capacity(datagrams.len());
        let before = thread_ns()?;
        for (src, bytes) in datagrams {
            self.now = self.now + PACE;
            let input = Input::Datagram {
                src: *src,
                via: Via::Tunnel,
                bytes,
            };
            self.server.handle(self.now, input, &mut self.actions);
            for action in self.actions.drain() {
                if let Action::Send { dst, bytes, .. } = action {
                    sent.push((dst, bytes));
                }
            }
        }
        Ok((sent, thread_ns()? - before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_meet_are_told_and_answered() {
        let mut bench = Bench::new(9).unwrap();
        for along in 1..=4 {
            bench.meet(0..9, along).unwrap();
        }
    }
}
