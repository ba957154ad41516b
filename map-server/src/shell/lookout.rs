//! Whom does the control tunnel look out for, besides the agents, and who hears of whom it sees?

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lisp_proto::{PublicKey, Timestamp};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::clock::Clock;
use crate::lookout::{Lookout, Sight};

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

/// One look at the peers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// When it began.
    pub(super) began: Timestamp,
    /// Who is elsewhere than before.
    pub(super) news: Vec<(PublicKey, SocketAddr)>,
}

/// The control tunnel's end of it.
#[derive(Debug)]
pub(super) struct Reporter {
    pub(super) orders: Orders,
    reports: UnboundedSender<Look>,
    clock: Clock,
    lookout: Lookout,
}

impl Reporter {
    /// Builds it, with the other ends of its two channels.
    pub(super) fn new(clock: Clock) -> (Self, Orders, UnboundedReceiver<Look>) {
        let orders = Orders::default();
        let (reports, reported) = unbounded_channel();
        let reporter = Self {
            orders: orders.clone(),
            reports,
            clock,
            lookout: Lookout::new(clock.now()),
        };
        (reporter, orders, reported)
    }

    /// Takes note that the holder of `key` is watched from now on, perhaps once more, or no longer.
    pub(super) fn note(&mut self, key: PublicKey, watch: bool) {
        self.lookout.note(self.clock.now(), key, watch);
        self.orders.done(key, watch);
    }

    /// Whether somebody may come any moment.
    pub(super) fn is_searching(&self) -> bool {
        self.lookout.is_searching()
    }

    /// When the next look may be, at the earliest.
    pub(super) fn earliest(&self) -> Instant {
        self.clock.instant(self.lookout.earliest())
    }

    /// When the next look shall be, at the latest.
    pub(super) fn latest(&self) -> Instant {
        self.clock.instant(self.lookout.latest())
    }

    /// The time, as the state machine has it.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What the state machine calls `moment`.
    pub(super) fn of(&self, moment: Instant) -> Timestamp {
        self.clock.of(moment)
    }

    /// A look that began at `began` has found `peers`: reports those that are elsewhere than before. One that found
    /// nothing new is reported as well: somebody may wait for it.
    pub(super) fn found(&mut self, began: Timestamp, peers: impl Iterator<Item = Sight>) {
        let news = self.lookout.found((began, self.clock.now()), peers);
        // At the end nobody hears of it.
        self.reports.send(Look { began, news }).unwrap_or_default();
    }

    /// A look could not tell anything.
    pub(super) fn failed(&mut self) {
        self.lookout.failed(self.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: PublicKey = PublicKey([2; 32]);

    #[test]
    fn a_look_that_finds_nobody_elsewhere_is_reported_as_well() {
        let clock = Clock::start();
        let (mut reporter, _orders, mut reports) = Reporter::new(clock);
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 1));
        let sight = Sight {
            key: HIDDEN,
            endpoint,
            shaken: Timestamp::ZERO,
            received: 0,
        };
        for news in [vec![(HIDDEN, endpoint)], vec![]] {
            let began = clock.now();
            reporter.found(began, [sight].into_iter());
            assert_eq!(reports.try_recv().unwrap(), Look { began, news });
        }
        reporter.failed();
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
