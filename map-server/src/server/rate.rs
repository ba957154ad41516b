//! Does this source ask too fast?

use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;
use lisp_proto::Timestamp;

use super::limits;
use crate::config::Rate;

/// A token bucket per source.
///
/// A bucket is one number: the time at which it will be full again. Sources that have not been
/// heard of while many others were are forgotten, a generation at a time, so that memory and work
/// per datagram are bounded however many sources are forged.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    token: Duration,
    burst: Duration,
    /// Hash maps, because they are never iterated: nothing depends on their order.
    current: HashMap<IpAddr, Timestamp>,
    previous: HashMap<IpAddr, Timestamp>,
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        let token = Duration::from_secs(1) / rate.per_second.max(1);
        Self {
            token,
            burst: token * rate.burst.saturating_sub(1),
            current: HashMap::new(),
            previous: HashMap::new(),
        }
    }

    /// Takes one token out of the bucket of `source`; returns whether there was one.
    pub(crate) fn allow(&mut self, now: Timestamp, source: IpAddr) -> bool {
        if let Some(full_at) = self.current.get_mut(&source) {
            let before = now.max(*full_at);
            let allowed = before - now <= self.burst;
            if allowed {
                *full_at = before + self.token;
            }
            return allowed;
        }
        let full_at = self.previous.get(&source);
        let full_at = full_at.map_or(now, |full_at| now.max(*full_at));
        if full_at - now > self.burst {
            return false;
        }
        if self.current.len() >= limits::RATE_LIMITED_SOURCES / 2 {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(source, full_at + self.token);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 3,
    };

    #[test]
    fn a_burst_passes_and_then_one_per_token() {
        let mut limiter = RateLimiter::new(RATE);
        let passed = (0..5)
            .filter(|_| limiter.allow(Timestamp::ZERO, source(1)))
            .count();
        assert_eq!(passed, 3);
        let later = Timestamp::ZERO + Duration::from_millis(100);
        assert!(limiter.allow(later, source(1)));
        assert!(!limiter.allow(later, source(1)));
        assert!(
            limiter.allow(later, source(2)),
            "another source has its own bucket"
        );
    }

    #[test]
    fn forged_sources_do_not_fill_memory() {
        let mut limiter = RateLimiter::new(RATE);
        for forged in 0..200_000 {
            assert!(limiter.allow(Timestamp::ZERO, source(forged)));
        }
        assert!(limiter.current.len() + limiter.previous.len() <= limits::RATE_LIMITED_SOURCES);
    }

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }
}
