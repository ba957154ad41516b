//! The clocks of the testbed: the only reader of time in this crate.

use std::time::Duration;

use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// Reads the wall clock, in nanoseconds since 1970: the clock of log timestamps.
pub fn wall_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Reads the monotonic clock, in nanoseconds: the clock of durations.
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Sleeps until the monotonic clock shows `deadline_ns`.
pub fn sleep_until(deadline_ns: u64) {
    let deadline = Duration::from_nanos(deadline_ns).into();
    let flags = ClockNanosleepFlags::TIMER_ABSTIME;
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, flags, &deadline)
        == Err(nix::errno::Errno::EINTR)
    {}
}

/// Sleeps for `duration`.
pub fn sleep(duration: Duration) {
    sleep_until(monotonic_ns().saturating_add(nanos(duration)));
}

/// The length of `duration` in nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn read(clock: ClockId) -> u64 {
    // Neither clock can fail or be before its epoch on Linux.
    clock_gettime(clock).map_or(0, |time| nanos(Duration::from(time)))
}
