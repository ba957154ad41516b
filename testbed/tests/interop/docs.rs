//! The files and commands in `docs/interop.md`.

const PAGE: &str = include_str!("../../../docs/interop.md");

/// The code block whose opening line ends in `name`.
pub(crate) fn block(name: &str) -> String {
    let mut lines = PAGE.lines();
    let opening = |line: &str| {
        let words = line.strip_prefix("```").map(|info| info.split(' '));
        words.is_some_and(|words| words.skip(1).eq([name]))
    };
    assert!(lines.any(opening), "docs/interop.md has no block {name}");
    let body: Vec<_> = lines.take_while(|line| !line.starts_with("```")).collect();
    body.join("\n") + "\n"
}
