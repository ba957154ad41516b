//! Tables of at most 100 columns.

/// Longest line.
pub(super) const WIDTH: usize = 100;

/// Lines of `rows`, the first of which is the heading, indented by two columns. The column
/// `flexible` is cut when a line would be too long.
pub(super) fn lines(rows: &[Vec<String>], flexible: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let length = |row: &Vec<String>, column: usize| {
        let cell = row.get(column);
        cell.map_or(0, |cell| cell.chars().count())
    };
    let widest = |column| rows.iter().map(|row| length(row, column)).max();
    let mut widths: Vec<_> = (0..columns)
        .map(|column| widest(column).unwrap_or_default())
        .collect();
    let whole: usize = widths.iter().map(|width| width + 2).sum();
    if let Some(width) = widths.get_mut(flexible) {
        *width = width.saturating_sub(whole.saturating_sub(WIDTH)).max(8);
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += "  ";
            line += &fitted(cell, *width);
        }
        let line: String = line.chars().take(WIDTH).collect();
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `text` in exactly `width` columns.
fn fitted(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:width$}");
    }
    let head: String = text.chars().take(width.saturating_sub(1)).collect();
    head + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_never_longer_than_100_columns() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let (long, longer) = ("k".repeat(40), "e".repeat(300));
        for client in ["a", &*longer] {
            let rows = [
                row(["CLIENT", "PREFIXES", "STATE"]),
                row([&long, &longer, "confirmed"]),
                row([client, "0.0.0.0/0", "failed"]),
            ];
            let lines = lines(&rows, 1);
            assert!(lines.iter().all(|line| line.chars().count() <= WIDTH));
            assert_eq!(lines[1].ends_with("confirmed"), client == "a");
        }
    }
}
