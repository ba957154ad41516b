//! Who asks where he is seen, whom does WireGuard watch for that, and what has it seen?

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::Ipv4Net;
use lisp_proto::{Deadlines, EidPrefix, InstanceId, Nonce, PublicKey, Timestamp};

use super::actions::Actions;
use super::limits;
use super::sites::XtrIndex;

/// Who asked about what: an xTR asks once for each of its data interfaces.
pub(super) type Subject = (XtrIndex, EidPrefix);

/// A question of an xTR that is answered whenever the answer changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) nonce: Nonce,
    pub(super) source: SocketAddr,
    pub(super) full_tag: bool,
    /// A look at the peers that began before this may have seen it where it is no longer.
    pub(super) since: Timestamp,
    /// What was answered, to this or to an earlier question about the same.
    pub(super) told: Option<SocketAddr>,
    /// Whether this one was answered.
    pub(super) answered: bool,
    /// The data key that the control interface has as a peer for it.
    watched: Option<PublicKey>,
}

impl Question {
    pub(super) const fn new(
        now: Timestamp,
        nonce: Nonce,
        source: SocketAddr,
        full_tag: bool,
    ) -> Self {
        Self {
            nonce,
            source,
            full_tag,
            since: now,
            told: None,
            answered: false,
            watched: None,
        }
    }

    /// Whether a data key is watched for it.
    pub(super) const fn is_watched(&self) -> bool {
        self.watched.is_some()
    }
}

/// What is known of where xTRs are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sightings {
    /// Where the holders of keys were last seen: of control keys, and of those that are watched.
    seen: BTreeMap<PublicKey, SocketAddr>,
    questions: BTreeMap<Subject, Question>,
    /// For which questions each data key is watched. Several xTRs may claim one: none of them keeps the others out.
    watched: BTreeMap<PublicKey, BTreeSet<Subject>>,
    /// Those whose answer waits for a look at the peers.
    waiting: BTreeSet<Subject>,
    expiry: Deadlines<Subject>,
}

impl Sightings {
    /// Returns how many data keys are watched.
    pub(crate) fn len(&self) -> usize {
        self.watched.len()
    }

    /// Returns when the next question is forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    /// Takes a question in, until `until`; false if its xTR has too many others.
    pub(super) fn ask(
        &mut self,
        subject: Subject,
        mut question: Question,
        until: Timestamp,
    ) -> bool {
        if let Some(before) = self.questions.get(&subject) {
            (question.told, question.watched) = (before.told, before.watched);
        } else if self.asked_by(subject.0).count() >= limits::SIGHTINGS_PER_XTR {
            return false;
        }
        self.questions.insert(subject, question);
        self.expiry.set(subject, until);
        true
    }

    pub(super) fn question(&mut self, subject: &Subject) -> Option<&mut Question> {
        self.questions.get_mut(subject)
    }

    /// Returns the questions of `xtr`, with their subjects.
    pub(super) fn asked_by(&self, xtr: XtrIndex) -> impl Iterator<Item = (&Subject, &Question)> {
        let least = EidPrefix::new(InstanceId(0), Ipv4Net::default().into());
        let from = self.questions.range((xtr, least)..);
        from.take_while(move |((by, _), _)| *by == xtr)
    }

    /// Returns what `xtr` has asked about.
    pub(super) fn of(&self, xtr: XtrIndex) -> Vec<Subject> {
        self.asked_by(xtr).map(|(subject, _)| *subject).collect()
    }

    /// Forgets the questions that were not asked again until `now`.
    pub(super) fn expire(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(subject) = self.expiry.pop_due(now) {
            self.watch(subject, None, actions);
            self.waiting.remove(&subject);
            self.questions.remove(&subject);
        }
    }

    /// Has the answer to `subject` wait for a look at the peers.
    pub(super) fn wait(&mut self, subject: Subject) {
        self.waiting.insert(subject);
    }

    /// It waits no longer.
    pub(super) fn settle(&mut self, subject: &Subject) {
        self.waiting.remove(subject);
    }

    /// Returns those that wait for a look that began at `began` at the earliest.
    pub(super) fn waiting_for(&mut self, began: Timestamp) -> BTreeSet<Subject> {
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        let due = waiting.into_iter();
        due.filter(|subject| self.question(subject).is_some_and(|it| it.since <= began))
            .collect()
    }

    /// Returns where the holder of `key` was last seen.
    pub(super) fn at(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.seen.get(key).copied()
    }

    /// Notes where the holder of `key` is seen; true if that is news.
    pub(super) fn note(&mut self, key: PublicKey, at: SocketAddr) -> bool {
        self.seen.insert(key, at) != Some(at)
    }

    /// Returns the questions for which `key` is watched.
    pub(super) fn watchers(&self, key: &PublicKey) -> impl Iterator<Item = Subject> + '_ {
        let watchers = self.watched.get(key).into_iter();
        watchers.flatten().copied()
    }

    /// Whether there is room to watch `key`.
    pub(super) fn may_watch(&self, key: &PublicKey) -> bool {
        self.watched.contains_key(key) || self.watched.len() < limits::WATCHED_KEYS
    }

    /// Has `wanted` watched for `subject`, and nothing else.
    pub(super) fn watch(
        &mut self,
        subject: Subject,
        wanted: Option<PublicKey>,
        actions: &mut Actions,
    ) {
        let Some(question) = self.question(&subject) else {
            return;
        };
        let before = std::mem::replace(&mut question.watched, wanted);
        if before == wanted {
            return;
        }
        if let Some(key) = wanted {
            let watchers = self.watched.entry(key).or_default();
            if watchers.is_empty() {
                actions.watch(key);
            }
            watchers.insert(subject);
        }
        let Some(key) = before else {
            return;
        };
        if let Some(watchers) = self.watched.get_mut(&key) {
            watchers.remove(&subject);
            if watchers.is_empty() {
                self.watched.remove(&key);
                self.seen.remove(&key);
                actions.unwatch(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finds_its_own_questions_in_whatever_instance_and_family() {
        let mut sightings = Sightings::default();
        let source = SocketAddr::from(([10, 0, 0, 1], 4342));
        let question = Question::new(Timestamp::ZERO, Nonce(1), source, false);
        let eids = ["0.0.0.0/0", "::/0", "255.255.255.255", "10.0.0.0/8"];
        let mut subjects = BTreeSet::new();
        for (xtr, eid) in (0..3).flat_map(|xtr| eids.map(|eid| (xtr, eid))) {
            let net = eid.parse::<EidPrefix>().unwrap().net();
            for iid in [0, u32::MAX] {
                let subject = (XtrIndex::nth(xtr), EidPrefix::new(InstanceId(iid), net));
                assert!(sightings.ask(subject, question, Timestamp::ZERO));
                subjects.insert(subject);
            }
        }
        for xtr in [0, 1, 2].map(XtrIndex::nth) {
            let own = subjects.iter().copied().filter(|(by, _)| *by == xtr);
            assert_eq!(sightings.of(xtr), own.collect::<Vec<_>>());
        }
        sightings.expire(Timestamp::ZERO, &mut Actions::new());
        assert!(sightings.questions.is_empty());
    }

    #[test]
    fn nobody_has_more_questions_than_he_may() {
        let mut sightings = Sightings::default();
        let source = SocketAddr::from(([10, 0, 0, 1], 4342));
        let question = Question::new(Timestamp::ZERO, Nonce(1), source, false);
        let net = "10.0.0.1".parse::<EidPrefix>().unwrap().net();
        let about = |iid: usize| EidPrefix::new(InstanceId(u32::try_from(iid).unwrap()), net);
        let asks = |sightings: &mut Sightings, iid| {
            sightings.ask((XtrIndex::nth(0), about(iid)), question, Timestamp::ZERO)
        };
        let most = limits::SIGHTINGS_PER_XTR;
        assert!((0..most).all(|iid| asks(&mut sightings, iid)));
        assert!(!asks(&mut sightings, most));
        assert!(asks(&mut sightings, 0), "it is there");
    }
}
