//! Has the far end heard of it?
//!
//! Unsolicited Map-Notifies are sent again until they are acknowledged (RFC 9301 §5.7), or it has
//! become hopeless. What a receiver is told about a prefix is told once: news about a prefix takes
//! the place of older news.
//!
//! Every transmission has a nonce of its own, so that a receiver which accepts growing nonces only
//! never mistakes a retransmission for something it has overtaken; an acknowledgement of any of
//! the latest is enough. Only the answer to a subscription has the nonce of its request throughout
//! (RFC 9437 §5): by that the subscriber knows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use lisp_proto::{Deadlines, EidPrefix, Handoff, Nonce, Record, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;

use super::actions::Via;
use super::contacts::Contact;
use super::held::HeldKey;
use super::limits;
use super::sites::{Registrant, XtrIndex};

/// Where acknowledgements come from: for an xTR the same address as long as it is the same xTR.
pub(crate) type Peer = (Via, IpAddr);

/// Names what one receiver is told at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NotifyKey {
    pub(crate) receiver: Registrant,
    number: u64,
}

/// What a Map-Notify is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It says what has become of mappings.
    News,
    /// It says the same in answer to the Map-Request with this nonce.
    Answer(Nonce),
    /// It says that a subscription is over, and nothing about mappings: it neither takes the place
    /// of news nor gives way to them.
    Receipt(Nonce),
}

/// Who is to be told what.
#[derive(Clone, Debug)]
pub(crate) struct Telling {
    pub(crate) receiver: Registrant,
    /// Where to, if not where the xTR registered from last.
    pub(crate) to: Option<Contact>,
    pub(crate) purpose: Purpose,
    pub(crate) records: Vec<Record>,
    /// What is said about the connections of the client that the records are of.
    pub(crate) handoff: Option<Handoff>,
}

/// A Map-Notify that awaits its acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Outstanding {
    pub(crate) telling: Telling,
    /// When it was first sent.
    pub(crate) since: Option<Timestamp>,
    /// How often it was sent.
    pub(crate) times: u32,
    /// Of the latest transmissions, the last one last.
    nonces: VecDeque<(Peer, Nonce)>,
    interval: Duration,
    /// Map-Replies that wait for the acknowledgement.
    pub(crate) waiting: Vec<HeldKey>,
    /// Other Map-Notifies that leave no later than the acknowledgement comes.
    pub(crate) next: Vec<NotifyKey>,
}

impl Outstanding {
    /// Returns the nonce of the last transmission.
    pub(crate) fn last_nonce(&self) -> Option<Nonce> {
        self.nonces.back().map(|(_, nonce)| *nonce)
    }
}

/// A Map-Notify that was begun.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) key: NotifyKey,
    /// Map-Replies that wait for one acknowledgement more than before.
    pub(crate) waiting_on: Vec<HeldKey>,
    /// Map-Replies that wait for one acknowledgement less than before.
    pub(crate) spared: Vec<HeldKey>,
}

/// What newer news takes over from older news.
#[derive(Debug, Default)]
struct Handed {
    waiting: BTreeSet<HeldKey>,
    waiting_on: Vec<HeldKey>,
    spared: Vec<HeldKey>,
}

/// Nonces of one receiver.
#[derive(Clone, Copy, Debug)]
struct Counter {
    next: u64,
    /// Nonces from this one on are not reserved in the store.
    floor: u64,
}

/// All Map-Notifies that await an acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Notifier {
    outstanding: BTreeMap<NotifyKey, Outstanding>,
    by_eid: BTreeMap<(Registrant, EidPrefix), NotifyKey>,
    by_nonce: BTreeMap<(Peer, Nonce), NotifyKey>,
    timers: Deadlines<NotifyKey>,
    counters: BTreeMap<XtrIndex, Counter>,
    floor: Nonce,
    next_number: u64,
}

impl Notifier {
    /// Builds an empty set; no nonce will be below `floor`.
    pub(crate) const fn new(floor: Nonce) -> Self {
        Self {
            outstanding: BTreeMap::new(),
            by_eid: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            timers: Deadlines::new(),
            counters: BTreeMap::new(),
            floor,
            next_number: 0,
        }
    }

    /// Returns what is being told under `key`.
    pub(crate) fn get(&self, key: &NotifyKey) -> Option<&Outstanding> {
        self.outstanding.get(key)
    }

    /// Returns where `receiver` is being told all of `records` already.
    pub(crate) fn telling(&self, receiver: Registrant, records: &[Record]) -> Option<NotifyKey> {
        let eid = records.first()?.eid;
        let key = self.by_eid.get(&(receiver, eid))?;
        let told = &self.outstanding.get(key)?.telling.records;
        let all = records.iter().all(|record| told.contains(record));
        all.then_some(*key)
    }

    /// Whether something would have to give way to more.
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding.len() >= limits::OUTSTANDING_NOTIFIES
    }

    /// Makes `held` wait for the acknowledgement of `key`; nothing happens if none is awaited.
    pub(crate) fn hold(&mut self, key: &NotifyKey, held: HeldKey) {
        if let Some(outstanding) = self.outstanding.get_mut(key) {
            outstanding.waiting.push(held);
        }
    }

    /// Forgets that `held` waits for what `receiver` is being told: it was answered without.
    pub(crate) fn let_go(&mut self, receiver: XtrIndex, held: &HeldKey) {
        for key in self.of_xtr(receiver) {
            if let Some(outstanding) = self.outstanding.get_mut(&key) {
                outstanding.waiting.retain(|waiting| waiting != held);
            }
        }
    }

    /// Makes `next`, which was put off, leave when `key` is acknowledged, if that is earlier.
    pub(crate) fn follow(&mut self, key: &NotifyKey, next: NotifyKey) {
        if let Some(outstanding) = self.outstanding.get_mut(key) {
            outstanding.next.push(next);
        }
    }

    /// Starts telling, in place of what the receiver was being told about the same prefixes; who
    /// waited for that waits for this. The first transmission is due at once: see
    /// [`Self::transmit`].
    pub(crate) fn start(&mut self, telling: Telling) -> Started {
        let receiver = telling.receiver;
        let number = self.next_number;
        self.next_number += 1;
        let key = NotifyKey { receiver, number };
        let mut olders = Vec::new();
        let is_receipt = matches!(telling.purpose, Purpose::Receipt(_));
        for record in telling.records.iter().filter(|_| !is_receipt) {
            let older = self.by_eid.insert((receiver, record.eid), key);
            olders.extend(older.filter(|older| !olders.contains(older)));
            if let Some(outstanding) = older.and_then(|older| self.outstanding.get_mut(&older)) {
                outstanding
                    .telling
                    .records
                    .retain(|it| it.eid != record.eid);
            }
        }
        let mut handed = Handed::default();
        for older in olders {
            self.overtake(&older, &mut handed);
        }
        let Handed {
            waiting,
            waiting_on,
            spared,
        } = handed;
        let outstanding = Outstanding {
            telling,
            since: None,
            times: 0,
            nonces: VecDeque::new(),
            interval: limits::NOTIFY_INTERVAL,
            waiting: waiting.into_iter().collect(),
            next: Vec::new(),
        };
        self.outstanding.insert(key, outstanding);
        Started {
            key,
            waiting_on,
            spared,
        }
    }

    /// Hands those who wait for `key`, of which newer news has taken records, to the newer news; each
    /// of them once, or their number would double with every change while the receiver is silent.
    fn overtake(&mut self, key: &NotifyKey, handed: &mut Handed) {
        let Some(outstanding) = self.outstanding.get(key) else {
            return;
        };
        let over = outstanding.telling.records.is_empty();
        for held in &outstanding.waiting {
            let is_new = handed.waiting.insert(*held);
            match (is_new, over) {
                (true, false) => handed.waiting_on.push(*held),
                (false, true) => handed.spared.push(*held),
                (true, true) | (false, false) => {}
            }
        }
        if over {
            self.remove(key);
        }
    }

    /// Puts the first transmission off until `at`.
    pub(crate) fn defer(&mut self, key: &NotifyKey, at: Timestamp) {
        self.timers.set(*key, at);
    }

    /// Whether the first transmission of `key` is still to come.
    pub(crate) fn is_deferred(&self, key: &NotifyKey) -> bool {
        let outstanding = self.outstanding.get(key);
        outstanding.is_some_and(|outstanding| outstanding.times == 0)
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Takes the oldest one out if there are too many.
    pub(crate) fn overflow(&mut self) -> Option<Outstanding> {
        if self.outstanding.len() <= limits::OUTSTANDING_NOTIFIES {
            return None;
        }
        let key = self.timers.pop_due(Timestamp(u64::MAX))?;
        self.remove(&key)
    }

    /// Returns nonce and content of the next transmission, which goes to `peer`, and arms the
    /// timer for the one after.
    pub(crate) fn transmit(
        &mut self,
        now: Timestamp,
        key: &NotifyKey,
        peer: Peer,
        rng: &mut StdRng,
    ) -> Option<(Nonce, &Telling)> {
        let outstanding = self.outstanding.get_mut(key)?;
        let floor = self.floor.0;
        let counter = self.counters.entry(key.receiver.xtr);
        let counter = counter.or_insert(Counter { next: floor, floor });
        let nonce = match outstanding.telling.purpose {
            Purpose::Answer(nonce) | Purpose::Receipt(nonce) => {
                // What is published from now on is newer than the answer.
                counter.next = counter.next.max(nonce.0);
                nonce
            }
            Purpose::News => {
                counter.next = counter.next.saturating_add(1);
                Nonce(counter.next)
            }
        };
        if outstanding.nonces.back() != Some(&(peer, nonce)) {
            outstanding.nonces.push_back((peer, nonce));
        }
        self.by_nonce.insert((peer, nonce), *key);
        if outstanding.nonces.len() > limits::NONCES_PER_NOTIFY
            && let Some(oldest) = outstanding.nonces.pop_front()
        {
            self.by_nonce.remove(&oldest);
        }
        let wait = match peer.0 {
            Via::Tunnel => outstanding.interval,
            Via::Plain => {
                let waits = &limits::PLAIN_NOTIFY_WAITS;
                let wait = waits
                    .get(outstanding.times as usize)
                    .or_else(|| waits.last());
                wait.copied().unwrap_or(outstanding.interval)
            }
        };
        outstanding.interval = (outstanding.interval * 2).min(limits::NOTIFY_INTERVAL_MAX);
        outstanding.times = outstanding.times.saturating_add(1);
        outstanding.since.get_or_insert(now);
        // A little disorder keeps retransmissions to many receivers from coming in waves.
        let wait = wait.mul_f64(rng.random_range(0.9..1.1));
        self.timers.set(*key, now + wait);
        Some((nonce, &outstanding.telling))
    }

    /// Counts on from `nonce`, with which `receiver` subscribes; returns whether that is above all
    /// that it was sent.
    pub(crate) fn count_from(&mut self, receiver: XtrIndex, nonce: Nonce) -> bool {
        let floor = self.floor.0;
        let counter = self.counters.entry(receiver);
        let counter = counter.or_insert(Counter { next: floor, floor });
        let is_above = nonce.0 > counter.next;
        counter.next = counter.next.saturating_add(1).max(nonce.0);
        is_above
    }

    /// Whether nothing that was sent to `receiver` after it had subscribed with `nonce` seems newer
    /// than the answer.
    pub(crate) fn is_next(&self, receiver: XtrIndex, nonce: Nonce) -> bool {
        let counter = self.counters.get(&receiver);
        counter.is_none_or(|counter| nonce.0 >= counter.next)
    }

    /// Returns the nonce up to which the store must reserve nonces of `receiver`, when its
    /// reservation is used up.
    pub(crate) fn reserve(&mut self, receiver: XtrIndex) -> Option<Nonce> {
        let counter = self.counters.get_mut(&receiver)?;
        if counter.next < counter.floor {
            return None;
        }
        counter.floor = counter.next.saturating_add(limits::NOTIFY_RESERVE);
        Some(Nonce(counter.floor))
    }

    /// Lists the reservations.
    pub(crate) fn floors(&self) -> impl Iterator<Item = (XtrIndex, Nonce)> {
        self.counters
            .iter()
            .map(|(receiver, counter)| (*receiver, Nonce(counter.floor)))
    }

    /// Takes over a reservation of an earlier run.
    pub(crate) fn restore_floor(&mut self, receiver: XtrIndex, floor: Nonce) {
        let floor = floor.max(self.floor).0;
        self.counters
            .insert(receiver, Counter { next: floor, floor });
    }

    /// Returns what `nonce` from `peer` would acknowledge.
    pub(crate) fn awaited(&self, peer: Peer, nonce: Nonce) -> Option<NotifyKey> {
        self.by_nonce.get(&(peer, nonce)).copied()
    }

    /// Stops telling: it was acknowledged, or has become pointless.
    pub(crate) fn remove(&mut self, key: &NotifyKey) -> Option<Outstanding> {
        let outstanding = self.outstanding.remove(key)?;
        for sent in &outstanding.nonces {
            // The nonce of an answer is chosen by its receiver, and may be taken.
            if self.by_nonce.get(sent) == Some(key) {
                self.by_nonce.remove(sent);
            }
        }
        for record in &outstanding.telling.records {
            let about = (key.receiver, record.eid);
            if self.by_eid.get(&about) == Some(key) {
                self.by_eid.remove(&about);
            }
        }
        self.timers.cancel(key);
        Some(outstanding)
    }

    /// Lists what is being told to `xtr`, or to those who share its entry.
    pub(crate) fn of_xtr(&self, xtr: XtrIndex) -> Vec<NotifyKey> {
        let first = NotifyKey {
            receiver: Registrant::any(xtr),
            number: 0,
        };
        let keys = self.outstanding.range(first..).map(|(key, _)| *key);
        keys.take_while(|key| key.receiver.xtr == xtr).collect()
    }

    /// Starts over with short pauses if `key` was sent more than once in vain; returns whether
    /// it was.
    pub(crate) fn hurry(&mut self, key: &NotifyKey) -> bool {
        let Some(outstanding) = self.outstanding.get_mut(key) else {
            return false;
        };
        outstanding.interval = limits::NOTIFY_INTERVAL;
        outstanding.times > 1
    }

    /// Takes one timer out that is due.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<NotifyKey> {
        self.timers.pop_due(now)
    }

    /// Returns when the next retransmission is due.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.next()
    }
}
