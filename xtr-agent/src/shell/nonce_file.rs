//! Nonces of Map-Registers never repeat, not even across a crash (RFC 9301 5.6).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lisp_proto::Nonce;

/// Nonces reserved by one write.
const BLOCK: u64 = 1 << 20;

/// A file that holds a nonce above all that were used.
#[derive(Debug)]
pub(super) struct NonceFile {
    path: PathBuf,
    reserved: u64,
}

impl NonceFile {
    /// Opens the file in `dir` and reserves a first block, above everything
    /// the file knows of and not below `floor`.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(super) fn open(dir: &Path, floor: u64) -> io::Result<(Self, Nonce)> {
        let path = dir.join("register.nonce");
        let stored = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let what = format!(
                    "{}: not a number; delete it if it was damaged",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let first = floor.max(stored);
        let mut file = Self {
            path,
            reserved: first,
        };
        file.reserve(Nonce(first))?;
        Ok((file, Nonce(first)))
    }

    /// A nonce above all that were used, not below `floor`, for an agent that begins.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn first(&mut self, floor: u64) -> io::Result<Nonce> {
        let first = Nonce(floor.max(self.reserved));
        self.reserve(first)?;
        Ok(first)
    }

    /// Makes sure that `next` and many after it may be used.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn reserve(&mut self, next: Nonce) -> io::Result<()> {
        if next.0 < self.reserved {
            return Ok(());
        }
        let reserved = next.0.saturating_add(BLOCK);
        let temporary = self.path.with_extension("nonce.new");
        let mut file = fs::File::create(&temporary)?;
        writeln!(file, "{reserved}")?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        self.reserved = reserved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_grow_across_restarts_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, first) = NonceFile::open(dir.path(), 1_000).unwrap();
        assert_eq!(first, Nonce(1_000));
        file.reserve(Nonce(1_001)).unwrap();
        assert_eq!(file.first(10).unwrap(), Nonce(1_000 + BLOCK));
        assert_eq!(file.first(10).unwrap(), Nonce(1_000 + 2 * BLOCK));
        let (_, second) = NonceFile::open(dir.path(), 10).unwrap();
        assert_eq!(second, Nonce(1_000 + 3 * BLOCK));
        fs::write(dir.path().join("register.nonce"), "junk").unwrap();
        assert!(NonceFile::open(dir.path(), 10).is_err());
    }
}
