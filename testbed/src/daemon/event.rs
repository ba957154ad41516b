//! One line of a daemon's log.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::clock::{SECOND_NS, wall_ns};

/// The event that the testbed itself adds when a daemon has ended.
pub(crate) const ENDED: &str = "process_ended";

/// A line of a daemon's log in JSON, or any other line it wrote to stderr.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEvent {
    /// Wall clock of the daemon, in nanoseconds; 0 for a line that is not JSON.
    pub timestamp: u64,
    /// Name of the daemon.
    pub daemon: String,
    /// Level, such as `INFO`; empty for a line that is not JSON.
    pub level: String,
    /// What happened, such as `map_request`; empty when the line names no event.
    pub event: String,
    /// All fields; `message` holds a line that is not JSON.
    pub fields: Map<String, Value>,
}

/// A line as tracing-subscriber writes it.
#[derive(Deserialize)]
struct RawLine {
    timestamp: String,
    level: String,
    fields: Map<String, Value>,
}

impl LogEvent {
    /// Reads a line; one that is not JSON becomes an event with only a `message`.
    pub(crate) fn read(daemon: &str, line: &str) -> Self {
        let Ok(raw) = serde_json::from_str::<RawLine>(line) else {
            return Self::told(daemon, 0, "", line.into());
        };
        let event = raw
            .fields
            .get("event")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into();
        Self {
            timestamp: nanoseconds_since_1970(&raw.timestamp).unwrap_or(0),
            daemon: daemon.into(),
            level: raw.level,
            event,
            fields: raw.fields,
        }
    }

    /// An event that the testbed itself adds: `message` in words.
    pub(crate) fn told(daemon: &str, timestamp: u64, event: &str, message: String) -> Self {
        Self {
            timestamp,
            daemon: daemon.into(),
            level: String::new(),
            event: event.into(),
            fields: Map::from_iter([("message".to_owned(), Value::from(message))]),
        }
    }

    /// Says that the daemon has closed its stderr, as it does when it ends.
    pub(crate) fn ended(daemon: &str) -> Self {
        Self::told(daemon, wall_ns(), ENDED, "has ended".into())
    }

    /// The field as text; empty when there is no such text.
    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The field as a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field).and_then(Value::as_u64)
    }

    /// Whether this is the event `event` of the daemon `daemon`.
    pub fn is(&self, daemon: &str, event: &str) -> bool {
        self.daemon == daemon && self.event == event
    }
}

/// Reads `2026-01-31T23:59:59.123456Z`; other time zones and formats are `None`.
fn nanoseconds_since_1970(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(whole, ':')?;
    let nanos: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let seconds = days_since_1970(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * SECOND_NS + nanos)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let numbers: Option<Vec<u64>> = text
        .split(separator)
        .map(|number| number.parse().ok())
        .collect();
    numbers?.try_into().ok()
}

/// Days from 1970-01-01, in the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Counting years from March puts the leap day at the end of a year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    // 1970-01-01 counted the same way.
    days.checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_to_the_nanosecond() {
        let read = nanoseconds_since_1970;
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("1970-01-02T00:00:00.5Z"), Some(86_400_500_000_000));
        assert_eq!(
            read("2024-02-29T12:34:56.000001Z"),
            Some(1_709_210_096_000_001_000)
        );
        assert_eq!(read("2024-02-29 12:34:56"), None);
    }

    #[test]
    fn a_narrated_line_has_its_event_and_fields() {
        let line = r#"{"timestamp":"2026-01-31T10:00:00.000002Z","level":"INFO",
            "fields":{"event":"reinjected","eid":"10.0.0.2/32","packets":3},"target":"xtr_agent"}"#;
        let event = LogEvent::read("alpha", line);
        assert!(event.is("alpha", "reinjected"));
        assert_eq!(
            (event.text("eid"), event.number("packets")),
            ("10.0.0.2/32", Some(3))
        );
        assert_eq!(event.timestamp % 1_000_000, 2_000);
    }

    #[test]
    fn any_other_line_is_kept_as_a_message() {
        let event = LogEvent::read("alpha", "thread 'main' panicked");
        assert_eq!(event.text("message"), "thread 'main' panicked");
        assert_eq!(event.event, "");
    }
}
