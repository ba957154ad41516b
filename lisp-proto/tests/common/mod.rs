//! What several of the tests need.

/// Reads hexadecimal bytes, spaces between them; two spaces and more begin a remark that lasts
/// to the end of the line.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let lines = text.lines().map(str::trim_start);
    let lines = lines.map(|line| line.split_once("  ").map_or(line, |(bytes, _)| bytes));
    let digits: Vec<char> = lines.flat_map(str::chars).filter(|c| *c != ' ').collect();
    let pairs = digits.chunks(2).map(String::from_iter);
    pairs
        .map(|pair| u8::from_str_radix(&pair, 16).unwrap())
        .collect()
}
