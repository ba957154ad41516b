//! Whom does the control tunnel look out for, besides the agents, and who hears of whom it sees?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::PublicKey;
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

/// What the state machine wants of the control tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Let the holder of this key shake hands, and nothing else.
    Watch(PublicKey),
    /// No longer.
    Unwatch(PublicKey),
}

/// Takes orders for the control tunnel.
#[derive(Clone, Debug)]
pub(super) struct Orders(UnboundedSender<Order>);

impl Orders {
    /// Passes an order on. There are no more of them than the state machine has keys to watch.
    pub(super) fn send(&self, order: Order) {
        // Without a control tunnel, and at the end, nobody takes it.
        self.0.send(order).unwrap_or_default();
    }
}

/// Keys, and where their holders are seen.
pub(super) type Sightings = Vec<(PublicKey, SocketAddr)>;

/// The control tunnel's end of it.
#[derive(Debug)]
pub(super) struct Lookout {
    pub(super) orders: UnboundedReceiver<Order>,
    reports: UnboundedSender<Sightings>,
    /// What was reported.
    reported: HashMap<PublicKey, SocketAddr>,
    /// Who is watched and was not seen yet, since when.
    sought: BTreeMap<PublicKey, Instant>,
    watched: BTreeSet<PublicKey>,
    last: Instant,
    took: Duration,
}

impl Lookout {
    /// Builds it, with the other ends of its two channels.
    pub(super) fn new(now: Instant) -> (Self, Orders, UnboundedReceiver<Sightings>) {
        let (order, orders) = unbounded_channel();
        let (reports, reported) = unbounded_channel();
        let lookout = Self {
            orders,
            reports,
            reported: HashMap::new(),
            sought: BTreeMap::new(),
            watched: BTreeSet::new(),
            last: now,
            took: Duration::ZERO,
        };
        (lookout, Orders(order), reported)
    }

    /// Takes note that the holder of `key` is watched from now on, or no longer.
    pub(super) fn note(&mut self, now: Instant, order: Order) {
        match order {
            Order::Watch(key) => {
                self.sought.insert(key, now);
                self.watched.insert(key);
            }
            Order::Unwatch(key) => {
                self.sought.remove(&key);
                self.watched.remove(&key);
                self.reported.remove(&key);
            }
        }
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

    /// A look that began at `began` has found `peers`: reports those that are elsewhere than before.
    pub(super) fn found(
        &mut self,
        (began, now): (Instant, Instant),
        peers: impl Iterator<Item = (PublicKey, Option<SocketAddr>)>,
    ) {
        (self.last, self.took) = (now, now - began);
        let mut news = Sightings::new();
        for (key, endpoint) in peers {
            let Some(endpoint) = endpoint else {
                continue;
            };
            self.sought.remove(&key);
            if self.reported.insert(key, endpoint) != Some(endpoint) {
                news.push((key, endpoint));
            }
        }
        self.sought.retain(|_, since| now - *since < SEARCH);
        if !news.is_empty() {
            // At the end nobody hears of it.
            self.reports.send(news).unwrap_or_default();
        }
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
            lookout.found((now, now), [(AGENT, seen)].into_iter());
            let reported = reports.try_recv().ok();
            assert_eq!(reported, news.map(|at| vec![(AGENT, at)]));
        }
        lookout.note(now, Order::Unwatch(AGENT));
        lookout.found((now, now), [(AGENT, Some(there))].into_iter());
        assert!(reports.try_recv().is_ok(), "it is another peer now");
    }

    #[test]
    fn who_is_new_is_looked_for_often_but_not_for_ever() {
        let start = Clock::present();
        let (mut lookout, _orders, _reports) = Lookout::new(start);
        assert_eq!(lookout.earliest(), start + PAUSE);
        lookout.note(start, Order::Watch(HIDDEN));
        assert_eq!(lookout.earliest(), start + PAUSE_IN_SEARCH);
        let slow = Duration::from_millis(50);
        lookout.found((start, start + slow), [(HIDDEN, None)].into_iter());
        assert_eq!(lookout.earliest(), start + slow + slow * PAUSE_SHARE);
        let late = start + SEARCH;
        lookout.found((late, late), [(HIDDEN, None)].into_iter());
        assert!(!lookout.is_searching());
        assert_eq!(lookout.latest(), late + INTERVAL_WATCHING);
        lookout.note(late, Order::Watch(HIDDEN));
        let seen = Some(socket("192.0.2.1:1"));
        lookout.found((late, late), [(HIDDEN, seen)].into_iter());
        assert!(!lookout.is_searching());
        lookout.note(late, Order::Unwatch(HIDDEN));
        assert_eq!(lookout.latest(), late + INTERVAL);
    }
}
