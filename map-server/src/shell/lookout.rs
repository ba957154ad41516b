//! Whom does the control tunnel look out for, besides the agents, and who hears of whom it sees?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lisp_proto::PublicKey;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// How often is looked where the peers are.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same, while somebody is behind a NAT, which may change its mind.
const INTERVAL_WATCHING: Duration = Duration::from_secs(2);
/// The same, as a multiple of the time that the last look took.
const INTERVAL_SHARE: u32 = 64;
/// Least time between two looks, however many agents register.
const PAUSE: Duration = Duration::from_secs(1);
/// The same, while somebody is looked for who may come any moment.
const PAUSE_IN_SEARCH: Duration = Duration::from_millis(100);
/// The same, as a multiple of the time that the last look took: among very many peers it takes long.
const PAUSE_SHARE: u32 = 16;
/// How long somebody is looked for that hard.
const SEARCH: Duration = Duration::from_secs(10);
/// Two handshakes are further apart than that, and the same one is told of with less of a difference.
const HANDSHAKE_APART: Duration = Duration::from_secs(1);
/// Length of the first message of a handshake.
const INITIATION: u64 = 148;

/// What the state machine wants of the control tunnel: whom it shall let shake hands besides the agents.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    slips: Mutex<Slips>,
    /// Told of each change.
    bell: Notify,
}

/// No longer than twice the keys that the state machine may watch, however often it changes its mind.
#[derive(Debug, Default)]
struct Slips {
    wanted: BTreeSet<PublicKey>,
    done: BTreeSet<PublicKey>,
    /// Those about which there is something to do.
    open: BTreeSet<PublicKey>,
}

impl Orders {
    /// Orders that the holder of `key` is watched from now on, or no longer.
    pub(super) fn give(&self, key: PublicKey, watch: bool) {
        let mut slips = self.slips();
        if watch {
            slips.wanted.insert(key);
        } else {
            slips.wanted.remove(&key);
        }
        if watch || slips.done.contains(&key) {
            slips.open.insert(key);
        } else {
            slips.open.remove(&key);
        }
        drop(slips);
        self.0.bell.notify_one();
    }

    /// Returns the keys about which there is something to do, and whether they shall be watched.
    pub(super) fn open(&self) -> Vec<(PublicKey, bool)> {
        let slips = self.slips();
        let open = slips.open.iter();
        open.map(|key| (*key, slips.wanted.contains(key))).collect()
    }

    /// Notes that `key` is watched, or is no longer. It stays open if the order has changed meanwhile.
    pub(super) fn done(&self, key: PublicKey, watch: bool) {
        let mut slips = self.slips();
        if watch {
            slips.done.insert(key);
        } else {
            slips.done.remove(&key);
        }
        if slips.wanted.contains(&key) == watch {
            slips.open.remove(&key);
        }
    }

    /// Waits for another order.
    pub(super) async fn given(&self) {
        self.0.bell.notified().await;
    }

    fn slips(&self) -> MutexGuard<'_, Slips> {
        self.0.slips.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a peer is that has shaken hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) key: PublicKey,
    pub(super) endpoint: SocketAddr,
    /// When it has last done so.
    pub(super) shaken: Instant,
    /// Bytes that have come from it.
    pub(super) received: u64,
}

impl Sight {
    /// Whether nothing has come since `before` but first messages of handshakes that did not come about. WireGuard answers
    /// where these come from, and somebody may have recorded them who is not the peer.
    fn may_be_repeated(&self, before: &Self) -> bool {
        let is_newer = self.shaken > before.shaken + HANDSHAKE_APART;
        let received = self.received.wrapping_sub(before.received);
        !is_newer && received > 0 && received.is_multiple_of(INITIATION)
    }
}

/// One look at the peers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// When it began.
    pub(super) began: Instant,
    /// Who is elsewhere than before.
    pub(super) news: Vec<(PublicKey, SocketAddr)>,
}

/// The control tunnel's end of it.
#[derive(Debug)]
pub(super) struct Lookout {
    pub(super) orders: Orders,
    reports: UnboundedSender<Look>,
    /// What was reported, as of the latest look that found the same.
    reported: HashMap<PublicKey, Sight>,
    /// Who is watched and was not seen yet, since when.
    sought: BTreeMap<PublicKey, Instant>,
    watched: BTreeSet<PublicKey>,
    last: Instant,
    took: Duration,
}

impl Lookout {
    /// Builds it, with the other ends of its two channels.
    pub(super) fn new(now: Instant) -> (Self, Orders, UnboundedReceiver<Look>) {
        let orders = Orders::default();
        let (reports, reported) = unbounded_channel();
        let lookout = Self {
            orders: orders.clone(),
            reports,
            reported: HashMap::new(),
            sought: BTreeMap::new(),
            watched: BTreeSet::new(),
            last: now,
            took: Duration::ZERO,
        };
        (lookout, orders, reported)
    }

    /// Takes note that the holder of `key` is watched from now on, perhaps once more, or no longer.
    pub(super) fn note(&mut self, now: Instant, key: PublicKey, watch: bool) {
        self.reported.remove(&key);
        if watch {
            self.sought.insert(key, now);
            self.watched.insert(key);
        } else {
            self.sought.remove(&key);
            self.watched.remove(&key);
        }
        self.orders.done(key, watch);
    }

    /// Whether somebody may come any moment.
    pub(super) fn is_searching(&self) -> bool {
        !self.sought.is_empty()
    }

    /// When the next look may be, at the earliest.
    pub(super) fn earliest(&self) -> Instant {
        let pause = if self.is_searching() {
            PAUSE_IN_SEARCH
        } else {
            PAUSE
        };
        self.last + pause.max(self.took * PAUSE_SHARE)
    }

    /// When the next look shall be, at the latest.
    pub(super) fn latest(&self) -> Instant {
        let interval = match self.watched.is_empty() {
            true => INTERVAL,
            false => INTERVAL_WATCHING.max(self.took * INTERVAL_SHARE),
        };
        self.earliest().max(self.last + interval.min(INTERVAL))
    }

    /// A look that began at `began` has found `peers`: reports those that are elsewhere than before. One that found
    /// nothing new is reported as well: somebody may wait for it.
    pub(super) fn found(
        &mut self,
        (began, now): (Instant, Instant),
        peers: impl Iterator<Item = Sight>,
    ) {
        (self.last, self.took) = (now, now - began);
        let mut news = Vec::new();
        for sight in peers {
            let Sight { key, endpoint, .. } = sight;
            self.sought.remove(&key);
            let before = self.reported.get(&key);
            let is_elsewhere = before.is_none_or(|before| before.endpoint != endpoint);
            if is_elsewhere && before.is_some_and(|before| sight.may_be_repeated(before)) {
                continue;
            }
            self.reported.insert(key, sight);
            if is_elsewhere {
                news.push((key, endpoint));
            }
        }
        self.search_on(now);
        // At the end nobody hears of it.
        self.reports.send(Look { began, news }).unwrap_or_default();
    }

    /// A look that ended at `now` could not tell anything: the next one comes no sooner than after any other.
    pub(super) fn failed(&mut self, now: Instant) {
        self.last = now;
        self.search_on(now);
    }

    /// Those who were looked for in vain for so long are looked for no harder than others.
    fn search_on(&mut self, now: Instant) {
        self.sought.retain(|_, since| now - *since < SEARCH);
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Clock;
    use super::*;

    const AGENT: PublicKey = PublicKey([1; 32]);
    const HIDDEN: PublicKey = PublicKey([2; 32]);

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn sight(key: PublicKey, endpoint: SocketAddr, shaken: Instant, received: u64) -> Sight {
        Sight {
            key,
            endpoint,
            shaken,
            received,
        }
    }

    #[test]
    fn only_what_has_changed_is_reported() {
        let now = Clock::present();
        let (mut lookout, _orders, mut reports) = Lookout::new(now);
        let (here, there) = (socket("192.0.2.1:1"), socket("192.0.2.1:2"));
        for (seen, news) in [
            (None, None),
            (Some(here), Some(here)),
            (Some(here), None),
            (None, None),
            (Some(there), Some(there)),
        ] {
            let peers = seen.map(|at| sight(AGENT, at, now, 0));
            lookout.found((now, now), peers.into_iter());
            let reported = reports.try_recv().unwrap();
            assert_eq!(reported.began, now);
            assert_eq!(reported.news, Vec::from_iter(news.map(|at| (AGENT, at))));
        }
        lookout.note(now, AGENT, false);
        lookout.found((now, now), [sight(AGENT, there, now, 0)].into_iter());
        let anew = reports.try_recv().unwrap().news;
        assert_eq!(anew, [(AGENT, there)], "it is another peer now");
    }

    #[test]
    fn an_initiation_alone_tells_nobody_where_its_sender_is() {
        let start = Clock::present();
        let (here, there) = (socket("192.0.2.1:1"), socket("192.0.2.9:9"));
        let elsewhere = |after: Duration, bytes: u64| {
            let (mut lookout, _orders, mut reports) = Lookout::new(start);
            lookout.found((start, start), [sight(AGENT, here, start, 500)].into_iter());
            reports.try_recv().unwrap();
            let moved = sight(AGENT, there, start + after, 500 + bytes);
            lookout.found((start, start), [moved].into_iter());
            let is_told = !reports.try_recv().unwrap().news.is_empty();
            // Once it is back nothing has happened.
            lookout.found((start, start), [sight(AGENT, here, start, 900)].into_iter());
            assert_eq!(reports.try_recv().unwrap().news.is_empty(), !is_told);
            is_told
        };
        let young = Duration::from_millis(20);
        assert!(!elsewhere(young, 148), "the handshake is the old one");
        assert!(!elsewhere(young, 3 * 148));
        assert!(
            elsewhere(Duration::from_secs(5), 148),
            "it has shaken hands"
        );
        assert!(elsewhere(young, 32), "a keepalive of its session");
        assert!(elsewhere(young, 148 + 32));
        // Not every data plane counts keepalives.
        assert!(elsewhere(young, 0));
    }

    #[test]
    fn who_is_new_is_looked_for_often_but_not_for_ever() {
        let start = Clock::present();
        let (mut lookout, _orders, _reports) = Lookout::new(start);
        assert_eq!(lookout.earliest(), start + PAUSE);
        lookout.note(start, HIDDEN, true);
        assert_eq!(lookout.earliest(), start + PAUSE_IN_SEARCH);
        let slow = Duration::from_millis(50);
        lookout.found((start, start + slow), [].into_iter());
        assert_eq!(lookout.earliest(), start + slow + slow * PAUSE_SHARE);
        let late = start + SEARCH;
        lookout.found((late, late), [].into_iter());
        assert!(!lookout.is_searching());
        assert_eq!(lookout.latest(), late + INTERVAL_WATCHING);
        lookout.note(late, HIDDEN, true);
        let seen = socket("192.0.2.1:1");
        lookout.found((late, late), [sight(HIDDEN, seen, late, 0)].into_iter());
        assert!(!lookout.is_searching());
        lookout.note(late, HIDDEN, false);
        assert_eq!(lookout.latest(), late + INTERVAL);
    }

    #[test]
    fn a_look_that_fails_is_followed_by_a_pause_and_ends_a_search_as_well() {
        let start = Clock::present();
        let (mut lookout, _orders, mut reports) = Lookout::new(start);
        lookout.note(start, HIDDEN, true);
        for past in [SEARCH / 2, SEARCH, SEARCH * 2] {
            let now = start + past;
            lookout.failed(now);
            assert!(lookout.latest() > now && lookout.earliest() > now);
            assert_eq!(lookout.is_searching(), past < SEARCH);
        }
        assert!(reports.try_recv().is_err(), "nobody was seen, or not seen");
    }

    #[test]
    fn orders_that_are_taken_back_before_they_are_done_leave_nothing() {
        let orders = Orders::default();
        for number in 0..9 {
            orders.give(PublicKey([number; 32]), true);
            orders.give(PublicKey([number; 32]), false);
        }
        assert_eq!(orders.open(), []);
        orders.give(HIDDEN, true);
        assert_eq!(orders.open(), [(HIDDEN, true)]);
        orders.done(HIDDEN, true);
        assert_eq!(orders.open(), []);
        orders.give(HIDDEN, false);
        orders.give(HIDDEN, true);
        assert_eq!(orders.open(), [(HIDDEN, true)], "it is to be seen anew");
        orders.give(HIDDEN, false);
        orders.done(HIDDEN, true);
        assert_eq!(orders.open(), [(HIDDEN, false)], "that came too late");
        orders.done(HIDDEN, false);
        assert_eq!(orders.open(), []);
    }
}
