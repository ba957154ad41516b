//! What happens next? Events in the order of virtual time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use lisp_proto::Timestamp;

/// Events to come. Those of the same moment happen in the order they were scheduled in.
#[derive(Debug)]
pub(super) struct Queue<E> {
    heap: BinaryHeap<Scheduled<E>>,
    sequence: u64,
    now: Timestamp,
}

#[derive(Debug)]
struct Scheduled<E> {
    at: Timestamp,
    sequence: u64,
    event: E,
}

impl<E> Queue<E> {
    pub(super) const fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
            now: Timestamp::ZERO,
        }
    }

    /// The present.
    pub(super) const fn now(&self) -> Timestamp {
        self.now
    }

    /// Makes `event` happen at `at`, or now if that is past.
    pub(super) fn at(&mut self, at: Timestamp, event: E) {
        self.sequence += 1;
        self.heap.push(Scheduled {
            at: at.max(self.now),
            sequence: self.sequence,
            event,
        });
    }

    /// Makes `event` happen after `wait`.
    pub(super) fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now + wait, event);
    }

    /// Moves on to the next event, unless it lies beyond `end`.
    pub(super) fn pop(&mut self, end: Timestamp) -> Option<E> {
        if self.heap.peek()?.at > end {
            return None;
        }
        let next = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Scheduled<E> {}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Scheduled<E> {
    /// The heap gives out its greatest element: the earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_time_and_then_in_the_order_of_scheduling() {
        let mut queue = Queue::new();
        queue.at(Timestamp(5), 'b');
        queue.at(Timestamp(5), 'c');
        queue.at(Timestamp(1), 'a');
        queue.at(Timestamp(9), 'z');
        let seen: String = std::iter::from_fn(|| queue.pop(Timestamp(8))).collect();
        assert_eq!((seen.as_str(), queue.now()), ("abc", Timestamp(5)));
        queue.at(Timestamp(2), 'd');
        assert_eq!(queue.pop(Timestamp(8)), Some('d'), "the past is now");
    }
}
