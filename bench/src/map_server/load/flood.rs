//! Floods a server with what it has no use for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Result;
use lisp_proto::{Algorithm, AuthKey};
use serde::{Deserialize, Serialize};

use super::super::data::{Dialect, Plan, register};
use super::lines::Lines;
use super::{GROUP, Job, Outcome};

/// Sockets, each at another address.
const SOCKETS: usize = 256;
/// Where forged sources begin; all of this network is local to the namespace.
const FORGED: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// Datagrams that are sent before anything else is done, by a generator that was late.
const CATCH_UP: u64 = 64;
const SECOND_NS: u64 = 1_000_000_000;
/// A nonce that every registrant has long passed.
const OLD_NONCE: u64 = 1;
/// Length of garbage, in bytes: about that of a question.
const GARBAGE: usize = 80;

/// What comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Kind {
    /// The same amount, past the server: what the generator alone does to answer times.
    Past,
    /// Bytes that mean nothing.
    Garbage,
    /// Questions that are cut somewhere.
    Truncated,
    /// Questions that ask for answers to addresses that nobody vouches for.
    Spoofed,
    /// Map-Registers with a wrong secret.
    Unauthentic,
    /// Map-Registers that were authentic once.
    Replayed,
}

impl Kind {
    /// All kinds that reach the server.
    pub(in super::super) const ALL: [Self; 5] = [
        Self::Garbage,
        Self::Truncated,
        Self::Spoofed,
        Self::Unauthentic,
        Self::Replayed,
    ];

    /// Its name in reports.
    pub(in super::super) const fn name(self) -> &'static str {
        match self {
            Self::Past => "past",
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::Spoofed => "spoofed",
            Self::Unauthentic => "unauthentic",
            Self::Replayed => "replayed",
        }
    }
}

/// So many datagrams of one kind per second.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct Flood {
    pub(in super::super) kind: Kind,
    pub(in super::super) rate: u64,
}

/// Floods for a while.
pub(super) struct Flooder {
    rate: u64,
    lines: Lines,
    /// What each socket sends, always the same.
    messages: Vec<Vec<u8>>,
    line: usize,
    outcome: Outcome,
    /// Where the flood goes that misses the server.
    _silent: UdpSocket,
}

impl Flooder {
    pub(super) fn new(job: &Job, flood: Flood) -> Result<Self> {
        let Flood { kind, rate } = flood;
        let silent = UdpSocket::bind((job.client, 0))?;
        let target = if kind == Kind::Past {
            silent.local_addr()?
        } else {
            job.server
        };
        // So many that none is slowed down for its rate.
        let sources = forged().map(|source| SocketAddr::new(source, 0));
        let sources: Vec<_> = sources.take(SOCKETS).collect();
        let lines = Lines::open_at(&sources, target)?;
        let locals = lines.locals().enumerate();
        let messages: Result<Vec<_>> = locals.map(|(n, local)| message(kind, n, local)).collect();
        Ok(Self {
            rate,
            lines,
            messages: messages?,
            line: 0,
            outcome: Outcome::default(),
            _silent: silent,
        })
    }

    /// Sends what is due, `now` nanoseconds after the start, and counts what comes back.
    pub(super) fn step(&mut self, now: u64) -> Result<()> {
        let due = now / (SECOND_NS / self.rate.max(1)) + 1;
        let until = due.min(self.outcome.sent + CATCH_UP);
        while self.outcome.sent < until {
            let line = self.line;
            self.line = (line + 1) % self.lines.len();
            let Some(message) = self.messages.get(line) else {
                continue;
            };
            for _ in 0..GROUP {
                self.lines.write(line, |_, out| {
                    out.extend_from_slice(message);
                    Ok(())
                })?;
            }
            self.lines.send(line)?;
            self.outcome.sent += u64::from(GROUP);
            self.outcome.request_bytes += u64::from(GROUP) * message.len() as u64;
        }
        self.hear()
    }

    fn hear(&mut self) -> Result<()> {
        let Self { lines, outcome, .. } = self;
        lines.hear(|answer| {
            outcome.answered += 1;
            outcome.reply_bytes += answer.len() as u64;
        })
    }

    pub(super) fn finish(mut self, now: u64) -> Result<Outcome> {
        self.hear()?;
        self.outcome.seconds = now as f64 / 1e9;
        Ok(self.outcome)
    }
}

/// Addresses that nobody vouches for.
fn forged() -> impl Iterator<Item = IpAddr> {
    (FORGED..).map(|bits| Ipv4Addr::from(bits).into())
}

/// What socket number `n` sends.
fn message(kind: Kind, n: usize, local: SocketAddr) -> Result<Vec<u8>> {
    let number = u32::try_from(n)?;
    let mut message = Vec::new();
    match kind {
        Kind::Past | Kind::Garbage => {
            // The first byte takes all values, and with it the type of the message.
            let bytes = (0..GARBAGE).map(|at| (n + at * 151).to_le_bytes()[0]);
            message.extend(bytes);
        }
        Kind::Truncated => {
            Plan::Mixed.request(number, 1, local, &mut message)?;
            message.truncate(1 + n % (message.len() - 1));
        }
        Kind::Spoofed => Plan::Mixed.request(number, 1, local, &mut message)?,
        Kind::Unauthentic | Kind::Replayed => {
            let key = if kind == Kind::Replayed {
                Dialect::Ours.key()
            } else {
                AuthKey::new(1, Algorithm::Sha256_128, b"a wrong secret")
            };
            let records = [Plan::Mixed.record(number, 0, true)];
            register(Dialect::Ours, &key, OLD_NONCE, &records, &mut message)?;
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lisp_proto::{Message, decode, verify};

    #[test]
    fn each_kind_is_what_it_is_called() {
        let local = SocketAddr::from(([198, 18, 0, 1], 5_000));
        let of = |kind, n| message(kind, n, local).unwrap();
        for n in 0..SOCKETS {
            assert!(decode(&of(Kind::Truncated, n)).is_err(), "{n}");
            assert!(matches!(decode(&of(Kind::Spoofed, n)), Ok(Message::Ecm(_))));
            let key = Dialect::Ours.key();
            assert!(verify(&key, &of(Kind::Unauthentic, n)).is_err());
            assert!(verify(&key, &of(Kind::Replayed, n)).is_ok());
        }
        let types: std::collections::BTreeSet<_> =
            (0..SOCKETS).map(|n| of(Kind::Garbage, n)[0]).collect();
        assert_eq!(types.len(), 256);
    }
}
