//! Did the same thing happen? A digest over everything that happens, and the last of it in words.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hasher;

use lisp_proto::Timestamp;

/// The course of a run.
#[derive(Debug)]
pub(super) struct Trace {
    digest: Digest,
    /// The last lines.
    lines: VecDeque<String>,
    /// How many of them are kept.
    most: usize,
}

impl Trace {
    /// Starts a trace that keeps the last `most` lines in words.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            digest: Digest(0xcbf2_9ce4_8422_2325),
            lines: VecDeque::new(),
            most,
        }
    }

    /// Where the next event is written to.
    pub(super) const fn digest(&mut self) -> &mut Digest {
        &mut self.digest
    }

    /// The digest of everything so far.
    pub(super) fn hash(&self) -> u64 {
        self.digest.finish()
    }

    /// Keeps what `line` says, if anybody wants to read it.
    pub(super) fn say(&mut self, now: Timestamp, line: impl FnOnce() -> String) {
        if self.most == 0 {
            return;
        }
        if self.lines.len() >= self.most {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{} {}", Clock(now), line()));
    }

    /// The last lines, oldest first.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// Virtual time as it is shown: seconds with microseconds.
pub(super) struct Clock(pub(super) Timestamp);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timestamp(ns) = self.0;
        write!(f, "{:>6}.{:06}", ns / 1_000_000_000, ns / 1_000 % 1_000_000)
    }
}

/// FNV-1a over words instead of bytes: no key, and the same on every run.
#[derive(Debug)]
pub(super) struct Digest(u64);

impl Digest {
    const fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29);
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.word(
                chunk
                    .iter()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte)),
            );
        }
        for byte in chunks.remainder() {
            self.word(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.word(word);
    }

    fn write_u32(&mut self, word: u32) {
        self.word(u64::from(word));
    }

    fn finish(&self) -> u64 {
        super::seeds::mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_order_and_content() {
        let digest = |words: &[u64]| {
            let mut trace = Trace::new(0);
            words
                .iter()
                .for_each(|word| trace.digest().write_u64(*word));
            trace.hash()
        };
        assert_eq!(digest(&[1, 2]), digest(&[1, 2]));
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
        assert_ne!(digest(&[]), digest(&[0]));
    }

    #[test]
    fn lines_are_kept_only_when_wanted_and_only_the_last() {
        let mut silent = Trace::new(0);
        silent.say(Timestamp(1), || unreachable!("nobody listens"));
        let mut trace = Trace::new(5);
        for n in 0..6 {
            trace.say(Timestamp(n * 1_500_000_000), || n.to_string());
        }
        let lines = trace.into_lines();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], "     1.500000 1");
    }
}
