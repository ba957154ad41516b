//! Decides the fate of each frame of one direction; pure.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::params::{LinkParams, Share};
use crate::clock::{SECOND_NS, nanos};

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounters {
    /// Frames that entered.
    pub entered: u64,
    /// Frames that left, duplicates included.
    pub left: u64,
    /// Frames lost by chance or because the link was cut.
    pub lost: u64,
    /// Frames that were sent twice.
    pub duplicated: u64,
    /// Frames that skipped the delay.
    pub reordered: u64,
    /// Frames dropped because too many were on their way.
    pub overflowed: u64,
}

/// One direction of a link. Times are nanoseconds of one monotonic clock.
pub(crate) struct Direction {
    params: LinkParams,
    cut: bool,
    random: StdRng,
    queued: usize,
    /// When the frame before the next one arrives: none arrives earlier.
    last_due: u64,
    /// When the sender has put all frames so far on the wire.
    free_at: u64,
    counters: DirectionCounters,
}

impl Direction {
    pub(crate) fn new(params: LinkParams, seed: u64) -> Self {
        Self {
            params,
            cut: false,
            random: StdRng::seed_from_u64(seed),
            queued: 0,
            last_due: 0,
            free_at: 0,
            counters: DirectionCounters::default(),
        }
    }

    pub(crate) fn set_params(&mut self, params: LinkParams) {
        self.params = params;
    }

    pub(crate) fn set_cut(&mut self, cut: bool) {
        self.cut = cut;
    }

    pub(crate) fn counters(&self) -> DirectionCounters {
        self.counters
    }

    /// Takes a frame of `length` bytes and says when each copy of it arrives.
    pub(crate) fn admit(&mut self, now: u64, length: usize) -> [Option<u64>; 2] {
        self.counters.entered += 1;
        if self.cut || self.happens(self.params.loss) {
            self.counters.lost += 1;
            return [None, None];
        }
        let twice = self.happens(self.params.duplicate);
        let first = self.enqueue(now, length);
        if !twice {
            return [first, None];
        }
        self.counters.duplicated += 1;
        [first, self.enqueue(now, length)]
    }

    /// Notes that a frame arrived.
    pub(crate) fn release(&mut self) {
        self.queued = self.queued.saturating_sub(1);
        self.counters.left += 1;
    }

    fn enqueue(&mut self, now: u64, length: usize) -> Option<u64> {
        if self.queued >= self.params.queue {
            self.counters.overflowed += 1;
            return None;
        }
        self.queued += 1;
        if self.happens(self.params.reorder) {
            self.counters.reordered += 1;
            return Some(now);
        }
        self.free_at = self
            .free_at
            .max(now)
            .saturating_add(self.transmission_ns(length));
        let due = self.free_at.saturating_add(self.next_delay());
        self.last_due = self.last_due.max(due);
        Some(self.last_due)
    }

    fn happens(&mut self, share: Share) -> bool {
        // Without the test for none, each frame would cost three random numbers.
        !share.is_none() && (share == Share::ALL || self.random.next_u32() < share.scaled())
    }

    fn next_delay(&mut self) -> u64 {
        let delay = nanos(self.params.delay);
        let jitter = nanos(self.params.jitter);
        if jitter == 0 {
            return delay;
        }
        let up = self.random.random_range(0..=jitter.saturating_mul(2));
        delay.saturating_add(up).saturating_sub(jitter)
    }

    fn transmission_ns(&self, length: usize) -> u64 {
        let Some(rate) = self.params.rate.filter(|rate| *rate > 0) else {
            return 0;
        };
        let bits = u128::try_from(length)
            .unwrap_or(u128::MAX)
            .saturating_mul(8);
        u64::try_from(bits.saturating_mul(u128::from(SECOND_NS)) / u128::from(rate))
            .unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MS: u64 = 1_000_000;

    fn arrivals(params: LinkParams, frames: u64, gap_ns: u64) -> Vec<[Option<u64>; 2]> {
        let mut direction = Direction::new(params, 7);
        (0..frames)
            .map(|number| direction.admit(number * gap_ns, 1_250))
            .collect()
    }

    #[test]
    fn a_delayed_frame_arrives_exactly_the_delay_later() {
        let params = LinkParams::delayed(Duration::from_millis(5));
        for (number, due) in (0..).zip(arrivals(params, 100, MS)) {
            assert_eq!(due, [Some((number + 5) * MS), None]);
        }
    }

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let params = LinkParams::default().with_loss(Share::percent(10));
        let lost = |seed| {
            let mut direction = Direction::new(params, seed);
            (0..1_000)
                .filter(|now| direction.admit(*now, 100)[0].is_none())
                .collect::<Vec<_>>()
        };
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
        assert!(
            (60..140).contains(&lost(1).len()),
            "{} of 1000 at 10 %",
            lost(1).len()
        );
    }

    #[test]
    fn jitter_keeps_the_order() {
        let params = LinkParams {
            jitter: Duration::from_millis(4),
            ..LinkParams::delayed(Duration::from_millis(5))
        };
        let due: Vec<_> = arrivals(params, 1_000, MS / 10)
            .into_iter()
            .filter_map(|d| d[0])
            .collect();
        assert_eq!(due.len(), 1_000);
        assert!(due.is_sorted());
    }

    #[test]
    fn reordered_frames_skip_the_delay() {
        let params = LinkParams {
            reorder: Share::percent(25),
            ..LinkParams::delayed(Duration::from_millis(5))
        };
        let mut direction = Direction::new(params, 7);
        let early = (0..1_000)
            .filter(|number| direction.admit(number * MS, 100)[0] == Some(number * MS))
            .count();
        assert_eq!(
            u64::try_from(early).unwrap(),
            direction.counters().reordered
        );
        assert!((180..320).contains(&early), "{early} of 1000 at 25 %");
    }

    #[test]
    fn duplicates_are_counted_and_follow_the_first_copy() {
        let params = LinkParams {
            duplicate: Share::ALL,
            ..LinkParams::default()
        };
        for due in arrivals(params, 10, MS) {
            assert!(due[0].is_some() && due[0] <= due[1]);
        }
    }

    #[test]
    fn the_rate_spaces_frames_out() {
        // 1,250 bytes at 10 Mbit/s take 1 ms.
        let params = LinkParams {
            rate: Some(10_000_000),
            ..LinkParams::default()
        };
        let due: Vec<_> = arrivals(params, 5, 0)
            .into_iter()
            .filter_map(|d| d[0])
            .collect();
        assert_eq!(due, [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]);
    }

    #[test]
    fn a_full_queue_drops() {
        let params = LinkParams {
            queue: 2,
            ..LinkParams::delayed(Duration::from_millis(5))
        };
        let mut direction = Direction::new(params, 7);
        let taken: Vec<_> = (0..3)
            .map(|now| direction.admit(now, 100)[0].is_some())
            .collect();
        assert_eq!(taken, [true, true, false]);
        direction.release();
        assert!(direction.admit(3, 100)[0].is_some());
        assert_eq!(direction.counters().overflowed, 1);
    }

    #[test]
    fn a_cut_link_loses_all_until_restored() {
        let mut direction = Direction::new(LinkParams::default(), 7);
        direction.set_cut(true);
        assert_eq!(direction.admit(0, 100), [None, None]);
        direction.set_cut(false);
        assert_eq!(direction.admit(1, 100), [Some(1), None]);
    }
}
