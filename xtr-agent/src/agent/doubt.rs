//! Destinations that were refused, and that packets still go to: is that still so?
//!
//! A map server tells those whom it has denied a mapping as soon as there is one, but a map server
//! that restarts has forgotten whom it denied it. So the agent asks again when a packet goes there,
//! later and later, and sooner when it has lost a map server and found it again.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, Timestamp};

use super::limits::{REFUSED_RETRY, REFUSED_RETRY_SHARE};
use super::map_cache::State;
use super::{Actions, Agent};

/// How long a negative answer goes unquestioned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// When it was last asked for, or given.
    since: Timestamp,
    patience: Duration,
    /// What patience never exceeds.
    most: Duration,
}

impl Doubt {
    /// About an answer that is given `now` and says that it is true for `ttl`; `before` is the
    /// doubt about the answer whose place it takes.
    pub(super) fn new(now: Timestamp, ttl: Duration, before: Option<Self>) -> Self {
        let most = REFUSED_RETRY.max(ttl / REFUSED_RETRY_SHARE);
        let patience = before.map_or(REFUSED_RETRY, |before| before.patience);
        Self {
            since: now,
            patience: patience.min(most),
            most,
        }
    }

    /// Whether it is time to ask again, also because a map server was `found` again since; if so,
    /// that counts as done.
    fn is_due(&mut self, now: Timestamp, found: Timestamp) -> bool {
        if self.since < found {
            self.patience = REFUSED_RETRY;
        } else if now - self.since < self.patience {
            return false;
        } else {
            self.patience = (self.patience * 2).min(self.most);
        }
        self.since = now;
        true
    }
}

impl Agent {
    /// Whether a packet to `dst`, which is refused, is a reason to ask once more.
    pub(super) fn doubts(&mut self, now: Timestamp, dst: IpAddr) -> bool {
        let found = self.servers.iter().map(super::server::Server::found);
        let found = found.max().unwrap_or(Timestamp::ZERO);
        let Some((_, entry)) = self.cache.lookup(dst) else {
            return false;
        };
        let doubt = entry.doubt.as_mut();
        doubt.is_some_and(|doubt| doubt.is_due(now, found)) && self.second_questions.take(now)
    }

    /// Whether `dst` is refused until after `until`.
    pub(super) fn is_refused(&mut self, dst: IpAddr, until: Timestamp) -> bool {
        let found = self.cache.lookup(dst);
        found.is_some_and(|(_, entry)| {
            matches!(entry.state, State::Negative(_)) && entry.expires > until
        })
    }

    /// There is a mapping for `eid` after all: what was refused of it around `dst` is no longer.
    pub(super) fn no_longer_refused(
        &mut self,
        dst: IpAddr,
        eid: &EidPrefix,
        actions: &mut Actions,
    ) {
        while let Some((refused, entry)) = self.cache.lookup(dst)
            && matches!(entry.state, State::Negative(_))
            && is_inside(&refused, &eid.net())
        {
            self.forget(refused, actions);
        }
    }
}

fn is_inside(part: &IpNet, whole: &IpNet) -> bool {
    part != whole && whole.contains(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn patience_doubles_up_to_its_share_of_the_ttl_and_outlives_the_answer() {
        let mut now = Timestamp::ZERO;
        let mut doubt = Doubt::new(now, MINUTE * 15, None);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let asked = now;
            while !doubt.is_due(now, Timestamp::ZERO) {
                now = now + Duration::from_secs(1);
            }
            waits.push((now - asked).as_secs());
            doubt = Doubt::new(now, MINUTE * 15, Some(doubt));
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        let shorter = Doubt::new(now, MINUTE, Some(doubt));
        assert_eq!(shorter.patience, MINUTE / 3);
        assert_eq!(
            Doubt::new(now, Duration::from_secs(1), None).patience,
            REFUSED_RETRY
        );
    }

    #[test]
    fn a_map_server_that_is_found_again_is_asked_at_once_and_once() {
        let after = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
        let mut doubt = Doubt::new(after(10), MINUTE * 15, None);
        assert!(!doubt.is_due(after(12), after(10)));
        assert!(doubt.is_due(after(12), after(11)));
        assert!(!doubt.is_due(after(13), after(11)));
    }
}
