//! What time is it? The only reader of the system's clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lisp_proto::Timestamp;
use tokio::time::Instant;

/// The time since the process started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]
impl Clock {
    /// Starts at [`Timestamp::ZERO`].
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Returns the time for the state machine.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.start.elapsed()
    }

    /// Returns `at` as the runtime's timers understand it.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start + (at - Timestamp::ZERO)
    }

    /// Returns what the state machine calls `moment`.
    pub(crate) fn of(&self, moment: Instant) -> Timestamp {
        Timestamp::ZERO + moment.saturating_duration_since(self.start)
    }

    /// Returns the time as the runtime's timers understand it.
    pub(crate) fn present() -> Instant {
        Instant::now()
    }

    /// Returns the time since 1970; it may jump.
    pub(crate) fn since_1970() -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}
