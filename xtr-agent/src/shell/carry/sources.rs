//! Which proxies answer when they are asked for connections?

use std::collections::BTreeMap;
use std::net::IpAddr;

use lisp_proto::Timestamp;

use super::limits::{SOURCES, UNANSWERED};

/// What is known of the proxies that were asked.
#[derive(Debug, Default)]
pub(super) struct Sources {
    known: BTreeMap<IpAddr, Source>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// It has answered once.
    Answers,
    /// It has not yet, when it was asked last.
    Silent(Timestamp),
}

impl Sources {
    /// Whether it is worth while to ask `from`.
    pub(super) fn may_answer(&self, now: Timestamp, from: IpAddr) -> bool {
        match self.known.get(&from) {
            Some(Source::Silent(at)) => now >= *at + UNANSWERED,
            Some(Source::Answers) | None => true,
        }
    }

    /// `from` has answered.
    pub(super) fn answered(&mut self, from: IpAddr) {
        self.learn(from, Source::Answers);
    }

    /// `from` has not answered; says whether that is news.
    pub(super) fn failed(&mut self, now: Timestamp, from: IpAddr) -> bool {
        match self.known.get(&from) {
            Some(Source::Answers) => return true,
            Some(Source::Silent(_)) | None => {}
        }
        !matches!(
            self.learn(from, Source::Silent(now)),
            Some(Source::Silent(_))
        )
    }

    fn learn(&mut self, from: IpAddr, source: Source) -> Option<Source> {
        if self.known.len() >= SOURCES && !self.known.contains_key(&from) {
            self.known.pop_first();
        }
        self.known.insert(from, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_never_answered_is_left_alone_for_a_while_and_told_of_once() {
        let mut sources = Sources::default();
        let [silent, other] = [2, 3].map(|last| IpAddr::from([10, 0, 1, last]));
        let start = Timestamp::ZERO;
        assert!(sources.may_answer(start, silent) && sources.failed(start, silent));
        assert!(!sources.may_answer(start, silent) && sources.may_answer(start, other));
        let later = start + UNANSWERED;
        assert!(sources.may_answer(later, silent) && !sources.failed(later, silent));
        sources.answered(silent);
        assert!(sources.failed(later, silent) && sources.may_answer(later, silent));
    }

    #[test]
    fn there_is_room_for_so_many_proxies() {
        let mut sources = Sources::default();
        for number in 0..=u32::try_from(SOURCES).unwrap() {
            sources.failed(Timestamp::ZERO, IpAddr::V4(number.into()));
        }
        assert_eq!(sources.known.len(), SOURCES);
    }
}
