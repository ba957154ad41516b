//! How often something may happen.

use std::time::Duration;

use lisp_proto::Timestamp;

/// A token bucket: so many times at once, and so many per second after that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// What one time costs.
    interval: Duration,
    /// The most that is saved up.
    most: Duration,
    saved: Duration,
    looked: Timestamp,
}

impl Bucket {
    /// A full bucket; it holds what a second gives.
    pub(super) const fn per_second(times: u32) -> Self {
        Self::new(times, times)
    }

    /// A full bucket that holds `at_once`.
    pub(super) const fn new(per_second: u32, at_once: u32) -> Self {
        let interval = Duration::from_nanos(1_000_000_000 / per_second as u64);
        let most = interval.saturating_mul(at_once);
        Self {
            interval,
            most,
            saved: most,
            looked: Timestamp::ZERO,
        }
    }

    /// What one time costs.
    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    /// It did not happen after all.
    pub(super) fn give_back(&mut self) {
        self.saved = self.saved.saturating_add(self.interval).min(self.most);
    }

    /// Whether it may happen now; if so, it counts.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let gained = now - self.looked;
        self.looked = now;
        self.saved = self.saved.saturating_add(gained).min(self.most);
        let left = self.saved.checked_sub(self.interval);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gives_what_it_says_and_saves_no_more() {
        let mut bucket = Bucket::per_second(10);
        let start = Timestamp::ZERO + Duration::from_secs(100);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 10);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 5);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 10);
    }
}
