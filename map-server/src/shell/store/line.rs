//! What does one line of the log look like?
//!
//! `LLLLLLLL CCCCCCCC {json}\n`: length and CRC-32 of the JSON in hexadecimal, then the JSON, or one of
//! the commonest facts in the form of `compact`. A line end is never inside, so that a reader finds the next line
//! behind a damaged one.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::compact::{read_fact, write_fact};
use crate::store_event::StoreEvent;

/// Bytes before the fact: two numbers of this many digits, each with a space behind it.
const HEADER: usize = 2 * (DIGITS + 1);
const DIGITS: usize = 8;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// When it was written, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// The fact; without one the line says that the server was still alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<StoreEvent>,
}

/// What a line of the log turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Entry(Entry),
    /// It is as it was written, but not by this version.
    Foreign,
    /// It is not as it was written, or not all of it was.
    Damaged,
}

impl Entry {
    /// Builds an entry written at `since_1970`.
    pub(super) fn new(since_1970: Duration, event: Option<StoreEvent>) -> Self {
        let at_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { at_ms, event }
    }

    /// Appends the line to `out`.
    ///
    /// # Errors
    /// None for the facts there are; the JSON writer says so if that changes.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let start = out.len();
        out.resize(start + HEADER, b' ');
        if let Err(error) = self.write_body(out) {
            out.truncate(start);
            return Err(error);
        }
        let header = header(out.get(start + HEADER..).unwrap_or_default());
        if let Some(place) = out.get_mut(start..start + HEADER) {
            place.copy_from_slice(&header);
        }
        out.push(b'\n');
        Ok(())
    }

    /// Writes what stands behind the header.
    fn write_body(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let start = out.len();
        let event = self.event.as_ref();
        if event
            .and_then(|event| write_fact(out, self.at_ms, event))
            .is_none()
        {
            out.truncate(start);
            serde_json::to_writer(out, self)?;
        }
        Ok(())
    }

    /// Reads a line with its end.
    pub(super) fn read(line: &[u8]) -> Line {
        let body = whole(line);
        body.map_or(Line::Damaged, |body| match Self::read_body(body) {
            Some(entry) => Line::Entry(entry),
            None => Line::Foreign,
        })
    }

    fn read_body(body: &[u8]) -> Option<Self> {
        match body {
            [b'{', ..] => serde_json::from_slice(body).ok(),
            fact => {
                let (at_ms, event) = read_fact(fact)?;
                let event = Some(event);
                Some(Self { at_ms, event })
            }
        }
    }
}

/// Returns what a line holds if it is as it was written.
fn whole(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (header, body) = line.split_at_checked(HEADER)?;
    // Compared as text: parsed, a sign or a capital letter would pass for another digit.
    (header == self::header(body)).then_some(body)
}

fn header(body: &[u8]) -> [u8; HEADER] {
    // No line is as long as four gigabytes.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut header = [b' '; HEADER];
    let places = header.chunks_mut(DIGITS + 1);
    for (place, number) in places.zip([length, crc32fast::hash(body)]) {
        for (digit, shift) in place.iter_mut().zip((0..DIGITS).rev()) {
            let value = number >> (4 * shift) & 0xf;
            *digit = char::from_digit(value, 16).map_or(b'0', |it| it as u8);
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_reads_back() {
        let (entry, line) = line();
        assert_eq!(Entry::read(&line), Line::Entry(entry));
        let alive = Entry::new(Duration::from_millis(5), None);
        let mut line = Vec::new();
        alive.write(&mut line).unwrap();
        assert_eq!(line, b"0000000b eee96a3a {\"at_ms\":5}\n");
        assert_eq!(Entry::read(&line), Line::Entry(alive));
    }

    #[test]
    fn facts_that_earlier_versions_wrote_as_json_are_read() {
        let (entry, compact) = line();
        let json = serde_json::to_vec(&entry).unwrap();
        let line = line_of(&json);
        assert_ne!(line, compact);
        assert_eq!(Entry::read(&line), Line::Entry(entry));
    }

    #[test]
    fn numbers_are_written_in_one_way_only() {
        for bad in [
            "+000000b eee96a3a",
            "0000000B eee96a3a",
            "0000000b Eee96a3a",
        ] {
            let line = format!("{bad} {{\"at_ms\":5}}\n");
            assert_eq!(Entry::read(line.as_bytes()), Line::Damaged, "{line}");
        }
    }

    #[test]
    fn what_a_later_version_writes_is_not_taken_for_damaged() {
        for body in [&b"X"[..], b"", br#"{"at_ms":5,"more":1}"#] {
            assert_eq!(Entry::read(&line_of(body)), Line::Foreign);
        }
    }

    proptest! {
        #[test]
        fn a_damaged_line_is_not_believed(position in any::<prop::sample::Index>(), change in 1u8..) {
            let (_, mut line) = line();
            let position = position.index(line.len());
            line[position] ^= change;
            prop_assert_eq!(Entry::read(&line), Line::Damaged);
        }

        #[test]
        fn a_cut_line_is_not_believed(length in any::<prop::sample::Index>()) {
            let (_, line) = line();
            prop_assert_eq!(Entry::read(&line[..length.index(line.len())]), Line::Damaged);
        }
    }

    fn line_of(body: &[u8]) -> Vec<u8> {
        [&header(body), body, b"\n"].concat()
    }

    fn line() -> (Entry, Vec<u8>) {
        let event = StoreEvent::Withdrawn {
            xtr: "alpha".into(),
            ids: Some(Default::default()),
            eid: "10.0.0.1/32".parse().unwrap(),
        };
        let entry = Entry::new(Duration::from_secs(1), Some(event));
        let mut line = Vec::new();
        entry.write(&mut line).unwrap();
        (entry, line)
    }
}
