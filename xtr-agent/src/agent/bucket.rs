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
        let most = Duration::from_secs(1);
        Self {
            interval: Duration::from_nanos(1_000_000_000 / times as u64),
            most,
            saved: most,
            looked: Timestamp::ZERO,
        }
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
