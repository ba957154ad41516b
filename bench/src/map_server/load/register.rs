//! Registers mappings.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lisp_proto::{AuthKey, Record, Ttl};

use super::super::data::{self, KINDS};
use super::lines::Lines;
use super::waiting::Waiting;
use super::{GROUP, Job, Latency, Outcome, Register, nonce_of};

/// Where all registrations come from; Open Overlay Router has 4342 at all addresses.
const PORT: u16 = 4_343;
/// Who has not acknowledged by then never will, in nanoseconds.
const LOST_NS: u64 = 1_000_000_000;

/// Registers until all is acknowledged.
pub(super) struct Registrar<'a> {
    register: &'a Register,
    lines: Lines,
    key: AuthKey,
    /// The next message, and those that are to be sent again.
    next: u32,
    again: Vec<u32>,
    waiting: Waiting,
    latencies_us: Vec<f64>,
    outcome: Outcome,
    now: u64,
    heard: u64,
}

impl<'a> Registrar<'a> {
    pub(super) fn new(job: &Job, register: &'a Register) -> Result<Self> {
        Ok(Self {
            register,
            // One socket: the nonces of an xTR grow, so nothing may overtake. Its port is always the same, so that a
            // refresh comes from where the registration came from.
            lines: Lines::open_at(&[SocketAddr::new(job.registrant, PORT)], job.server)?,
            key: register.dialect.key(),
            next: 0,
            again: Vec::new(),
            waiting: Waiting::new(register.nonce),
            latencies_us: Vec::new(),
            outcome: Outcome::default(),
            now: 0,
            heard: 0,
        })
    }

    /// Sends some of what there is room for, so that whoever asks meanwhile does not wait long for his turn, and takes
    /// in what has arrived, `now` nanoseconds after the start; returns whether there is more to do.
    pub(super) fn step(&mut self, now: u64) -> Result<bool> {
        self.now = now;
        let window = u64::from(self.register.window);
        let group = u64::from(GROUP).min(window);
        if self.waiting.len() + group <= window {
            self.send(group)?;
        }
        let Self {
            lines,
            waiting,
            outcome,
            heard,
            latencies_us,
            ..
        } = self;
        lines.hear(|answer| {
            let nonce = u64::from_be_bytes(nonce_of(answer, false));
            if let Some(waiter) = waiting.end(nonce) {
                *heard = now;
                outcome.answered += 1;
                outcome.reply_bytes += answer.len() as u64;
                latencies_us.push(now.saturating_sub(waiter.due) as f64 / 1e3);
            }
        })?;
        if waiting.len() > 0 && now > *heard + LOST_NS {
            let lost = waiting.give_up();
            outcome.lost += lost.len() as u64;
            ensure!(
                outcome.lost < outcome.sent / 2 + 1_000,
                "the server does not acknowledge"
            );
            self.again.extend(lost.iter().map(|waiter| waiter.subject));
            self.heard = now;
        }
        let is_done = self.next == self.messages() && self.again.is_empty();
        Ok(!is_done || self.waiting.len() > 0)
    }

    fn messages(&self) -> u32 {
        self.register.count.div_ceil(self.register.per_message)
    }

    /// Sends up to so many messages.
    fn send(&mut self, most: u64) -> Result<()> {
        for _ in 0..most {
            let message = match self.again.pop() {
                Some(message) => message,
                None if self.next < self.messages() => {
                    self.next += 1;
                    self.next - 1
                }
                None => break,
            };
            let records = self.records(message);
            let nonce = self.waiting.begin(self.now, message);
            let (dialect, key) = (self.register.dialect, &self.key);
            let write = |_, out: &mut Vec<u8>| data::register(dialect, key, nonce, &records, out);
            let length = self.lines.write(0, write)?;
            self.outcome.request_bytes += u64::try_from(length)?;
            self.outcome.sent += 1;
        }
        self.lines.send(0)
    }

    fn records(&self, message: u32) -> Vec<Record> {
        let Register {
            plan,
            count,
            per_message,
            changes,
            keyed,
            withdraw,
            ..
        } = *self.register;
        let first = message * per_message;
        let numbers = first..(first + per_message).min(count);
        let records = numbers.map(|position| {
            let number = match per_message {
                1 => in_groups(position, count),
                _ => position,
            };
            let mut record = plan.record(number, changes, keyed);
            if withdraw {
                record.ttl = Ttl::WITHDRAW;
                record.locators.clear();
            }
            record
        });
        records.collect()
    }

    pub(super) fn finish(self) -> Outcome {
        Outcome {
            seconds: self.now as f64 / 1e9,
            latency_us: Latency::of(self.latencies_us),
            ..self.outcome
        }
    }
}

/// Puts the numbers below `count` in an order in which those with messages of the same length follow each
/// other.
const fn in_groups(position: u32, count: u32) -> u32 {
    let block = KINDS * GROUP;
    let start = position / block * block;
    if start + block > count {
        return position;
    }
    let offset = position - start;
    start + offset % GROUP * KINDS + offset / GROUP
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_number_comes_once() {
        for count in [5, 128, 1_000] {
            let all: BTreeSet<_> = (0..count).map(|it| in_groups(it, count)).collect();
            assert!(all.into_iter().eq(0..count));
        }
        assert_eq!(in_groups(1, 128) % KINDS, in_groups(0, 128) % KINDS);
    }
}
