//! Keeping the agent's own EID-prefixes registered: register, refresh, retry, withdraw (RFC 9301 5.6, 8.2).

use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Nonce, Timestamp};

use super::limits::{REGISTER_RETRY, REGISTER_RETRY_MAX};

/// Where the agent stands with one map server.
#[derive(Debug)]
pub(super) struct Registration {
    /// Nonce of the Map-Register that waits for its Map-Notify.
    outstanding: Option<Nonce>,
    retry: Duration,
    acknowledged: Option<Timestamp>,
    /// When the latest Map-Register went out.
    sent: Timestamp,
    /// From a Map-Register to its acknowledgement, the last time.
    rtt: Option<Duration>,
    /// Prefixes that live here no more, until the map server has acknowledged that.
    leaving: Vec<IpNet>,
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            outstanding: None,
            retry: REGISTER_RETRY,
            acknowledged: None,
            sent: Timestamp::ZERO,
            rtt: None,
            leaving: Vec::new(),
        }
    }
}

impl Registration {
    /// Notes that a Map-Register with `nonce` goes out and says when to send
    /// the next one if nobody acknowledges it.
    pub(super) fn sent(&mut self, nonce: Nonce, now: Timestamp) -> Duration {
        self.sent = now;
        let wait = self.retry;
        self.outstanding = Some(nonce);
        self.retry = (self.retry * 2).min(REGISTER_RETRY_MAX);
        wait
    }

    /// Makes the next retransmission a quick one: there is something new to tell.
    pub(super) fn afresh(&mut self) {
        self.retry = REGISTER_RETRY;
    }

    /// From now on `own` is registered, and what was before is withdrawn.
    pub(super) fn replace(&mut self, before: &[IpNet], own: &[IpNet]) {
        self.leaving.extend(before);
        self.leaving.sort_unstable();
        self.leaving.dedup();
        self.leaving.retain(|prefix| !own.contains(prefix));
        self.afresh();
    }

    /// What is to be withdrawn.
    pub(super) fn leaving(&self) -> &[IpNet] {
        &self.leaving
    }

    /// Whether a Map-Notify with `nonce` acknowledges the Map-Register that is
    /// out; if so it is done.
    pub(super) fn acknowledge(&mut self, nonce: Nonce, now: Timestamp) -> bool {
        if self.outstanding != Some(nonce) {
            return false;
        }
        self.outstanding = None;
        self.leaving.clear();
        self.retry = REGISTER_RETRY;
        self.acknowledged = Some(now);
        // Every Map-Register has a nonce of its own: the answer is to the latest one.
        self.rtt = Some(now - self.sent);
        true
    }

    /// Whether a Map-Register is out and not acknowledged.
    pub(super) fn unacknowledged(&self) -> bool {
        self.outstanding.is_some()
    }

    /// From a Map-Register to its acknowledgement, the last time.
    #[must_use]
    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// When the map server last acknowledged a Map-Register.
    #[must_use]
    pub(super) fn acknowledged(&self) -> Option<Timestamp> {
        self.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_until_acknowledged() {
        let mut registration = Registration::default();
        let waits: Vec<u64> = (0..8)
            .map(|n| registration.sent(Nonce(n), Timestamp::ZERO).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(
            !registration.acknowledge(Nonce(6), Timestamp::ZERO),
            "only the latest counts"
        );
        let later = Timestamp::ZERO + Duration::from_millis(30);
        assert!(registration.acknowledge(Nonce(7), later));
        assert_eq!(registration.rtt(), Some(Duration::from_millis(30)));
        assert!(!registration.acknowledge(Nonce(7), Timestamp::ZERO));
        assert_eq!(registration.sent(Nonce(9), later).as_secs(), 1);
    }
}
