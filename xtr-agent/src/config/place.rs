//! Where in the file a key is, after it was read and found right.

use super::error::{ConfigError, Source};

/// Which part of the file a key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Outside of all tables `[[instance]]`.
    Whole,
    /// The table `[[instance]]` with this number, from 0.
    Instance(usize),
}

impl Source<'_> {
    /// A complaint about a `key` that a running agent cannot change.
    pub(super) fn fixed(&self, section: Section, key: &'static str) -> ConfigError {
        let problem = "has changed, and does not while the agent runs".into();
        self.error_in(section, key, problem, "restart to change it")
    }

    /// A complaint about a `key`, wherever it is.
    pub(super) fn error_in(
        &self,
        section: Section,
        key: &'static str,
        problem: String,
        remedy: &'static str,
    ) -> ConfigError {
        let at = place(self.text, section, key);
        self.error_at(at, key, problem, remedy)
    }
}

/// Where `key` is set, in bytes from the start; where it is not, its table begins there.
fn place(text: &str, section: Section, key: &str) -> usize {
    let first = key.split('.').next().unwrap_or(key);
    let is_key = |line: &str| {
        let line = line.trim_start_matches('[');
        let rest = line.strip_prefix(first);
        rest.is_some_and(|rest| rest.starts_with([' ', '\t', '=', '.', ']']))
    };
    let (mut current, mut tables, mut begins, mut at) = (Section::Whole, 0, 0, 0);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.starts_with("[[instance]]") {
            current = Section::Instance(tables);
            tables += 1;
            if current == section {
                begins = at;
            }
        } else if trimmed.starts_with('[') && !trimmed.starts_with("[instance.") {
            current = Section::Whole;
        }
        if current == section && is_key(trimmed) {
            return at;
        }
        at += line.len();
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mtu = 9\nmtu = 1400\n[map_server]\naddress = \"x\"\n\
                        [[instance]]\ninstance_id = 1\n[[instance]]\n  mtu = 1300\n[interfaces]\n";

    #[test]
    fn a_key_is_found_in_its_table_and_a_missing_one_where_that_begins() {
        let line = |section, key| {
            let before = &FILE[..place(FILE, section, key)];
            before.lines().count() + 1
        };
        assert_eq!(line(Section::Whole, "mtu"), 2);
        assert_eq!(line(Section::Whole, "map_server"), 3);
        assert_eq!(line(Section::Whole, "interfaces.control"), 9);
        assert_eq!(line(Section::Whole, "idle_s"), 1);
        assert_eq!(line(Section::Instance(0), "mtu"), 5);
        assert_eq!(line(Section::Instance(1), "mtu"), 8);
        assert_eq!(line(Section::Instance(1), "netns"), 7);
    }
}
