//! Tables of at most 100 columns, and spans of time for people.

/// Longest line.
pub(super) const WIDTH: usize = 100;

/// Rows under a heading, each column as wide as it must be.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// The column that is cut when a line would be too long.
    flexible: usize,
}

impl Table {
    pub(super) fn new(heading: &[&str], flexible: usize) -> Self {
        let heading = heading.iter().map(|text| (*text).to_owned()).collect();
        Self {
            rows: vec![heading],
            flexible,
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, indented by two columns.
    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let length = |row: &Vec<String>, column| {
            row.get(column)
                .map_or(0, |cell: &String| cell.chars().count())
        };
        let mut widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| length(row, column)).max())
            .map(Option::unwrap_or_default)
            .collect();
        let whole: usize = widths.iter().map(|width| width + 2).sum();
        if let Some(width) = widths.get_mut(self.flexible) {
            *width = width.saturating_sub(whole.saturating_sub(WIDTH)).max(8);
        }
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += "  ";
                line += &fitted(cell, *width);
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// `text` in exactly `width` columns.
fn fitted(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:width$}");
    }
    let head: String = text.chars().take(width.saturating_sub(1)).collect();
    head + "…"
}

/// A span of time in one or two units, from milliseconds.
pub(super) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..=59 => format!("{seconds}s"),
        60..=3_599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Microseconds as milliseconds with three digits that count.
pub(super) fn milliseconds(microseconds: u64) -> String {
    let (whole, rest) = (microseconds / 1_000, microseconds % 1_000);
    match whole {
        0..=9 => format!("{whole}.{:02} ms", rest / 10),
        10..=99 => format!("{whole}.{} ms", rest / 100),
        _ => format!("{whole} ms"),
    }
}

/// Bytes with a unit.
pub(super) fn bytes(count: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(size, _)| count >= *size);
    unit.map_or_else(
        || format!("{count} B"),
        |(size, name)| format!("{}.{} {name}", count / size, count % size * 10 / size),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_never_longer_than_100_columns() {
        let mut table = Table::new(&["KEY", "EIDS", "STATE"], 1);
        table.row(vec!["k".repeat(8), "e".repeat(300), "connected".into()]);
        table.row(vec!["kk".into(), "10.0.0.1/32".into(), "quiet".into()]);
        for line in table.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(table.lines()[1].ends_with("connected"));
    }

    #[test]
    fn spans_and_sizes_are_short() {
        for (given, expected) in [
            (7, "7ms"),
            (59_999, "59s"),
            (61_000, "1m01s"),
            (3_660_000, "1h01m"),
            (90_000_000, "1d01h"),
        ] {
            assert_eq!(span(given), expected);
        }
        for (given, expected) in [(80, "0.08 ms"), (12_345, "12.3 ms"), (700_100, "700 ms")] {
            assert_eq!(milliseconds(given), expected);
        }
        for (given, expected) in [(7, "7 B"), (1_536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(given), expected);
        }
    }
}
