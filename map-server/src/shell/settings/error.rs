//! What is wrong with the configuration file, where, and what to do about it?

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: {source}; name an existing file with --config", path.display())]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// The reason the system gives.
        source: io::Error,
    },
    /// A value, or several together, make no sense.
    #[error("{}:{line}: {key}: {problem}; {remedy}", path.display())]
    Invalid {
        /// The configuration file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key as it stands there.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

/// A configuration file and its text, to name the places of mistakes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Returns an error about the value at `span`.
    pub(super) fn error(
        &self,
        span: &Range<usize>,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> SettingsError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let index = before.matches('\n').count();
        SettingsError::Invalid {
            path: self.path.to_owned(),
            line: index + 1,
            key: key_of(self.text.lines().nth(index).unwrap_or_default()),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// Returns an error that the TOML reader found.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> SettingsError {
        let span = error.span().unwrap_or(0..0);
        let problem = error.message().replace('\n', ", ");
        self.error(&span, problem, "see docs/configuration.md")
    }
}

/// Returns the key, or the header, that a line of TOML is about.
fn key_of(line: &str) -> String {
    let key = line.split(['=', '#']).next().unwrap_or_default().trim();
    if key.is_empty() {
        "(file)".to_owned()
    } else {
        key.to_owned()
    }
}
