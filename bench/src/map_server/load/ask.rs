//! Asks for random mappings.

use anyhow::Result;
use testbed::monotonic_ns;

use super::super::data::KINDS;
use super::lines::Lines;
use super::waiting::Waiting;
use super::{Ask, GROUP, Job, Latency, Outcome, nonce_of};

/// Sockets.
const SOCKETS: usize = 64;
/// Questions that wait for answers, at most, where there is no rate.
const WINDOW: u64 = 512;
/// Questions that are sent before answers are heard, by a generator that was late.
const CATCH_UP: u64 = 256;
/// Who has not answered by then never will, in nanoseconds.
const LOST_NS: u64 = 500_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Asks for a while.
pub(super) struct Asker<'a> {
    ask: &'a Ask,
    lines: Lines,
    /// Which socket is next.
    line: usize,
    waiting: Waiting,
    random: u64,
    latencies_us: Vec<f64>,
    outcome: Outcome,
    /// The time when it began, when it was told the time last, and when something was heard last, in
    /// nanoseconds.
    start: u64,
    now: u64,
    heard: u64,
}

impl<'a> Asker<'a> {
    pub(super) fn new(job: &Job, ask: &'a Ask) -> Result<Self> {
        Ok(Self {
            ask,
            lines: Lines::open(job.client, SOCKETS, job.server)?,
            line: 0,
            waiting: Waiting::new(1),
            random: 0x1234_5678_9abc_def1,
            latencies_us: Vec::new(),
            outcome: Outcome::default(),
            start: monotonic_ns(),
            now: 0,
            heard: 0,
        })
    }

    /// Whether the time for questions is over, `now` nanoseconds after the start.
    pub(super) const fn is_over(&self, now: u64) -> bool {
        now >= self.ask.milliseconds * 1_000_000
    }

    /// Sends what is due, and takes in what has arrived.
    pub(super) fn step(&mut self, now: u64) -> Result<()> {
        self.now = now;
        match self.ask.rate {
            Some(rate) => {
                let interval = SECOND_NS / rate.max(1);
                let due = now / interval + 1;
                let until = due.min(self.outcome.sent + CATCH_UP);
                while self.outcome.sent < until {
                    let count = (until - self.outcome.sent).min(u64::from(GROUP));
                    let first = self.outcome.sent;
                    self.send(count, |position| (first + position) * interval)?;
                }
            }
            None => {
                while self.waiting.len() + u64::from(GROUP) <= WINDOW {
                    self.send(u64::from(GROUP), |_| now)?;
                }
            }
        }
        self.hear()?;
        if self.waiting.len() > 0 && now > self.heard + LOST_NS {
            self.waiting.give_up();
            self.heard = now;
        }
        Ok(())
    }

    /// Sends so many questions from one socket.
    fn send(&mut self, count: u64, due_at: impl Fn(u64) -> u64) -> Result<()> {
        let line = self.line;
        self.line = (line + 1) % self.lines.len();
        let kind = u32::try_from(self.draw() % u64::from(KINDS))?;
        for position in 0..count {
            let all = u64::from(self.ask.mappings / KINDS).max(1);
            let mapping = u32::try_from(self.draw() % all)? * KINDS + kind;
            let nonce = self.waiting.begin(due_at(position), 0);
            let plan = self.ask.plan;
            let length = self
                .lines
                .write(line, |local, out| plan.request(mapping, nonce, local, out))?;
            self.outcome.request_bytes += u64::try_from(length)?;
            self.outcome.sent += 1;
        }
        self.lines.send(line)
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }

    /// Takes the answers in that have arrived.
    fn hear(&mut self) -> Result<()> {
        let Self {
            ask,
            lines,
            waiting,
            outcome,
            latencies_us,
            start,
            heard,
            ..
        } = self;
        lines.hear(|answer| {
            let nonce = u64::from_be_bytes(nonce_of(answer, false));
            let Some(waiter) = waiting.end(nonce) else {
                return;
            };
            let now = monotonic_ns() - *start;
            *heard = now;
            outcome.answered += 1;
            outcome.reply_bytes += answer.len() as u64;
            outcome.wrong += u64::from(ask.checked && !is_positive(answer));
            // Where there is no rate the window decides how long an answer takes.
            if ask.rate.is_some() {
                latencies_us.push(now.saturating_sub(waiter.due) as f64 / 1e3);
            }
        })
    }

    /// Waits for the last answers.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        self.outcome.seconds = self.now as f64 / 1e9;
        let until = monotonic_ns() + LOST_NS;
        while self.waiting.len() > 0 && monotonic_ns() < until {
            self.hear()?;
        }
        self.outcome.lost = self.outcome.sent - self.outcome.answered;
        self.outcome.latency_us = Latency::of(self.latencies_us);
        Ok(self.outcome)
    }
}

/// Whether this is a Map-Reply whose first record has a locator.
fn is_positive(answer: &[u8]) -> bool {
    answer.first().is_some_and(|byte| byte >> 4 == 2) && answer.get(16) > Some(&0)
}
