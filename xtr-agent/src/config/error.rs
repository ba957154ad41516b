//! What is wrong with a configuration file, where, and what to do.

use std::path::{Path, PathBuf};

use toml::Spanned;

/// What is wrong with a configuration file, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}; give the path of a readable file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown, missing or ill-typed key.
    #[error("{}: {source}{}", path.display(), remedy.unwrap_or_default())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where, with the offending line.
        source: Box<toml::de::Error>,
        /// What to do, where the key tells.
        remedy: Option<&'static str>,
    },
    /// A value makes no sense.
    #[error("{}:{line}: {key}: {problem}; {remedy}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line of the value, from 1.
        line: usize,
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

impl ConfigError {
    /// A complaint of the parser about the file `text` at `path`.
    pub(super) fn parse(path: &Path, text: &str, source: toml::de::Error) -> Self {
        let start = source.span().map(|span| span.start);
        let before = start.and_then(|start| text.get(..start));
        let line = before.and_then(|before| before.rsplit('\n').next());
        let key = line.and_then(|line| line.split_once('='));
        let key = key.map(|(key, _)| key.trim());
        Self::Parse {
            path: path.to_owned(),
            source: Box::new(source),
            remedy: key.and_then(plain_number),
        }
    }
}

/// What to write as the value of a key that says its unit.
fn plain_number(key: &str) -> Option<&'static str> {
    let (_, unit) = key.rsplit_once('_')?;
    match unit {
        "ms" => Some("use a plain number of milliseconds"),
        "s" => Some("use a plain number of seconds"),
        "min" => Some("use a plain number of minutes"),
        _ => None,
    }
}

/// The file being read, to say where a value is.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// A complaint about the value `at` of `key`.
    pub(super) fn error<T>(
        &self,
        at: &Spanned<T>,
        key: &'static str,
        problem: String,
        remedy: &'static str,
    ) -> ConfigError {
        self.error_at(at.span().start, key, problem, remedy)
    }

    /// A complaint about `key`, as of `at` bytes from the start of the file.
    pub(super) fn error_at(
        &self,
        at: usize,
        key: &'static str,
        problem: String,
        remedy: &'static str,
    ) -> ConfigError {
        let before = self.text.get(..at).unwrap_or_default();
        ConfigError::Value {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            key,
            problem,
            remedy,
        }
    }
}
