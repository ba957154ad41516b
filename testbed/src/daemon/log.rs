//! The log lines of all daemons of a network, in the order they came.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::event::LogEvent;
use crate::clock::{monotonic_ns, nanos};

/// The log of a network. Clones are the same log.
#[derive(Clone, Default)]
pub struct EventLog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    events: Mutex<Vec<LogEvent>>,
    grown: Condvar,
}

/// A place in a log: between what came before and what comes later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(usize);

impl EventLog {
    /// The place after all that has come so far.
    pub fn position(&self) -> LogPosition {
        LogPosition(self.lock().len())
    }

    /// All events after `position`, in the order they came.
    pub fn since(&self, position: LogPosition) -> Vec<LogEvent> {
        self.lock().get(position.0..).unwrap_or_default().to_vec()
    }

    /// Waits for the first event after `position` that `wanted` accepts; `None` after `timeout`.
    pub fn wait(
        &self,
        position: LogPosition,
        timeout: Duration,
        mut wanted: impl FnMut(&LogEvent) -> bool,
    ) -> Option<LogEvent> {
        let end = monotonic_ns().saturating_add(nanos(timeout));
        let mut looked_at = position.0;
        let mut events = self.lock();
        loop {
            let new = events.get(looked_at..).unwrap_or_default();
            if let Some(event) = new.iter().find(|event| wanted(event)) {
                return Some(event.clone());
            }
            looked_at = events.len().max(looked_at);
            let left = end.saturating_sub(monotonic_ns());
            if left == 0 {
                return None;
            }
            let waited = self
                .0
                .grown
                .wait_timeout(events, Duration::from_nanos(left));
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn push(&self, event: LogEvent) {
        self.lock().push(event);
        self.0.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LogEvent>> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn waiting_finds_what_was_there_and_what_comes() {
        let log = EventLog::default();
        let line = |event: &str| {
            format!(
                r#"{{"timestamp":"1970-01-01T00:00:01Z","level":"INFO","fields":{{"event":"{event}"}}}}"#
            )
        };
        let start = log.position();
        log.push(LogEvent::read("a", &line("first")));
        let second = start.max(log.position());
        thread::scope(|scope| {
            scope.spawn(|| log.push(LogEvent::read("a", &line("second"))));
            let find = |name| log.wait(start, Duration::from_secs(5), move |e| e.is("a", name));
            assert!(find("first").is_some());
            assert!(find("second").is_some());
        });
        assert!(
            log.wait(second, Duration::ZERO, |e| e.is("a", "first"))
                .is_none()
        );
        assert_eq!(log.since(start).len(), 2);
    }
}
