//! Proxies that are lost again and again.
//!
//! One that was lost counts as lost for a while. If it is lost once more soon after, nobody else shall give way to it for
//! twice as long: as long as there is another one, it is named together with that.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lisp_proto::{PublicKey, Timestamp};

use super::limits::{LOST_FOR, LOST_FOR_MAX};

#[derive(Clone, Copy, Debug)]
struct Relapse {
    endpoint: SocketAddr,
    /// How often in a row it was lost.
    times: u32,
    /// How long it is avoided, and whether that is over.
    until: Timestamp,
    is_over: bool,
}

/// All that were lost lately.
#[derive(Debug, Default)]
pub(super) struct Relapses(BTreeMap<PublicKey, Relapse>);

impl Relapses {
    /// The proxy `key` was lost, which was not lost before.
    pub(super) fn note(&mut self, now: Timestamp, key: PublicKey, endpoint: SocketAddr) {
        let before = self.0.get(&key).map_or(0, |before| before.times);
        let pause = LOST_FOR.saturating_mul(1 << before.min(10));
        let relapse = Relapse {
            endpoint,
            times: before.saturating_add(1),
            until: now + pause.min(LOST_FOR_MAX),
            is_over: false,
        };
        self.0.insert(key, relapse);
    }

    /// Those that were lost more than once, and are to be avoided.
    pub(super) fn avoided(&self) -> impl Iterator<Item = (PublicKey, SocketAddr)> {
        let relapses = self.0.iter();
        let avoided = relapses.filter(|(_, it)| it.times > 1 && !it.is_over);
        avoided.map(|(key, it)| (*key, it.endpoint))
    }

    /// Avoids nobody for longer than necessary, and forgets those that were not lost any more for long enough.
    pub(super) fn expire(&mut self, now: Timestamp) {
        for relapse in self.0.values_mut() {
            relapse.is_over |= relapse.until <= now;
        }
        self.0.retain(|_, it| it.until + LOST_FOR_MAX > now);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_doubles_up_to_its_limit_and_is_forgotten_after_that() {
        let key = PublicKey([1; 32]);
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut relapses = Relapses::default();
        let mut now = Timestamp::ZERO;
        let mut spans = Vec::new();
        for _ in 0..7 {
            relapses.note(now, key, endpoint);
            let began = now;
            while relapses.avoided().next().is_some() {
                now = now + LOST_FOR;
                relapses.expire(now);
            }
            spans.push((now - began).as_secs() / LOST_FOR.as_secs());
        }
        assert_eq!(spans, [0, 2, 4, 8, 16, 30, 30]);
        relapses.expire(now + LOST_FOR_MAX);
        assert!(relapses.is_empty());
    }
}
