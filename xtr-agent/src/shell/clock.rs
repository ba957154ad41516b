//! The only reader of the clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lisp_proto::Timestamp;
use tokio::time::Instant;

/// Translates between the operating system's clock and the state machine's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]
impl Clock {
    /// A clock that begins now.
    pub(super) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Time since the clock began.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.start.elapsed()
    }

    /// The moment that the runtime sleeps until for `deadline`.
    pub(super) fn instant(&self, deadline: Timestamp) -> Instant {
        self.start + (deadline - Timestamp::ZERO)
    }

    /// What the state machine calls `moment`; its beginning, if that was before.
    pub(super) fn of(&self, moment: Instant) -> Timestamp {
        Timestamp::ZERO + moment.saturating_duration_since(self.start)
    }

    /// Microseconds since 1970.
    pub(super) fn unix_micros() -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}
