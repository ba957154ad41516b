//! Agents that meet as fast as a map server lets them: a process of its own, which holds their control tunnels.
//!
//! They say what agents say, and keep no data plane: that would cost more than the server does. Some of them share
//! a socket, so that what they send leaves in one piece and costs the generator little.

pub(crate) mod alone;
mod voice;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use command_line::say;
use lisp_proto::{Message, PublicKey, decode, decode_udp, encode_udp, verify};
use serde::{Deserialize, Serialize};
use testbed::{Datagram, Identity, Outbox, Tunnel, monotonic_ns, sleep};

use super::load::Lines;
use crate::usage::Usage;

pub(super) use self::voice::{SERVER, Voice, eid, secret};

/// Sockets.
const LINES: u32 = 64;
/// Questions that wait for answers, at most.
const WINDOW: u32 = 512;
/// Agents that shake hands at a time, at most.
const BEGINNERS: u32 = 64;
/// How long agents may take to register.
const REGISTERING: Duration = Duration::from_secs(60);
/// Who has heard nothing for so long will not: the server answers after a second even if nobody acknowledges.
const LOST: Duration = Duration::from_secs(2);
/// How often tunnels are looked after.
const TICK: Duration = Duration::from_millis(250);
/// Between two rounds.
const REST: Duration = Duration::from_millis(300);

/// Lets agents meet, as JSON says, and prints what each round was like as JSON.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    job: String,
}

/// Who meets whom: in each round every member meets others along a ring whom it has not met before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The server's end of the control tunnels, its key, and its process.
    pub(super) server: SocketAddrV4,
    pub(super) key: PublicKey,
    pub(super) pid: u32,
    /// Where the sockets are, one address after the other.
    pub(super) sources: Ipv4Addr,
    pub(super) members: u32,
    /// How many others each meets in a round: a multiple of `group`.
    pub(super) each: u32,
    pub(super) rounds: u32,
    /// How many others one asks for at a time.
    pub(super) group: u32,
    /// From one such time to the next, of whoever it is, in microseconds; as soon as there are answers if absent.
    pub(super) pace_us: Option<u64>,
}

/// What became of a round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Round {
    pub(super) met: u32,
    pub(super) lost: u32,
    pub(super) seconds: f64,
    /// How long the server has run for it, in microseconds.
    pub(super) cpu_us: f64,
}

/// Runs the process.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let job: Job = serde_json::from_str(&args.job).context("read the job")?;
    ensure!(
        job.each * job.rounds < job.members / 2 && job.each.is_multiple_of(job.group),
        "some would meet twice"
    );
    let mut crew = Crew::new(&job)?;
    crew.register()?;
    let rounds = (0..job.rounds).map(|round| {
        sleep(REST);
        crew.round(round)
    });
    let rounds = rounds.collect::<Result<Vec<_>>>()?;
    say(&serde_json::to_string(&rounds)?);
    Ok(ExitCode::SUCCESS)
}

/// All agents.
struct Crew<'a> {
    job: &'a Job,
    lines: Lines,
    members: Vec<Member>,
    /// Whose the indices are by which the server addresses handshakes and sessions.
    by_index: HashMap<u32, usize>,
    tally: Tally,
    out: Outbox,
    next_tick: u64,
}

/// One of them.
struct Member {
    voice: Voice,
    identity: Identity,
    tunnel: Tunnel,
}

/// What they have heard.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    registered: u32,
    round: u64,
    /// In this round: pushes, and answers.
    told: u32,
    met: u32,
    /// What is none of this, or says something else than it should.
    wrong: u32,
}

impl<'a> Crew<'a> {
    fn new(job: &'a Job) -> Result<Self> {
        let sources = (0..LINES).map(|line| SocketAddr::new(source(job, line).into(), 0));
        let sources: Vec<_> = sources.collect();
        let members = (0..job.members).map(|number| {
            let identity = Identity::new(secret(number));
            let tunnel = identity.tunnel(&job.key, source(job, number % LINES), job.server);
            Member {
                voice: Voice::new(number, &job.key),
                identity,
                tunnel,
            }
        });
        Ok(Self {
            job,
            lines: Lines::open_at(&sources, job.server.into())?,
            members: members.collect(),
            by_index: HashMap::new(),
            tally: Tally::default(),
            out: Outbox::new(),
            next_tick: 0,
        })
    }

    /// Lets all register.
    fn register(&mut self) -> Result<()> {
        let until = monotonic_ns() + nanos(REGISTERING);
        let mut begun = 0;
        while self.tally.registered < self.job.members {
            ensure!(monotonic_ns() < until, "the agents did not register");
            while begun < self.job.members && begun - self.tally.registered < BEGINNERS {
                self.say(begun, |voice, out| voice.register(out))?;
                begun += 1;
            }
            self.hear()?;
        }
        Ok(())
    }

    /// Lets them meet.
    fn round(&mut self, round: u32) -> Result<Round> {
        let Job {
            members,
            each,
            pid,
            group,
            pace_us,
            ..
        } = *self.job;
        let groups = each / group * members;
        let (mut next, mut asked) = (0, 0);
        self.tally = Tally {
            round: u64::from(round) + 1,
            registered: self.tally.registered,
            ..Tally::default()
        };
        let (before, start) = (Usage::of(pid)?.cpu, monotonic_ns());
        let (mut heard, mut met) = (start, 0);
        while self.tally.met < groups * group && monotonic_ns() < heard + nanos(LOST) {
            while next < groups && asked + group <= self.tally.met + WINDOW {
                let due = pace_us.map_or(0, |pace| u64::from(next) * pace * 1_000);
                if monotonic_ns() < start + due {
                    break;
                }
                let first = 1 + round * each + next / members * group;
                self.ask(next % members, first, asked)?;
                next += 1;
                asked += group;
            }
            self.hear()?;
            if self.tally.met > met {
                (met, heard) = (self.tally.met, monotonic_ns());
            }
        }
        let used = Usage::of(pid)?.cpu.saturating_sub(before);
        let Tally {
            told, met, wrong, ..
        } = self.tally;
        ensure!(wrong == 0, "{wrong} messages are wrong");
        ensure!(told >= met, "{met} answers, but {told} were told");
        Ok(Round {
            met,
            lost: (groups * group).saturating_sub(met),
            seconds: heard.saturating_sub(start) as f64 / 1e9,
            cpu_us: used.as_secs_f64() * 1e6,
        })
    }

    /// Lets member `number` ask for those from the one on that is `first` further along the ring.
    fn ask(&mut self, number: u32, first: u32, asked: u32) -> Result<()> {
        let round = self.tally.round << u32::BITS;
        for position in 0..self.job.group {
            let whom = (number + first + position) % self.job.members;
            let nonce = round | u64::from(asked + position);
            self.say(number, |voice, out| voice.ask(whom, nonce, out))?;
        }
        self.lines.send(usize::try_from(number % LINES)?)
    }

    /// Lets member `number` say something; what is not the first message of a handshake leaves with others.
    fn say(
        &mut self,
        number: u32,
        write: impl FnOnce(&Voice, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let index = usize::try_from(number)?;
        let member = self.members.get_mut(index).context("no such member")?;
        let mut message = Vec::new();
        write(&member.voice, &mut message)?;
        member.say(&message, &mut self.out)?;
        self.know_again(index);
        self.post()
    }

    /// Takes note of the indices in the first messages of handshakes of member number `index`, which are all that
    /// waits.
    fn know_again(&mut self, index: usize) {
        let begun = self.out.iter().map(|datagram| datagram.bytes.as_slice());
        let begun = begun.filter(|bytes| bytes.first() == Some(&INITIATION));
        let indices = begun.filter_map(|bytes| index_at(bytes, 4));
        self.by_index.extend(indices.map(|own| (own, index)));
    }

    /// Writes what tunnels have made to their sockets; the first messages of handshakes leave at once.
    fn post(&mut self) -> Result<()> {
        for Datagram { own, bytes, .. } in self.out.drain(..) {
            let line = own.to_bits().wrapping_sub(self.job.sources.to_bits());
            let line = usize::try_from(line)?;
            self.lines.write(line, |_, out| {
                out.extend_from_slice(&bytes);
                Ok(())
            })?;
            if bytes.first() == Some(&INITIATION) {
                self.lines.send(line)?;
            }
        }
        Ok(())
    }

    /// Takes in what has arrived, and sends what follows.
    fn hear(&mut self) -> Result<()> {
        let Self {
            lines,
            members,
            by_index,
            tally,
            out,
            ..
        } = self;
        let server = self.job.server;
        let mut failed = None;
        lines.hear(|bytes| {
            let member = receiver_of(bytes).and_then(|index| by_index.get(&index));
            let Some(member) = member.and_then(|member| members.get_mut(*member)) else {
                return;
            };
            if let Err(error) = member.hear(server, bytes, tally, out) {
                failed = Some(error);
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.post()?;
        (0..self.lines.len()).try_for_each(|line| self.lines.send(line))?;
        let now = monotonic_ns();
        if now < self.next_tick {
            return Ok(());
        }
        self.next_tick = now + nanos(TICK);
        for index in 0..self.members.len() {
            if let Some(member) = self.members.get_mut(index) {
                member.tunnel.tick(&mut self.out);
            }
            self.know_again(index);
            self.post()?;
        }
        Ok(())
    }
}

impl Member {
    /// Says something to the map server.
    fn say(&mut self, message: &[u8], out: &mut Outbox) -> Result<()> {
        let mut packet = Vec::with_capacity(128);
        encode_udp(self.voice.inside, SERVER, message, &mut packet)?;
        self.tunnel.send(&packet, out);
        Ok(())
    }

    /// Takes in what came for its tunnel, and acknowledges what it is told.
    fn hear(
        &mut self,
        server: SocketAddrV4,
        bytes: &[u8],
        tally: &mut Tally,
        out: &mut Outbox,
    ) -> Result<()> {
        let datagram = Datagram {
            own: Ipv4Addr::UNSPECIFIED,
            far: server,
            bytes: bytes.to_vec(),
        };
        let (_, packet) = self.tunnel.receive(&self.identity, &datagram, out);
        let Some(packet) = packet else {
            return Ok(());
        };
        let (_, _, message) = decode_udp(&packet)?;
        match decode(message)? {
            Message::MapNotify(notify) if notify.nonce == voice::REGISTERS => tally.registered += 1,
            Message::MapNotify(notify) => {
                verify(&self.voice.key, message)?;
                let mut ack = Vec::new();
                self.voice.acknowledge(&notify, &mut ack)?;
                self.say(&ack, out)?;
                tally.told += 1;
            }
            Message::MapReply(reply) if reply.nonce.0 >> u32::BITS == tally.round => {
                let mut records = reply.records();
                let is_positive = records.any(|record| record.locators().next().is_some());
                tally.met += u32::from(is_positive);
                tally.wrong += u32::from(!is_positive);
            }
            // Of an earlier round.
            Message::MapReply(_) => {}
            Message::MapRequest(_)
            | Message::MapRegister(_)
            | Message::MapNotifyAck(_)
            | Message::MapReferral(_)
            | Message::InfoRequest(_)
            | Message::Ecm(_) => tally.wrong += 1,
        }
        Ok(())
    }
}

/// Where socket number `line` is.
fn source(job: &Job, line: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(job.sources.to_bits() + line)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The types of messages of WireGuard, and where those that we get name their receiver.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

fn index_at(bytes: &[u8], at: usize) -> Option<u32> {
    let index = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*index))
}

/// The index of the receiver of a message of WireGuard.
fn receiver_of(bytes: &[u8]) -> Option<u32> {
    match *bytes.first()? {
        INITIATION => None,
        RESPONSE => index_at(bytes, 8),
        _ => index_at(bytes, 4),
    }
}
