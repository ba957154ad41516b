//! Does this source ask too fast?

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Sources that are remembered.
    most: usize,
    /// Hash maps, because they are never iterated: nothing depends on their order.
    current: HashMap<IpAddr, Timestamp>,
    previous: HashMap<IpAddr, Timestamp>,
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self::with_room_for(limits::RATE_LIMITED_SOURCES, rate)
    }

    fn with_room_for(most: usize, rate: Rate) -> Self {
        let token = Duration::from_secs(1) / rate.per_second.max(1);
        Self {
            token,
            burst: token * rate.burst.saturating_sub(1),
            most,
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
        if self.current.len() >= self.most / 2 {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(source, full_at + self.token);
        true
    }
}

/// Parts of [`SharedRates`]: threads that look at different ones do not wait for each other.
const PARTS: u8 = 16;

/// Buckets that several threads take tokens out of. Clones are the same buckets.
#[derive(Clone, Debug)]
pub(crate) struct SharedRates(Arc<[Mutex<RateLimiter>]>);

impl SharedRates {
    pub(crate) fn new(rate: Rate) -> Self {
        let each = limits::RATE_LIMITED_SOURCES / usize::from(PARTS);
        let parts = (0..PARTS).map(|_| Mutex::new(RateLimiter::with_room_for(each, rate)));
        Self(parts.collect())
    }

    /// Takes one token out of the bucket of `source`; returns whether there was one.
    pub(crate) fn allow(&self, now: Timestamp, source: IpAddr) -> bool {
        let folded = match source {
            IpAddr::V4(address) => address.octets().into_iter().fold(0, fold),
            IpAddr::V6(address) => address.octets().into_iter().fold(0, fold),
        };
        let part = self.0.get(usize::from(folded % PARTS));
        part.is_none_or(|part| {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.allow(now, source)
        })
    }
}

const fn fold(sum: u8, byte: u8) -> u8 {
    sum.rotate_left(3) ^ byte
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
    fn threads_share_the_tokens_of_a_source() {
        let rates = SharedRates::new(RATE);
        let other = rates.clone();
        let passed = [&rates, &other, &rates, &other, &rates]
            .map(|one| one.allow(Timestamp::ZERO, source(1)));
        assert_eq!(passed, [true, true, true, false, false]);
        assert!(other.allow(Timestamp::ZERO, source(2)));
        for forged in 0..200_000 {
            rates.allow(Timestamp::ZERO, source(forged));
        }
        let remembered = rates.0.iter().map(|part| {
            let part = part.lock().unwrap();
            part.current.len() + part.previous.len()
        });
        assert!(remembered.sum::<usize>() <= limits::RATE_LIMITED_SOURCES);
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
