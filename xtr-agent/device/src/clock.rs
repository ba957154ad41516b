//! The only reader of clocks in this crate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The present, for what is said to have been so at some time.
#[expect(
    clippy::disallowed_methods,
    reason = "counters are stamped, and the cost of reading them measured, where they are read"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The clock that the kernel stamps handshakes with, since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel tells the time of a handshake, and callers want the time since"
)]
pub(crate) fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}
